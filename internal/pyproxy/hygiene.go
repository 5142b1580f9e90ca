package pyproxy

import (
	"errors"
	"net/http"
	"net/netip"
	"strings"
)

// isEdges says whether only the edge may say what a canonical name says.
func isEdges(name string) bool {
	return isIdentity(name) || strings.HasPrefix(name, "X-Forwarded-") || strings.HasPrefix(name, "X-Envoy-")
}

var errNominated = errors.New("the Connection header names a header that must reach the service")

// isIdentity says whether a canonical name is one of the headers that the edge sets.
func isIdentity(name string) bool {
	rest, ok := strings.CutPrefix(name, "X-")
	if !ok {
		return false
	}
	return rest == "Consent" || rest == "Session-Id" || strings.HasPrefix(rest, "User-") || strings.HasPrefix(rest, "Feature-") ||
		strings.HasPrefix(rest, "Risk-") || strings.HasPrefix(rest, "Tollgate-")
}

// idempotencyKeys are the headers by which a client says that a request may be
// sent twice: the IETF's draft, and an older name that net/http takes for it too.
func idempotencyKeys() [2]string { return [2]string{"Idempotency-Key", "X-Idempotency-Key"} }

// sanitise removes from h, in place, what must not reach a service: keys without a
// value, which are none although net/http would repeat requests for them;
// names with underscores or dots, which WSGI and CGI servers fold into the
// dashed name (X_User_Id and X.User.Id would arrive as X-User-Id), and, unless
// the peer is trusted, the identity and forwarding headers; and the wish to upgrade to anything
// but WebSocket. It refuses a Connection header
// that asks to drop an identity, tracing or length header on the way.
func sanitise(h http.Header, trusted bool) error {
	for name := range h {
		if strings.ContainsAny(name, "_.") || !trusted && isEdges(name) {
			delete(h, name)
		}
	}
	for _, name := range idempotencyKeys() {
		if v, ok := h[name]; ok && (len(v) != 1 || v[0] == "") {
			delete(h, name)
		}
	}
	// Any other protocol, h2c above all, would carry requests past every rule.
	if u := h["Upgrade"]; len(u) != 1 || !strings.EqualFold(u[0], "websocket") {
		delete(h, "Upgrade")
	}
	for _, v := range h["Connection"] {
		for nominated := range strings.SplitSeq(v, ",") {
			switch n := http.CanonicalHeaderKey(strings.TrimSpace(nominated)); {
			case isIdentity(n), n == "X-Request-Id", n == "Traceparent", n == "Tracestate", n == "Authorization",
				strings.HasSuffix(n, "Idempotency-Key"), n == "Content-Length", n == "Content-Type", n == "Host":
				return errNominated
			}
		}
	}
	return nil
}

// peers says which remote addresses may carry identity headers.
type peers []netip.Prefix

// trusts takes a remote address as net/http writes it. A peer on a Unix socket
// has no address and is trusted: the file system guards it.
func (ps peers) trusts(remote string) bool {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return remote == "" || remote == "@"
	}
	a := ap.Addr().Unmap()
	for _, p := range ps {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
