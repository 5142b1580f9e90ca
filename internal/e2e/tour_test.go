package e2e

import (
	"bytes"
	"testing"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/authn"
	"github.com/tollgate-proxy/tollgate/internal/stack"
	"github.com/tollgate-proxy/tollgate/internal/tour"
)

// testTour takes the demo's tour twice: the second visitor finds what the first
// one found.
func testTour(t *testing.T, s *system) {
	for _, visitor := range []string{"first", "second"} {
		var paper bytes.Buffer
		results, err := tour.Run(t.Context(), tour.Target{
			Envoy: s.URL(stack.EnvoyListener), API: s.api, Parts: s,
			Mint: func(user, tier string) (string, error) {
				token, err := s.minter.Mint(authn.MintOptions{User: user, Tier: tier, TTL: 30 * time.Minute})
				s.hide(token)
				return token, err
			},
		}, &paper)
		if err != nil || len(results) != len(tour.Steps()) {
			t.Fatalf("the %s visitor: %v\n%s", visitor, err, &paper)
		}
	}
}
