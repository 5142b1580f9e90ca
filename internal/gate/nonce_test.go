package gate_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tollgate-proxy/tollgate/internal/authn"
	"github.com/tollgate-proxy/tollgate/internal/flag"
	"github.com/tollgate-proxy/tollgate/internal/gate"
	"github.com/tollgate-proxy/tollgate/internal/revocation"
)

var handed = authn.Challenge{Scheme: authn.DPoP, BadProof: true, Algorithms: "ES256"}

// handing hands out a nonce, and asks for one first.
type handing struct{ asks bool }

func (h handing) Authenticate(_ context.Context, r *authn.Request, now time.Time) (*authn.Principal, error) {
	r.FreshNonce, r.Challenge = "n-1", handed
	if h.asks {
		return nil, &authn.Error{Code: authn.CodeNonce, Public: "again"}
	}
	return &authn.Principal{Subject: "ada", Tier: "free", ExpiresAt: now.Add(time.Hour)}, nil
}

type nothingRevoked struct{}

func (nothingRevoked) Check(context.Context, *revocation.Token, time.Time, revocation.Policy) (revocation.Verdict, error) {
	return revocation.Verdict{Fresh: true}, nil
}

func TestNonceOfProofs(t *testing.T) {
	for _, asks := range []bool{true, false} {
		g := gate.New(gate.Options{
			Verifier: handing{asks}, Denylist: nothingRevoked{}, Flags: fixedFlags{&flag.Set{}}, Routes: compileRoutes(t, routes),
			Log: slog.New(slog.DiscardHandler), Metrics: gate.NewMetrics(prometheus.NewRegistry()), Now: time.Now,
		})
		o := g.Decide(t.Context(), &gate.Request{Request: authn.Request{Host: "h", Method: "GET", Path: "/api"}})
		if o.Nonce != "n-1" || o.Challenge != handed || o.Allowed == asks || asks && (o.Status != 401 || o.Code != authn.CodeNonce) {
			t.Errorf("asked for a nonce: %v: %+v", asks, o)
		}
	}
}
