package demo_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/tollgate-proxy/tollgate/internal/demo"
)

// browse sends a request to the demo's page and returns what a browser would see,
// after redirects.
func browse(t *testing.T, method, url string, change func(*http.Request)) (status int, body string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(r)
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	if policy := response.Header.Get("Content-Security-Policy"); response.StatusCode == http.StatusOK && !strings.Contains(policy, "default-src 'none'") {
		t.Errorf("%s has the policy %q", url, policy)
	}
	return response.StatusCode, string(data)
}

func TestPage(t *testing.T) {
	var out screen
	o := options(t, &out)
	o.Tour, o.Page = demo.TourThenStay, "127.0.0.1:0"
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- demo.Run(ctx, o) }()
	url := out.await(t, `In a browser: (http://127\.0\.0\.1:\d+) shows`)[1]

	status, body := browse(t, http.MethodGet, url+"/", nil)
	for _, want := range []string{
		"12 of 12 parts run.", `<a href="/logs/authz">authz</a>`, `action="/parts/nlp/kill"`, "bin/tollgate token mint",
		"no token", "answered 200 OK instead of 401", // the stand-in of Envoy lets everything pass
	} {
		if !strings.Contains(body, want) {
			t.Errorf("the page (%d) does not say %q:\n%s", status, want, body)
		}
	}

	// Parts are killed and started, logs are read.
	status, body = browse(t, http.MethodPost, url+"/parts/nlp/kill", nil)
	if status != http.StatusOK || !strings.Contains(body, "11 of 12 parts run.") || !strings.Contains(body, `action="/parts/nlp/start"`) {
		t.Errorf("after the kill (%d):\n%s", status, body)
	}
	if status, body = browse(t, http.MethodPost, url+"/parts/nlp/start", nil); !strings.Contains(body, "12 of 12 parts run.") {
		t.Errorf("after the start (%d):\n%s", status, body)
	}
	if status, body = browse(t, http.MethodGet, url+"/logs/nlp", nil); status != http.StatusOK || !strings.HasPrefix(body, "arguments: -m tollgate_examples nlp ") {
		t.Errorf("log (%d): %s", status, body)
	}

	// Who is refused.
	for _, tc := range []struct {
		name, method, path string
		change             func(*http.Request)
		status             int
	}{
		{"start of what runs", http.MethodPost, "/parts/nlp/start", nil, http.StatusConflict},
		{"unknown part", http.MethodPost, "/parts/grafana/kill", nil, http.StatusNotFound},
		{"unknown log", http.MethodGet, "/logs/grafana", nil, http.StatusNotFound},
		{"unknown page", http.MethodGet, "/admin", nil, http.StatusNotFound},
		{"kill by a link", http.MethodGet, "/parts/nlp/kill", nil, http.StatusMethodNotAllowed},
		{"another site's form", http.MethodPost, "/parts/nlp/kill", func(r *http.Request) { r.Header.Set("Origin", "http://evil.example") }, http.StatusForbidden},
		{"another site's name", http.MethodGet, "/", func(r *http.Request) { r.Host = "evil.example:80" }, http.StatusMisdirectedRequest},
	} {
		if status, body := browse(t, tc.method, url+tc.path, tc.change); status != tc.status {
			t.Errorf("%s: status %d, want %d: %s", tc.name, status, tc.status, body)
		}
	}
	if _, body = browse(t, http.MethodGet, url+"/", nil); !strings.Contains(body, "12 of 12 parts run.") {
		t.Errorf("a part was killed:\n%s", body)
	}

	stop()
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "tour step 1 (no token) failed") {
		t.Errorf("error %v", err)
	}
}

func TestPageNeedsItsPort(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	var out screen
	o := options(t, &out)
	o.Page = l.Addr().String()
	if err := demo.Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), "(the demo's page) is already in use by ") {
		t.Errorf("error %v", err)
	}
}
