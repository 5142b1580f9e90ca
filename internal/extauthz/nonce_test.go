package extauthz

import (
	"net/http"
	"testing"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"github.com/tollgate-proxy/tollgate/internal/authn"
	"github.com/tollgate-proxy/tollgate/internal/gate"
)

// A nonce for the client's next proof comes with every answer that has one, which
// is then kept by no cache, and never goes to the backend.
func TestNonce(t *testing.T) {
	allowed := allowedOutcome(t)
	refused := gate.Outcome{Status: http.StatusUnauthorized, Code: authn.CodeNonce, Detail: "why", Tier: "anonymous"}
	otherwise := gate.Outcome{Status: http.StatusForbidden, Code: "role_required", Detail: "why", Tier: "free"}
	limited := allowedOutcome(t)
	limited.Allowed, limited.Status, limited.Code = false, http.StatusTooManyRequests, "rate_limited"
	for name, o := range map[string]gate.Outcome{"allowed": allowed, "asked for": refused, "refused otherwise": otherwise, "limited": limited} {
		for _, nonce := range []string{"", "n-1"} {
			o.Nonce = nonce
			s := New(Options{Headers: DefaultHeaders(), Decider: decide(func(*gate.Request) gate.Outcome { return o })})
			a := check(t, s, &authv3.CheckRequest{})
			headers := a.GetDeniedResponse().GetHeaders()
			if ok := a.GetOkResponse(); ok != nil {
				headers = ok.GetResponseHeadersToAdd()
				if _, there := headersOf(a)[nonceHeader]; there {
					t.Errorf("%s: the backend is told the nonce", name)
				}
			}
			got := map[string]string{}
			for _, h := range headers {
				got[h.GetHeader().GetKey()] = h.GetHeader().GetValue()
			}
			if got["dpop-nonce"] != nonce {
				t.Errorf("%s: nonce %q, want %q", name, got["dpop-nonce"], nonce)
			}
			kept := nonce == "" && (o.Allowed || name == "limited")
			if want := map[bool]string{false: "no-store"}[kept]; got["cache-control"] != want {
				t.Errorf("%s, nonce %q: cache-control %q, want %q", name, nonce, got["cache-control"], want)
			}
		}
	}
}
