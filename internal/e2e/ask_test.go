package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/echo"
	"github.com/tollgate-proxy/tollgate/internal/stack"
)

// ask is a request to the gateway; the zero method is GET.
type ask struct {
	method, path, token string
	// header is sent as it is, names included.
	header, trailer http.Header
	body            string
	// from is the client's address, some address of the loopback where empty.
	from string
	// http2 speaks HTTP/2 without TLS.
	http2 bool
	// base is another server than the gateway.
	base string
}

// answer is what came back. A body that did not arrive whole is an error of try.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// askTimeout bounds one request; nothing here takes as long.
const askTimeout = 30 * time.Second

// try sends the request.
func (s *system) try(a ask) (answer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	base := a.base
	if base == "" {
		base = s.URL(stack.EnvoyListener)
	}
	method := a.method
	if method == "" {
		method = http.MethodGet
		if a.body != "" {
			method = http.MethodPost
		}
	}
	var body io.Reader
	if a.body != "" {
		body = strings.NewReader(a.body)
	}
	if a.trailer != nil {
		body = io.MultiReader(body) // of unknown length, or no trailers are sent
	}
	request, err := http.NewRequestWithContext(ctx, method, base+a.path, body)
	if err != nil {
		return answer{}, err
	}
	if a.body != "" {
		request.Header.Set("Content-Type", "application/json")
	}
	if a.token != "" {
		request.Header.Set("Authorization", "Bearer "+a.token)
	}
	maps.Copy(request.Header, a.header)
	request.Trailer = a.trailer
	client := newClient(a.from, a.http2)
	defer client.CloseIdleConnections()
	response, err := client.Do(request)
	if err != nil {
		return answer{}, err
	}
	got := answer{status: response.StatusCode, header: response.Header}
	got.body, err = io.ReadAll(io.LimitReader(response.Body, 64<<20))
	return got, errors.Join(err, response.Body.Close())
}

// newClient makes a client with connections of its own.
func newClient(from string, http2 bool) *http.Client {
	if from == "" {
		from = newAddress()
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(!http2)
	protocols.SetUnencryptedHTTP2(http2)
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	return &http.Client{
		Transport:     &http.Transport{DialContext: dialer.DialContext, Protocols: protocols, DisableCompression: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// newAddress is an address of the loopback that hardly anybody has used.
func newAddress() string {
	return fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(254), rand.IntN(256), 1+rand.IntN(254))
}

// do sends the request and fails the test where no answer comes.
func (s *system) do(t *testing.T, a ask) answer {
	t.Helper()
	got, err := s.try(a)
	if err != nil {
		t.Fatalf("%s %s: %v", a.method, a.path, err)
	}
	return got
}

// want sends the request and checks the status.
func (s *system) want(t *testing.T, status int, a ask) answer {
	t.Helper()
	got := s.do(t, a)
	if got.status != status {
		t.Fatalf("%s %s: %d instead of %d: %s", a.method, a.path, got.status, status, excerpt(got.body))
	}
	return got
}

// refused sends the request and checks that the answer is a problem.
func (s *system) refused(t *testing.T, status int, code string, a ask) answer {
	t.Helper()
	got := s.want(t, status, a)
	if err := got.problem(status, code); err != nil {
		t.Errorf("%s %s: %v: %s", a.method, a.path, err, excerpt(got.body))
	}
	return got
}

// details of a problem document (RFC 9457).
type details struct {
	Type, Title, Detail, Code string
	Status                    json.RawMessage
	RequestID                 *string `json:"request_id"`
}

// problem checks that the answer is a problem document with that status and, where
// not empty, code. Its request id is the answer's.
func (a answer) problem(status int, code string) error {
	if a.status != status {
		return fmt.Errorf("status %d instead of %d", a.status, status)
	}
	if kind := a.header.Get("Content-Type"); kind != "application/problem+json" {
		return fmt.Errorf("content type %q", kind)
	}
	var d details
	if err := json.Unmarshal(a.body, &d); err != nil {
		return fmt.Errorf("body: %w", err)
	}
	switch {
	case string(d.Status) != fmt.Sprint(status):
		return fmt.Errorf("status member %s", d.Status)
	case d.Type == "" || d.Title == "":
		return errors.New("no type or title")
	case code != "" && d.Code != code:
		return fmt.Errorf("code %q instead of %q", d.Code, code)
	case d.Code == "":
		return errors.New("no code")
	}
	id := a.header.Get("X-Request-Id")
	if id != "" && (d.RequestID == nil || *d.RequestID != id) {
		return fmt.Errorf("request id of the body is not the answer's %q", id)
	}
	return nil
}

// seen is what the echo backend says reached it.
func (a answer) seen(t *testing.T) echo.Seen {
	t.Helper()
	var seen echo.Seen
	if err := json.Unmarshal(a.body, &seen); err != nil || seen.Method == "" {
		t.Fatalf("not answered by the backend: %d %s", a.status, excerpt(a.body))
	}
	return seen
}

// raw sends bytes to the gateway and returns the answer to them.
func (s *system) raw(t *testing.T, request string) answer {
	t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(newAddress())}, Timeout: askTimeout}
	conn, err := dialer.DialContext(t.Context(), "tcp", s.Ports().Address(stack.EnvoyListener))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }() // the answer is all that matters
	if err := conn.SetDeadline(time.Now().Add(askTimeout)); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.WriteString(conn, request) }() // a server may answer before it has read everything
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("answer to %s: %v", excerpt([]byte(request)), err)
	}
	body, err := io.ReadAll(response.Body)
	if err := errors.Join(err, response.Body.Close()); err != nil {
		t.Fatal(err)
	}
	return answer{response.StatusCode, response.Header, body}
}

func excerpt(body []byte) string {
	const limit = 300
	text := strings.Join(strings.Fields(string(body)), " ")
	if len(text) > limit {
		text = text[:limit] + " …"
	}
	return text
}
