package pyproxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/resilience"
)

// upstream is one service: its endpoints, its retry budget and the circuits of
// its route classes.
type upstream struct {
	Upstream
	endpoints atomic.Pointer[[]*endpoint]
	circuits  []*circuit // by class, fixed after construction
	budget    *resilience.Budget
	streams   *atomic.Int64 // open now, of earlier setups too
	healthURL string        // path and query of the health check
	kick      chan struct{}
	log       *slog.Logger
	metrics   *upstreamMetrics
}

// circuit is what the routes of one class share.
type circuit struct {
	class   string
	breaker *resilience.Breaker
	limit   *resilience.Limit // nil where not limited
}

func (u *upstream) current() []*endpoint { return *u.endpoints.Load() }

func (u *upstream) circuit(class string) *circuit {
	for _, c := range u.circuits {
		if c.class == class {
			return c
		}
	}
	return nil
}

var errNoAddress = errors.New("no address")

// resolver looks host names up.
type resolver func(ctx context.Context, host string) ([]netip.Addr, error)

func systemResolver(ctx context.Context, host string) ([]netip.Addr, error) {
	return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
}

// unresolved are the endpoints before any look-up: a host name stands for
// itself, and connecting looks it up.
func unresolved(addresses []string) []*endpoint {
	var es []*endpoint
	for _, a := range addresses {
		es = append(es, &endpoint{address: a, host: a})
	}
	return es
}

// reuse are the endpoints for addresses, with those that are known already.
func (u *upstream) reuse(addresses []string) []*endpoint {
	var es []*endpoint
	for _, a := range addresses {
		n := len(es)
		for _, e := range u.current() {
			if e.host == a {
				es = append(es, e)
			}
		}
		if len(es) == n {
			es = append(es, unresolved([]string{a})...)
		}
	}
	return es
}

// named says whether any address must be looked up.
func named(addresses []string) bool {
	return slices.ContainsFunc(addresses, func(a string) bool {
		host, _, err := net.SplitHostPort(a)
		if err != nil {
			return false
		}
		_, err = netip.ParseAddr(host)
		return err != nil
	})
}

// resolve replaces the endpoints by what the names stand for now. An address
// whose look-up fails keeps the endpoints it had: a name server's bad day must
// not take a working service away.
func (u *upstream) resolve(ctx context.Context, look resolver) error {
	old := u.current()
	var next []*endpoint
	var failed error
	add := func(address, host string) {
		if slices.ContainsFunc(next, func(e *endpoint) bool { return e.address == address && e.host == host }) {
			return
		}
		for _, e := range old {
			if e.address == address && e.host == host {
				next = append(next, e)
				return
			}
		}
		next = append(next, &endpoint{address: address, host: host})
	}
	for _, a := range u.Addresses {
		host, port, err := net.SplitHostPort(a)
		if err != nil {
			return fmt.Errorf("address %q: %w", a, err)
		}
		if _, err := netip.ParseAddr(host); err == nil {
			add(a, a)
			continue
		}
		found, err := look(ctx, host)
		if err == nil && len(found) == 0 {
			err = errNoAddress
		}
		if err != nil {
			failed = fmt.Errorf("look up %q: %w", host, err)
			for _, e := range old {
				if e.host == a {
					add(e.address, a)
				}
			}
			continue
		}
		for _, ip := range found {
			add(net.JoinHostPort(ip.Unmap().String(), port), a)
		}
	}
	u.endpoints.Store(&next)
	return failed
}

// watchNames looks the names up at once and then every interval, until ctx ends.
func (u *upstream) watchNames(ctx context.Context, c TransportConfig, look resolver) {
	if !named(u.Addresses) {
		return
	}
	wrong := false
	for {
		lookCtx, cancel := context.WithTimeout(ctx, c.ResolveTimeout)
		err := u.resolve(lookCtx, look)
		cancel()
		if (err != nil) != wrong && ctx.Err() == nil {
			wrong = err != nil
			if wrong {
				u.log.Warn("upstream name not found", "error", err)
			} else {
				u.log.Info("upstream name found again")
			}
		}
		if sleep(ctx, c.ResolveEvery) != nil {
			return
		}
	}
}

// watchHealth checks every endpoint at once and then every interval, or sooner
// when kicked, until ctx ends. After each round the circuits learn whether any
// endpoint is well, which is how they close without traffic.
func (u *upstream) watchHealth(ctx context.Context, c HealthConfig, client *http.Client) {
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		case <-u.kick:
		}
		ok := u.checkAll(ctx, c, client)
		if ctx.Err() != nil {
			return
		}
		for _, cc := range u.circuits {
			cc.breaker.Health(ok)
		}
		t.Reset(c.Interval)
	}
}

// checkAll makes one round and says whether any endpoint answered well.
func (u *upstream) checkAll(ctx context.Context, c HealthConfig, client *http.Client) bool {
	es := u.current()
	results := make(chan error, len(es))
	for _, e := range es {
		go func() {
			err := check1(ctx, c.Timeout, client, "http://"+e.address+u.healthURL, e.host)
			if ctx.Err() == nil {
				u.checked(e, c, err)
			}
			results <- err
		}()
	}
	anyOK := false
	for range es {
		anyOK = <-results == nil || anyOK
	}
	return anyOK
}

func (u *upstream) checked(e *endpoint, c HealthConfig, err error) {
	if err == nil {
		u.metrics.healthOK.Inc()
		e.bad, e.good = 0, e.good+1
		if e.good >= c.HealthyAfter && e.unhealthy.CompareAndSwap(true, false) {
			u.log.Info("address healthy", "address", e.address)
		}
		return
	}
	u.metrics.healthFailed.Inc()
	e.good, e.bad = 0, e.bad+1
	if e.bad >= c.UnhealthyAfter && e.unhealthy.CompareAndSwap(false, true) {
		u.log.Warn("address unhealthy", "address", e.address, "error", err)
	}
}

func check1(ctx context.Context, timeout time.Duration, client *http.Client, url, host string) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Host = host
	req.Header.Set("User-Agent", "tollgate-pyproxy health check")
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	_ = resp.Body.Close() // the connection is not kept: each check is a new one
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	return nil
}

// probeSoon asks for a round of health checks now.
func (u *upstream) probeSoon() {
	select {
	case u.kick <- struct{}{}:
	default: // one is due already
	}
}

// sleep waits, or returns the context's error.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// failed counts a failed call against its endpoint.
func (u *upstream) failed(e *endpoint, c EjectionConfig, now time.Time, why cause) {
	if d := e.failed(c, u.current(), now); d > 0 {
		u.metrics.ejections.Inc()
		u.log.Warn("address ejected", "address", e.address, "for", d, "last_failure", why.String())
	}
}
