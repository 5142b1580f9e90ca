package extauthz

import (
	"net/http"
	"testing"

	"github.com/tollgate-proxy/tollgate/internal/authn"
	"github.com/tollgate-proxy/tollgate/internal/gate"
)

func TestChallenge(t *testing.T) {
	const algorithms = "ES256 EdDSA"
	var (
		plain    authn.Challenge
		unproven = authn.Challenge{Algorithms: algorithms}
		dpop     = authn.Challenge{Scheme: authn.DPoP, Algorithms: algorithms}
		badProof = authn.Challenge{Scheme: authn.DPoP, Algorithms: algorithms, BadProof: true}
	)
	for _, c := range []struct {
		name      string
		status    int
		code      string
		challenge authn.Challenge
		want      string
	}{
		{"no token", 401, "token_missing", plain, `Bearer realm="tollgate"`},
		{"bad token", 401, "token_expired", plain, `Bearer realm="tollgate", error="invalid_token", error_description="token_expired"`},
		{"bad token, with a proof", 401, "token_revoked", dpop, `DPoP realm="tollgate", error="invalid_token", error_description="token_revoked", algs="ES256 EdDSA"`},
		{"bound token without a proof", 401, "token_invalid", unproven, `Bearer realm="tollgate", error="invalid_token", error_description="token_invalid", DPoP realm="tollgate", algs="ES256 EdDSA"`},
		{"bad proof", 401, "token_invalid", badProof, `DPoP realm="tollgate", error="invalid_dpop_proof", error_description="the proof is not good for this request and token", algs="ES256 EdDSA"`},
		{"nonce", 401, "dpop_nonce_required", dpop, `DPoP realm="tollgate", error="use_dpop_nonce", error_description="the proof needs the nonce of this answer", algs="ES256 EdDSA"`},
		{"step up", 401, "step_up_required", plain, `Bearer realm="tollgate", error="insufficient_user_authentication", error_description="sign in once more", max_age="0"`},
		{"step up, with a proof", 401, "step_up_required", dpop, `DPoP realm="tollgate", error="insufficient_user_authentication", error_description="sign in once more", max_age="0", algs="ES256 EdDSA"`},
		{"role", 403, "role_required", plain, `Bearer realm="tollgate", error="insufficient_scope"`},
		{"role, with a proof", 403, "role_required", dpop, `DPoP realm="tollgate", error="insufficient_scope", algs="ES256 EdDSA"`},
		{"address", 403, "address_denied", dpop, ""},
		{"cannot be judged", http.StatusServiceUnavailable, "dependency_unavailable", dpop, ""},
	} {
		if got := challenge(c.status, &gate.Outcome{Code: c.code, Challenge: c.challenge}); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
	}
}
