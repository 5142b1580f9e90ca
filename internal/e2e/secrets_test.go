package e2e

import (
	"bytes"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/tollgate-proxy/tollgate/internal/stack"
)

// jwt is what every token looks like.
var jwt = regexp.MustCompile(`eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}`)

// testSecrets: after everything that the other tests did, no log holds a token, a
// credential of the management API or a password.
func testSecrets(t *testing.T, s *system) {
	// The places where secrets slip through most easily.
	_, token := s.user(t, "admin")
	s.want(t, http.StatusUnauthorized, ask{path: "/orders?access_token=" + url.QueryEscape(token)})
	s.want(t, http.StatusUnauthorized, ask{path: "/orders", header: http.Header{"Authorization": {"Basic " + token}}})
	s.want(t, http.StatusOK, ask{path: "/orders", token: token, header: http.Header{"Cookie": {"session=" + token}, "Referer": {"https://x/?t=" + token}}})
	s.want(t, http.StatusUnauthorized, ask{base: s.URL(stack.AuthzHTTP), path: "/v1/tokens/revoke", token: token, body: `{"token":"` + token + `"}`})
	s.do(t, ask{base: s.URL(stack.AuthzHTTP), path: "/v1/tokens/revoke", token: s.Operator().Token, body: `{"token":"` + token + `x","reason":"r"}`})
	s.do(t, ask{base: s.URL(stack.AuthzHTTP), path: "/v1/tokens/revoke", token: s.Operator().Token, body: `{"tokn":"` + token + `"}`})
	s.do(t, ask{base: s.URL(stack.AuthzHTTP), path: "/v1/flags?token=" + token, token: s.Operator().Token})
	s.do(t, ask{path: "/api/v1/nlp/detect", token: token, body: `{"text":"` + token + `","extra":"` + token + `"}`})
	// A Redis that refuses the password, and one that is not there.
	wrongPassword := "wrong-redis-password"
	s.hide(wrongPassword)
	for name, address := range map[string]string{"refused": s.redis.address, "absent": freeAddresses(t, 1)[0]} {
		free := freeAddresses(t, 2)
		r := replica{grpc: free[0], operations: free[1]}
		s.spawn(t, "ratelimit-"+name, programs+"/ratelimit", []string{"-config", s.config(stack.Ratelimit)},
			append(s.environFor("TOLLGATE_LOG_LEVEL=debug", "TOLLGATE_REDIS_URL=redis://operator:"+wrongPassword+"@"+address+"/0"), r.env()...))
		await(t, "ratelimit to notice", func() error { return s.status("http://"+r.operations+"/livez", http.StatusOK) })
		await(t, "ratelimit to speak of Redis", func() error {
			if log := s.log(t, "ratelimit-"+name); !strings.Contains(log, "redis") {
				return os.ErrNotExist
			}
			return nil
		})
	}

	s.mu.Lock()
	secrets := append([]string(nil), s.secrets...)
	s.mu.Unlock()
	logs := 0
	err := filepath.WalkDir(s.work, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || filepath.Ext(path) != ".log" {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		logs++
		for _, secret := range secrets {
			if i := bytes.Index(data, []byte(secret)); i >= 0 {
				t.Errorf("%s holds a secret: %s", filepath.Base(path), before(data, i))
			}
		}
		if found := jwt.Find(data); found != nil {
			t.Errorf("%s holds what looks like a token: %s", filepath.Base(path), found)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if logs < 12 || len(secrets) < 20 {
		t.Errorf("looked for %d secrets in %d logs", len(secrets), logs)
	}
	s.collector.mu.Lock()
	defer s.collector.mu.Unlock()
	for _, spans := range s.collector.spans {
		for _, span := range spans {
			for key, value := range span.attributes {
				if jwt.MatchString(value) || strings.Contains(value, s.redis.password) || strings.Contains(value, s.Operator().Token) {
					t.Errorf("span %s of %s: %s holds a secret", span.name, span.service, key)
				}
			}
		}
	}
}

// before is what stands before a finding.
func before(data []byte, at int) string {
	return string(data[max(0, at-120):at]) + "…"
}
