package extauthz

import (
	"net/http"

	"github.com/tollgate-proxy/tollgate/internal/authn"
	"github.com/tollgate-proxy/tollgate/internal/gate"
	"github.com/tollgate-proxy/tollgate/internal/policy"
)

// challenge is the WWW-Authenticate value of a refusal, in the scheme that the
// client used (RFC 6750 section 3, RFC 9449 section 7): no error for a request
// without a token, insufficient_scope where another token would do, and else
// what is wrong with the token or with the proof beside it.
func challenge(status int, o *gate.Outcome) string {
	var reason string
	switch {
	case status == http.StatusForbidden && o.Code == policy.CodeRoleRequired:
		reason = `, error="insufficient_scope"`
	case status != http.StatusUnauthorized:
		return ""
	case o.Code == authn.CodeMissing:
	case o.Code == authn.CodeNonce:
		reason = `, error="use_dpop_nonce", error_description="the proof needs the nonce of this answer"`
	case o.Code == gate.CodeStepUp: // RFC 9470
		reason = `, error="insufficient_user_authentication", error_description="sign in once more", max_age="0"`
	case o.Challenge.BadProof:
		reason = `, error="invalid_dpop_proof", error_description="the proof is not good for this request and token"`
	default:
		reason = `, error="invalid_token", error_description="` + o.Code + `"`
	}
	const realm = ` realm="tollgate"`
	algorithms := o.Challenge.Algorithms
	switch {
	case o.Challenge.Scheme == authn.DPoP:
		return "DPoP" + realm + reason + `, algs="` + algorithms + `"`
	case algorithms != "": // a token that is bound to a key
		return "Bearer" + realm + reason + `, DPoP` + realm + `, algs="` + algorithms + `"`
	default:
		return "Bearer" + realm + reason
	}
}
