package authn

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/singleflight"

	"github.com/tollgate-proxy/tollgate/internal/outage"
)

// maxAnswer is the longest answer of an introspection server, in bytes.
const maxAnswer = 64 << 10

// introspector asks a server about opaque tokens (RFC 7662). Answers, good and
// bad, are believed for a while; questions about one token are asked once at a
// time. It is safe for concurrent use.
type introspector struct {
	cfg     IntrospectionConfig
	issuer  *issuer
	secret  atomic.Pointer[string]
	client  *http.Client
	now     func() time.Time
	log     *slog.Logger
	cache   *cache
	flights singleflight.Group
	slots   chan struct{}
	away    outage.Outage

	asked map[string]prometheus.Counter
	all   *prometheus.CounterVec
}

func newIntrospector(cfg Config, o Options) (*introspector, error) {
	c := cfg.Introspection
	claims, err := newMapping(c.Claims)
	if err != nil {
		return nil, err
	}
	client := &http.Client{Transport: keeping(c.Concurrent)}
	if o.HTTPClient != nil {
		*client = *o.HTTPClient
	}
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	in := &introspector{
		cfg: c, client: client, now: o.Now, log: o.Log, cache: newCache(int64(c.Cache)), slots: make(chan struct{}, c.Concurrent),
		issuer: &issuer{
			name: "introspection", url: c.Issuer, audiences: c.Audiences, claims: claims, tiers: c.Tiers,
			leeway: cfg.Leeway, maxLifetime: cfg.MaxLifetime, unsigned: &key{},
		},
		asked: map[string]prometheus.Counter{},
		all: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tollgate_authn_introspections_total", Help: "Questions to the introspection server, by outcome: active, inactive, error or busy.",
		}, []string{"outcome"}),
	}
	for _, outcome := range []string{"active", "inactive", "error", "busy"} {
		in.asked[outcome] = in.all.WithLabelValues(outcome)
	}
	use, err := in.readSecret()
	if err != nil {
		return nil, err
	}
	use()
	return in, nil
}

// readSecret reads the file of our secret; use puts it into use.
func (in *introspector) readSecret() (use func(), err error) {
	text, err := readKeyFile(string(in.cfg.SecretFile))
	if err != nil {
		return nil, err
	}
	secret := string(bytes.TrimSuffix(bytes.TrimSuffix(text, []byte("\n")), []byte("\r")))
	if secret == "" {
		return nil, fmt.Errorf("%s: no secret", in.cfg.SecretFile)
	}
	return func() { in.secret.Store(&secret) }, nil
}

// keeping is the usual transport, which would close all but two connections to
// the server whenever questions pause, and open them again within the deadlines of
// the next ones.
func keeping(connections int) http.RoundTripper {
	usual, ok := http.DefaultTransport.(*http.Transport)
	if !ok {
		return http.DefaultTransport
	}
	t := usual.Clone()
	t.MaxIdleConnsPerHost, t.MaxIdleConns = connections, connections
	return t
}

var (
	errInactive = invalid(errors.New("the introspection server does not know the token as active"))
	errBusy     = &Error{Code: CodeUnavailable, Public: unavailableDetail, Cause: errors.New("too many questions to the introspection server under way")}
)

// verify returns what the server says of the token, or said a while ago.
func (in *introspector) verify(ctx context.Context, token string, now time.Time) (*verified, *Error) {
	if !isToken68(token) {
		return nil, malformed(errors.New("has characters that no token has"))
	}
	if e := in.cache.get(token); e != nil && now.UnixNano() < e.verified.believed {
		return in.judge(&e.verified, now)
	}
	// What a caller's end of patience must not end is the question: others wait
	// for the same answer.
	token = strings.Clone(token)
	flight := in.flights.DoChan(token, func() (any, error) {
		got, err := in.ask(context.WithoutCancel(ctx), token)
		if err != nil {
			return nil, err
		}
		got.believed = in.now().Add(in.cfg.TTL).UnixNano()
		in.cache.put(token, *got)
		return got, nil
	})
	select {
	case <-ctx.Done():
		return nil, &Error{Code: CodeUnavailable, Public: unavailableDetail, Cause: ctx.Err()}
	case answer := <-flight:
		if answer.Err != nil {
			var e *Error
			if !errors.As(answer.Err, &e) {
				e = &Error{Code: CodeUnavailable, Public: unavailableDetail, Cause: answer.Err}
			}
			return nil, e
		}
		got, _ := answer.Val.(*verified)
		return in.judge(got, now)
	}
}

func (in *introspector) judge(got *verified, now time.Time) (*verified, *Error) {
	if got.refusal != nil {
		return nil, got.refusal
	}
	if err := got.check(now); err != nil {
		return nil, err
	}
	return got, nil
}

// ask asks the server. An inactive token is an answer with a refusal; an error
// is no answer.
func (in *introspector) ask(ctx context.Context, token string) (*verified, error) {
	select {
	case in.slots <- struct{}{}:
		defer func() { <-in.slots }()
	default:
		in.asked["busy"].Inc()
		return nil, errBusy
	}
	ctx, cancel := context.WithTimeout(ctx, in.cfg.Timeout)
	defer cancel()
	answer, size, err := in.post(ctx, token)
	if err != nil {
		in.asked["error"].Inc()
		if in.away.Failed(in.now()) {
			in.log.Warn("introspection server does not answer", "error", err)
		}
		return nil, fmt.Errorf("introspection: %w", err)
	}
	if in.away.Answered(in.now()) {
		in.log.Info("introspection server answers again")
	}
	got, err := in.read(answer, token)
	if err != nil {
		in.asked["inactive"].Inc()
		var e *Error
		if !errors.As(err, &e) {
			e = invalid(err)
		}
		return &verified{refusal: e}, nil
	}
	in.asked["active"].Inc()
	got.answer = size
	return got, nil
}

// post asks about a token, and returns the answer and how many bytes it has.
func (in *introspector) post(ctx context.Context, token string) (map[string]any, int, error) {
	form := url.Values{"token": {token}, "token_type_hint": {"access_token"}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, in.cfg.URL, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, 0, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	// RFC 6749 section 2.3.1: both are form-encoded first.
	req.SetBasicAuth(url.QueryEscape(in.cfg.ClientID), url.QueryEscape(*in.secret.Load()))
	res, err := in.client.Do(req)
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1)) // of any status, so that the connection is kept
	if err != nil {
		return nil, 0, err
	}
	if res.StatusCode != http.StatusOK {
		return nil, 0, fmt.Errorf("status %d", res.StatusCode)
	}
	if len(body) > maxAnswer {
		return nil, 0, fmt.Errorf("an answer of more than %d bytes", maxAnswer)
	}
	answer, err := parseObject(body)
	if err != nil {
		return nil, 0, fmt.Errorf("the answer %w", err)
	}
	return answer, len(body), nil
}

// read makes a principal of an answer, by the rules for claims.
func (in *introspector) read(answer map[string]any, token string) (*verified, error) {
	if active, _ := answer["active"].(bool); !active {
		return nil, errInactive
	}
	if iss, ok := answer["iss"]; ok && iss != in.cfg.Issuer {
		return nil, errors.New("issuer is not the introspection server's")
	}
	got, err := in.issuer.principal(&compact{payload: answer, input: token})
	if err != nil {
		return nil, err
	}
	if kind, _ := answer["token_type"].(string); strings.EqualFold(kind, "dpop") && got.principal.KeyThumbprint == "" {
		return nil, errors.New("is of type DPoP, and the answer does not say to which key it is bound")
	}
	got.key = in.issuer.unsigned
	return &got, nil
}

// isToken68 reports whether s may be a bearer token at all (RFC 6750).
func isToken68(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && strings.IndexByte("-._~+/=", c) < 0 {
			return false
		}
	}
	return s != ""
}
