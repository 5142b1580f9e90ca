package echo_test

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"github.com/tollgate-proxy/tollgate/internal/echo"
)

func TestHandlerShowsTheRequest(t *testing.T) {
	server := httptest.NewServer(echo.Handler())
	t.Cleanup(server.Close)
	// Without a ContentLength the body is chunked, so that trailers may follow.
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPut, server.URL+"/a/b?c=d", io.MultiReader(strings.NewReader("12345")))
	if err != nil {
		t.Fatal(err)
	}
	r.Host = "shop.example"
	r.Header["X-User-Id"] = []string{"ada", "eve"}
	r.Header["X_User_Id"] = []string{"mallory"}
	r.Trailer = http.Header{"X-Late": {"yes"}}
	response, err := server.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	var seen echo.Seen
	if err := json.NewDecoder(response.Body).Decode(&seen); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"Accept-Encoding", "User-Agent"} { // the client's own
		delete(seen.Headers, name)
	}
	want := echo.Seen{
		Method: "PUT", URI: "/a/b?c=d", Host: "shop.example", Proto: "HTTP/1.1", BodyBytes: 5,
		Headers:  http.Header{"X-User-Id": {"ada", "eve"}, "X_user_id": {"mallory"}},
		Trailers: http.Header{"X-Late": {"yes"}},
	}
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Errorf("seen (-want +got):\n%s", diff)
	}
	if got := response.Header.Get("Content-Type"); got != "application/json" {
		t.Errorf("content type %q", got)
	}
}

func TestHandlerStatus(t *testing.T) {
	for _, tc := range []struct {
		name, query string
		body        io.Reader
		want        int
	}{
		{"default", "", nil, 200},
		{"chosen", "?echo-status=503", nil, 503},
		{"no number", "?echo-status=teapot", nil, 400},
		{"informational", "?echo-status=101", nil, 400},
		{"beyond", "?echo-status=600", nil, 400},
		{"largest body", "", strings.NewReader(strings.Repeat("x", echo.MaxBody)), 200},
		{"body too large", "", strings.NewReader(strings.Repeat("x", echo.MaxBody+1)), 413},
		{"body breaks off", "", iotest.ErrReader(errors.New("gone")), 400},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := httptest.NewRecorder()
			echo.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/"+tc.query, tc.body))
			if w.Code != tc.want {
				t.Errorf("status %d, want %d: %s", w.Code, tc.want, w.Body)
			}
		})
	}
}
