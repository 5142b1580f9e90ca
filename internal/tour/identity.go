package tour

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// backendPath is served by the echo backend for anyone with a token.
const backendPath = "/orders"

func noToken(ctx context.Context, g *guide) error {
	a, err := g.show(ctx, call{method: http.MethodGet, path: backendPath}, http.StatusUnauthorized, "WWW-Authenticate", "Content-Type")
	if err != nil {
		return err
	}
	if challenge := a.header.Get("WWW-Authenticate"); !strings.HasPrefix(challenge, "Bearer") {
		return fmt.Errorf("www-authenticate is %q instead of a Bearer challenge", challenge)
	}
	return a.refused("token_missing")
}

func forgedToken(ctx context.Context, g *guide) error {
	user, token, err := g.token("free")
	if err != nil {
		return err
	}
	promoted, err := alter(token, `"free"`, `"admin"`)
	if err != nil {
		return err
	}
	unsigned, err := unsign(token)
	if err != nil {
		return err
	}
	for _, forged := range []struct{ token, as string }{
		{promoted, user + ", who wrote admin into a free user's token"},
		{unsigned, user + ", whose token says alg: none"},
	} {
		a, err := g.show(ctx, call{method: http.MethodGet, path: backendPath, token: forged.token, as: forged.as}, http.StatusUnauthorized, "WWW-Authenticate")
		if err != nil {
			return err
		}
		if err := a.refused("token_invalid", "token_malformed"); err != nil {
			return err
		}
	}
	return nil
}

// alter changes a token's claims and keeps its signature.
func alter(token, from, to string) (string, error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return "", errors.New("the minted token is not a JWT")
	}
	claims, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return "", fmt.Errorf("the minted token's claims: %w", err)
	}
	changed := strings.Replace(string(claims), from, to, 1)
	if changed == string(claims) {
		return "", fmt.Errorf("the minted token does not claim %s", from)
	}
	parts[1] = base64.RawURLEncoding.EncodeToString([]byte(changed))
	return strings.Join(parts, "."), nil
}

// unsign makes an unsecured JWT (RFC 7519, section 6) of a token.
func unsign(token string) (string, error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return "", errors.New("the minted token is not a JWT")
	}
	return base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","typ":"JWT"}`)) + "." + parts[1] + ".", nil
}

func goodToken(ctx context.Context, g *guide) error {
	user, token, err := g.token("premium")
	if err != nil {
		return err
	}
	a, err := g.show(ctx, call{
		method: http.MethodGet, path: backendPath, token: token, as: user + ", premium",
		header: http.Header{
			"X-User-Id":       {"mallory"},
			"X.User.Id":       {"mallory"},
			"X-User-Tier":     {"admin"},
			"X-User-Roles":    {"mallory"},
			"X-Feature-Flags": {"everything=on"},
			"X-Risk-Score":    {"0"},
		},
	}, http.StatusOK, "X-Request-Id")
	if err != nil {
		return err
	}
	seen, err := a.seen()
	if err != nil {
		return err
	}
	g.paper.backend(seen.Headers, "x-user-id", "x-user-tier", "x-user-roles", "x-session-id", "x-feature-flags", "x-risk-score", "traceparent")
	if err := exactly(seen.Headers, "X-User-Id", user); err != nil {
		return err
	}
	if err := exactly(seen.Headers, "X-User-Tier", "premium"); err != nil {
		return err
	}
	for name, values := range seen.Headers {
		for _, value := range values {
			for _, forged := range []string{"mallory", "everything"} {
				if strings.Contains(value, forged) {
					return fmt.Errorf("the client's own value reached the backend: %s: %s", name, value)
				}
			}
		}
	}
	if len(seen.Headers.Values("X-Feature-Flags")) != 1 {
		return errors.New("the backend did not get one x-feature-flags header")
	}
	return a.has("X-Request-Id")
}

// exactly checks that the backend saw one value of a header.
func exactly(header http.Header, name, value string) error {
	if got := header.Values(name); len(got) != 1 || got[0] != value {
		return fmt.Errorf("the backend saw %s as %q instead of %q", strings.ToLower(name), got, value)
	}
	return nil
}

func underscoredHeader(ctx context.Context, g *guide) error {
	user, token, err := g.token("premium")
	if err != nil {
		return err
	}
	_, err = g.show(ctx, call{
		method: http.MethodGet, path: backendPath, token: token, as: user + ", premium",
		header: http.Header{"X_User_Id": {"mallory"}},
	}, http.StatusBadRequest, "Content-Type")
	return err
}

func revocation(ctx context.Context, g *guide) error {
	user, token, err := g.token("premium")
	if err != nil {
		return err
	}
	other, err := g.target.Mint(user, "premium")
	if err != nil {
		return fmt.Errorf("mint a second token: %w", err)
	}
	request := call{method: http.MethodGet, path: backendPath, token: token, as: user}
	if _, err := g.show(ctx, request, http.StatusOK); err != nil {
		return err
	}
	if err := g.target.API.RevokeToken(ctx, token, "the tour shows revocation"); err != nil {
		return fmt.Errorf("revoke the token: %w", err)
	}
	g.paper.notef("POST /v1/tokens/revoke: the token is revoked")
	a, err := g.show(ctx, request, http.StatusUnauthorized, "WWW-Authenticate")
	if err != nil {
		return err
	}
	if err := a.refused("token_revoked"); err != nil {
		return err
	}
	_, err = g.show(ctx, call{method: http.MethodGet, path: backendPath, token: other, as: user + ", with another token"}, http.StatusOK)
	return err
}
