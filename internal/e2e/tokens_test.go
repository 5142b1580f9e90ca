package e2e

import (
	"encoding/base64"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/authn"
)

// testTokens: each way in which a token can be bad, as the client sees it.
func testTokens(t *testing.T, s *system) {
	user, good := s.user(t, "admin")
	parts := strings.Split(good, ".")
	none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","typ":"JWT"}`)) + "." + parts[1] + "."
	expired := s.mint(t, authn.MintOptions{User: user, Tier: "admin", TTL: time.Minute, Now: time.Now().Add(-10 * time.Minute)})
	future := s.mint(t, authn.MintOptions{User: user, Tier: "admin", Now: time.Now().Add(time.Hour)})
	otherKey, err := authn.NewMinter(t.TempDir() + "/other.pem")
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := otherKey.Mint(authn.MintOptions{User: user, Tier: "admin"})
	if err != nil {
		t.Fatal(err)
	}
	s.hide(foreign)
	s.want(t, http.StatusOK, ask{path: "/orders", token: good})
	for _, tc := range []struct {
		name, authorization string
		codes               string
	}{
		{"none", "", "token_missing"},
		{"another scheme", "Basic dXNlcjpwYXNz", "token_missing token_malformed"},
		{"no JWT", "Bearer abc", "token_malformed"},
		{"two tokens", "Bearer " + good + ", Bearer " + good, "token_malformed"},
		{"unsigned", "Bearer " + none, "token_invalid token_malformed"},
		{"altered", "Bearer " + parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(`{"sub":"root"}`)) + "." + parts[2], "token_invalid"},
		{"signature of another", "Bearer " + foreign, "token_invalid"},
		{"padding appended", "Bearer " + good + "==", "token_malformed token_invalid"},
		{"trailing bits", "Bearer " + good[:len(good)-1] + next(good[len(good)-1]), "token_malformed token_invalid"},
		{"expired", "Bearer " + expired, "token_expired"},
		{"from the future", "Bearer " + future, "token_invalid"},
		{"20 KiB", "Bearer " + parts[0] + "." + strings.Repeat("e", 20<<10) + "." + parts[2], "token_malformed"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			header := http.Header{}
			if tc.authorization != "" {
				header["Authorization"] = []string{tc.authorization}
			}
			a := s.refused(t, http.StatusUnauthorized, "", ask{path: "/orders", header: header})
			if challenge := a.header.Get("WWW-Authenticate"); !strings.HasPrefix(challenge, `Bearer realm="`) {
				t.Errorf("challenge %q", challenge)
			}
			found := false
			for code := range strings.FieldsSeq(tc.codes) {
				found = found || strings.Contains(string(a.body), `"code":"`+code+`"`)
			}
			if !found {
				t.Errorf("code is not %s: %s", tc.codes, excerpt(a.body))
			}
			if strings.Contains(string(a.body), parts[2]) {
				t.Error("the answer repeats the token")
			}
			// Where no token is asked for, a bad one does no harm.
			if tc.name != "20 KiB" {
				s.want(t, http.StatusOK, ask{path: "/public/x", header: header})
			}
		})
	}
	t.Run("revoked", func(t *testing.T) {
		_, token := s.user(t, "admin")
		s.want(t, http.StatusOK, ask{path: "/orders", token: token})
		if err := s.api.RevokeToken(t.Context(), token, "end-to-end test"); err != nil {
			t.Fatal(err)
		}
		a := s.refused(t, http.StatusUnauthorized, "token_revoked", ask{path: "/orders", token: token})
		if a.header.Get("WWW-Authenticate") == "" {
			t.Error("no challenge")
		}
		// The same token in another dress is dead as well.
		for _, again := range []string{token + "=", token[:len(token)-1] + next(token[len(token)-1])} {
			s.refused(t, http.StatusUnauthorized, "", ask{path: "/orders", token: again})
		}
	})
}

// next is the base64url letter whose last bit alone is another one.
func next(letter byte) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return string(alphabet[strings.IndexByte(alphabet, letter)^1])
}
