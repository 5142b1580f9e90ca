package authn

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tollgate-proxy/tollgate/internal/outage"
)

// Bounds of fetching.
const (
	maxUnknown   = 1024             // kids remembered as unknown
	unknownTTL   = 5 * time.Minute  // how long a kid stays remembered as unknown
	firstBackoff = time.Second      // after a first failure, then doubling
	maxBackoff   = 30 * time.Second // but never beyond the refresh interval
)

// keyHolder holds an issuer's current key set, nil before there is one.
type keyHolder = atomic.Pointer[keySet]

// remoteKeys keeps an issuer's key set fresh from a URL. One goroutine runs
// run; unknown may be called from any.
type remoteKeys struct {
	issuer *issuer
	url    string
	cfg    JWKSConfig
	client *http.Client
	now    func() time.Time
	log    *slog.Logger
	ready  func()
	wake   chan string

	// fetched is when the set was last read successfully, in nanoseconds since
	// 1970; 0 for never.
	fetched  atomic.Int64
	away     outage.Outage
	outcomes *prometheus.CounterVec
	good     prometheus.Counter
	bad      prometheus.Counter
	missed   prometheus.Counter
	labels   prometheus.Labels
}

func newRemoteKeys(is *issuer, url string, cfg JWKSConfig, o Options, ready func()) *remoteKeys {
	client := &http.Client{}
	if o.HTTPClient != nil {
		*client = *o.HTTPClient
	}
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	r := &remoteKeys{
		issuer: is, url: url, cfg: cfg, client: client, now: o.Now, log: o.Log, ready: ready,
		wake: make(chan string, 16), labels: prometheus.Labels{"issuer": is.name},
	}
	r.outcomes = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "tollgate_authn_jwks_fetches_total", Help: "Fetches of a key set, by outcome: ok or error.", ConstLabels: r.labels,
	}, []string{"outcome"})
	r.good, r.bad = r.outcomes.WithLabelValues("ok"), r.outcomes.WithLabelValues("error")
	r.missed = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "tollgate_authn_jwks_unknown_keys_total", Help: "Tokens that named a key that the key set has not.", ConstLabels: r.labels,
	})
	return r
}

func (r *remoteKeys) collectors() []prometheus.Collector {
	return []prometheus.Collector{
		r.outcomes, r.missed,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "tollgate_authn_jwks_age_seconds", Help: "Time since the key set was last fetched; -1 before the first time.", ConstLabels: r.labels,
		}, func() float64 {
			at := r.fetched.Load()
			if at == 0 {
				return -1
			}
			return r.now().Sub(time.Unix(0, at)).Seconds()
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "tollgate_authn_jwks_keys", Help: "Usable keys in the key set.", ConstLabels: r.labels,
		}, func() float64 {
			if set := r.issuer.keys.Load(); set != nil {
				return float64(len(set.keys))
			}
			return 0
		}),
	}
}

// unknown says that a token named a key that the set has not. It never waits.
func (r *remoteKeys) unknown(kid string) {
	r.missed.Inc()
	select {
	case r.wake <- strings.Clone(kid):
	default: // A fetch is on its way, or a flood of such tokens.
	}
}

// run fetches at once, then at every refresh interval, after failures sooner,
// and for unknown keys as often as the configuration allows. An unknown key only
// ever brings the next fetch forward: who makes keys up postpones none.
func (r *remoteKeys) run(ctx context.Context) {
	next := r.now() // when the timer fires
	timer := time.NewTimer(0)
	defer timer.Stop()
	unknown := map[string]time.Time{} // kid to when it may be asked for again
	var last time.Time                // of the last fetch
	backoff := firstBackoff
	for {
		select {
		case <-ctx.Done():
			return
		case kid := <-r.wake:
			now := r.now()
			if now.Before(unknown[kid]) {
				continue
			}
			if len(unknown) >= maxUnknown {
				clear(unknown)
			}
			unknown[kid] = now.Add(unknownTTL)
			if at := last.Add(r.cfg.UnknownKey); at.Before(next) {
				next = at
				timer.Reset(max(0, at.Sub(now)))
			}
			continue
		case <-timer.C:
		}
		err := r.fetch(ctx)
		last = r.now()
		if err != nil && ctx.Err() != nil {
			return
		}
		r.note(err, last)
		wait := r.cfg.Refresh
		if err != nil {
			clear(unknown) // what was asked was not answered
			wait = min(backoff, wait)
			backoff = min(2*backoff, maxBackoff)
		} else {
			backoff = firstBackoff
		}
		wait = jitter(wait)
		next = last.Add(wait)
		timer.Reset(wait)
	}
}

// note counts the outcome of a fetch, and logs where that is news.
func (r *remoteKeys) note(err error, at time.Time) {
	if err == nil {
		r.good.Inc()
		if r.away.Answered(at) {
			r.log.Info("key set is fetched again", "issuer", r.issuer.name)
		}
		return
	}
	r.bad.Inc()
	switch begins := r.away.Failed(at); {
	case !begins:
	case r.issuer.keys.Load() == nil:
		r.log.Error("key set cannot be fetched, and there is none yet: tokens of the issuer cannot be verified", "issuer", r.issuer.name, "error", err)
	default:
		r.log.Warn("key set cannot be fetched, the last one stays in use", "issuer", r.issuer.name, "error", err)
	}
}

func (r *remoteKeys) fetch(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "application/jwk-set+json, application/json")
	res, err := r.client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", res.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, maxKeyFile+1))
	if err != nil {
		return err
	}
	if len(body) > maxKeyFile {
		return fmt.Errorf("longer than %d bytes", maxKeyFile)
	}
	keys, err := parseJWKS(body, r.issuer.algorithms)
	if err != nil {
		return err
	}
	r.fetched.Store(r.now().UnixNano())
	first := r.issuer.keys.Load() == nil
	if r.issuer.use(keys) {
		r.log.Info("key set changed", "issuer", r.issuer.name, "keys", len(keys))
	}
	if first {
		r.ready()
	}
	return nil
}

// jitter varies d by a tenth, so that replicas do not fetch in step.
func jitter(d time.Duration) time.Duration {
	return d - d/10 + rand.N(d/5+1)
}
