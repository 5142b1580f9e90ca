package tour

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/echo"
)

// guide sends the tour's requests and shows them.
type guide struct {
	target Target
	client *http.Client
	paper  *paper
}

// call is a request to the gateway.
type call struct {
	method, path string
	// token is sent as a bearer token; as says in words whose it is.
	token, as string
	// header is sent as it is, names included.
	header http.Header
	// body is sent as JSON where not nil.
	body any
}

// answer is what came back.
type answer struct {
	call   call
	status int
	header http.Header
	body   []byte
	took   time.Duration
}

// maxBody bounds what is read of an answer.
const maxBody = 1 << 20

// ask sends a request without showing it.
func (g *guide) ask(ctx context.Context, c call) (answer, error) {
	var body io.Reader
	if c.body != nil {
		data, err := json.Marshal(c.body)
		if err != nil {
			return answer{}, err
		}
		body = bytes.NewReader(data)
	}
	request, err := http.NewRequestWithContext(ctx, c.method, g.target.Envoy+c.path, body)
	if err != nil {
		return answer{}, err
	}
	maps.Copy(request.Header, c.header)
	if c.token != "" {
		request.Header.Set("Authorization", "Bearer "+c.token)
	}
	if c.body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	begin := time.Now()
	response, err := g.client.Do(request)
	if err != nil {
		return answer{}, err
	}
	data, err := io.ReadAll(io.LimitReader(response.Body, maxBody))
	if err := errors.Join(err, response.Body.Close()); err != nil {
		return answer{}, fmt.Errorf("%s %s: %w", c.method, c.path, err)
	}
	return answer{call: c, status: response.StatusCode, header: response.Header, body: data, took: time.Since(begin)}, nil
}

// show sends a request, shows it with its answer's headers of the given names,
// and checks the status.
func (g *guide) show(ctx context.Context, c call, status int, headers ...string) (answer, error) {
	a, err := g.ask(ctx, c)
	if err != nil {
		return a, err
	}
	g.paper.exchange(a, headers...)
	return a, a.expect(status)
}

func (a answer) expect(status int) error {
	if a.status != status {
		return fmt.Errorf("%s %s was answered %d %s instead of %d: %s", a.call.method, a.call.path,
			a.status, http.StatusText(a.status), status, excerpt(a.body))
	}
	return nil
}

// refused checks that the answer is a problem (RFC 9457) with one of the codes.
func (a answer) refused(codes ...string) error {
	if kind := a.header.Get("Content-Type"); !strings.HasPrefix(kind, "application/problem+json") {
		return fmt.Errorf("the refusal's content type is %q instead of application/problem+json", kind)
	}
	if code := a.code(); !slices.Contains(codes, code) {
		return fmt.Errorf("the refusal's code is %q instead of %s", code, strings.Join(codes, " or "))
	}
	return nil
}

// code is the problem's code, empty where the answer is none.
func (a answer) code() string {
	var problem struct {
		Code string `json:"code"`
	}
	if err := json.Unmarshal(a.body, &problem); err != nil {
		return ""
	}
	return problem.Code
}

// seen is what the echo backend says reached it.
func (a answer) seen() (echo.Seen, error) {
	var seen echo.Seen
	if err := json.Unmarshal(a.body, &seen); err != nil {
		return seen, fmt.Errorf("%s was not answered by the echo backend: %s", a.call.path, excerpt(a.body))
	}
	return seen, nil
}

// number reads a header that holds a whole number.
func (a answer) number(name string) (int, error) {
	n, err := strconv.Atoi(a.header.Get(name))
	if err != nil {
		return 0, fmt.Errorf("the header %s is %q instead of a number", strings.ToLower(name), a.header.Get(name))
	}
	return n, nil
}

// has checks that the answer has all headers.
func (a answer) has(names ...string) error {
	for _, name := range names {
		if a.header.Get(name) == "" {
			return fmt.Errorf("the answer has no %s", strings.ToLower(name))
		}
	}
	return nil
}

// visitor makes the name of a user that nobody has met.
func visitor(kind string) string {
	return "tour-" + kind + "-" + strings.ToLower(rand.Text()[:8])
}

// token mints a token for a new user of a tier.
func (g *guide) token(tier string) (user, token string, err error) {
	user = visitor(tier)
	token, err = g.target.Mint(user, tier)
	if err != nil {
		return "", "", fmt.Errorf("mint a token: %w", err)
	}
	return user, token, nil
}

// await calls done with a pause between until it says true, fails, or ctx ends.
func await(ctx context.Context, what string, pause time.Duration, done func() (bool, error)) error {
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for {
		ok, err := done()
		if err != nil || ok {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, context.Cause(ctx))
		case <-tick.C:
		}
	}
}

func excerpt(body []byte) string {
	const limit = 200
	text := strings.Join(strings.Fields(string(body)), " ")
	if len(text) > limit {
		text = text[:limit] + " …"
	}
	return strconv.Quote(text)
}
