package e2e

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
)

// testTracing: one request is one connected tree, from Envoy to the Python
// service, and hangs below the client's own span where it has one.
func testTracing(t *testing.T, s *system) {
	_, token := s.user(t, "admin")
	body := `{"symbol":"BTC-USD","last_price":64000,"features":{"return_1h":0.004,"return_24h":0.02,"volatility_24h":0.03,"volume_ratio":1.2,"order_imbalance":0.1,"spread_bps":4}}`
	trace, parent := randomHex(16), randomHex(8)
	a := s.want(t, http.StatusOK, ask{
		path: "/api/v1/ml/predict", token: token, body: body,
		header: http.Header{"Traceparent": {"00-" + trace + "-" + parent + "-01"}},
	})
	id := a.header.Get("X-Request-Id")
	if !uuid.MatchString(id) {
		t.Errorf("request id %q", id)
	}
	var spans []span
	await(t, "the spans of one request", func() error {
		spans = s.collector.trace(trace)
		return connected(spans, parent, id)
	})
	t.Logf("the trace:%s", draw(spans))

	// What is no trace context does not lose the request.
	for _, broken := range []string{"00-" + strings.Repeat("0", 32) + "-" + parent + "-01", "rubbish", "00-" + strings.ToUpper(randomHex(16)) + "-" + parent + "-01"} {
		seen := s.want(t, http.StatusOK, ask{path: "/orders", token: token, header: http.Header{"Traceparent": {broken}}}).seen(t)
		if got := seen.Headers.Get("Traceparent"); len(got) != 55 || strings.Contains(got, parent) {
			t.Errorf("a client's %q became %q", broken, got)
		}
	}
	// A request without a context begins a trace of its own.
	seen := s.want(t, http.StatusOK, ask{path: "/orders", token: token}).seen(t)
	fresh := strings.Split(seen.Headers.Get("Traceparent"), "-")
	if len(fresh) != 4 || fresh[1] == trace {
		t.Fatalf("traceparent %q", seen.Headers.Get("Traceparent"))
	}
	await(t, "the spans of a request to the backend", func() error {
		spans := s.collector.trace(fresh[1])
		if err := has(spans, "envoy", "authz", "ratelimit"); err != nil {
			return err
		}
		return oneTree(spans, "")
	})
}

// connected checks the tree of an ML request below the client's span.
func connected(spans []span, parent, requestID string) error {
	if err := has(spans, "envoy", "authz", "ratelimit", "pyproxy", "ml"); err != nil {
		return err
	}
	if err := oneTree(spans, parent); err != nil {
		return err
	}
	find := func(service, name string, kind tracepb.Span_SpanKind, below *span) (*span, error) {
		for i, s := range spans {
			if strings.Contains(s.service, service) && strings.Contains(s.name, name) && s.kind == kind && (below == nil || descends(spans, s, below.id)) {
				return &spans[i], nil
			}
		}
		return nil, fmt.Errorf("no %s span %q of %s in its place:%s", kind, name, service, draw(spans))
	}
	const server, client = tracepb.Span_SPAN_KIND_SERVER, tracepb.Span_SPAN_KIND_CLIENT
	ingress, err := find("envoy", "", server, nil)
	if err != nil {
		return err
	}
	if ingress.parent != parent {
		return fmt.Errorf("the ingress span's parent is %s instead of the client's %s", ingress.parent, parent)
	}
	if got := ingress.attributes["guid:x-request-id"]; got != requestID {
		return fmt.Errorf("the ingress span's request id is %q instead of %q", got, requestID)
	}
	if _, err := find("authz", "Check", server, ingress); err != nil {
		return err
	}
	if _, err := find("ratelimit", "ShouldRateLimit", server, ingress); err != nil {
		return err
	}
	proxy, err := find("pyproxy", "", server, ingress)
	if err != nil {
		return err
	}
	if above, ok := byID(spans, proxy.parent); !ok || !strings.Contains(above.service, "envoy") || above.kind != client {
		return fmt.Errorf("pyproxy's span is not below Envoy's call of it:%s", draw(spans))
	}
	attempt, err := find("pyproxy", "ml.predict", client, proxy)
	if err != nil {
		return err
	}
	_, err = find("ml", "", server, attempt)
	return err
}

// has checks that each service has sent a span.
func has(spans []span, services ...string) error {
	var missing []error
	for _, service := range services {
		found := false
		for _, s := range spans {
			found = found || strings.Contains(s.service, service)
		}
		if !found {
			missing = append(missing, fmt.Errorf("no span of %s among %d:%s", service, len(spans), draw(spans)))
		}
	}
	return errors.Join(missing...)
}

// oneTree checks that every span but one, which is below root, has its parent
// among the others.
func oneTree(spans []span, root string) error {
	roots := 0
	for _, s := range spans {
		if _, ok := byID(spans, s.parent); ok {
			continue
		}
		roots++
		if s.parent != root {
			return fmt.Errorf("the parent of %s: %s (%s) is missing:%s", s.service, s.name, s.parent, draw(spans))
		}
	}
	if roots != 1 {
		return fmt.Errorf("%d roots:%s", roots, draw(spans))
	}
	return nil
}

func byID(spans []span, id string) (span, bool) {
	for _, s := range spans {
		if s.id == id {
			return s, true
		}
	}
	return span{}, false
}

// descends tells whether s is below the span with the id.
func descends(spans []span, s span, id string) bool {
	for range spans {
		if s.parent == id {
			return true
		}
		above, ok := byID(spans, s.parent)
		if !ok {
			return false
		}
		s = above
	}
	return false
}

func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}
