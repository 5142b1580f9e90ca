package extauthz

import (
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/tollgate-proxy/tollgate/internal/gate"
)

// nonceHeader brings the client a nonce for its next DPoP proof (RFC 9449,
// section 8.2).
const nonceHeader = "dpop-nonce"

// appendNonce adds the nonce, where there is one, to the headers of the client's
// answer, which is then to be kept nowhere: it would bring an old nonce (RFC 9449,
// section 8.2).
func appendNonce(b []byte, o *gate.Outcome, number protowire.Number) []byte {
	if o.Nonce == "" {
		return b
	}
	b = appendOption(b, number, nonceHeader, o.Nonce)
	return appendOption(b, number, "cache-control", "no-store")
}
