package demo_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/tollgate-proxy/tollgate/internal/demo"
	"github.com/tollgate-proxy/tollgate/internal/logtest"
	"github.com/tollgate-proxy/tollgate/internal/polltest"
	"github.com/tollgate-proxy/tollgate/internal/redistest"
	"github.com/tollgate-proxy/tollgate/internal/stack"
	"github.com/tollgate-proxy/tollgate/internal/stack/stacktest"
	"github.com/tollgate-proxy/tollgate/internal/tour"
)

func TestMain(m *testing.M) {
	if code, played := stacktest.Play(os.Environ(), os.Args[1:], os.Stdout); played {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// screen is written by the demo and read by a test at the same time.
type screen struct{ logtest.Buffer }

// await waits until the demo says what matches, and returns the match's groups.
func (p *screen) await(t *testing.T, pattern string) []string {
	t.Helper()
	expression := regexp.MustCompile(pattern)
	var found []string
	defer func() {
		if found == nil {
			t.Log(p)
		}
	}()
	polltest.Until(t, "the demo says "+pattern, func() bool {
		found = expression.FindStringSubmatch(p.String())
		return found != nil
	})
	return found
}

func options(t *testing.T, out *screen) demo.Options {
	t.Helper()
	ports, err := stack.FreePorts()
	if err != nil {
		t.Fatal(err)
	}
	return demo.Options{Stack: stack.Options{Root: stacktest.Tree(t), Environ: os.Environ(), Ports: ports}, Out: out}
}

func TestDemoStaysUp(t *testing.T) {
	var out screen
	o := options(t, &out)
	o.Tour, o.Colour = demo.TourNone, true
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- demo.Run(ctx, o) }()

	out.await(t, `The system stays up until Ctrl-C`)
	out.await(t, `(?m)^  envoy +\d+ +http://127\.0\.0\.1:\d+ +\d+ admin +the gateway`)
	out.await(t, `(?m)^  authz +\d+ +http://127\.0\.0\.1:\d+ +\d+ grpc, \d+ operations +who may pass`)
	out.await(t, `(?m)^  redis +- +127\.0\.0\.1:\d+ +counters`)
	pid, err := strconv.Atoi(out.await(t, `(?m)^  ratelimit +(\d+) +http://127\.0\.0\.1:\d+ +\d+ grpc, \d+ operations `)[1])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(demo.KeyFile(o.Stack.Root)); err != nil {
		t.Error(err)
	}

	// The stand-ins show their environment.
	for e, want := range map[stack.Endpoint]string{stack.RatelimitOps: "TOLLGATE_STORE_TIMEOUT=1s\n", stack.Pyproxy1Ops: "TOLLGATE_BREAKER_RESET=2s\n"} {
		response, err := http.Get(o.Stack.Ports.URL(e))
		if err != nil {
			t.Fatal(err)
		}
		env, err := io.ReadAll(response.Body)
		if err := errors.Join(err, response.Body.Close()); err != nil || !strings.Contains(string(env), want) {
			t.Errorf("%s: %v, and its environment lacks %s", e, err, want)
		}
	}

	if config, err := os.ReadFile(filepath.Join(o.Stack.Root, "var", "demo", "config", "envoy.yaml")); err != nil || strings.Count(string(config), "timeout: 5s\n") < 2 {
		t.Errorf("Envoy does not wait for decisions: %v", err)
	}

	// A part that dies is told of, with its log, and the demo stays.
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	out.await(t, `ratelimit ended by itself \(signal: killed\); the end of .*ratelimit\.log:\n    arguments: -config `)

	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	out.await(t, `stopped envoy[\s\S]*stopped redis[\s\S]*Everything is stopped\.\n$`)
}

func TestDemoFailsWhereTheTourDoes(t *testing.T) {
	var out screen
	o := options(t, &out)
	o.Tour = demo.TourOnly
	err := demo.Run(t.Context(), o) // the stand-in of Envoy lets everything pass
	step := new(tour.StepError)
	if !errors.As(err, &step) || step.Name != "no token" {
		t.Errorf("error %v", err)
	}
	out.await(t, `Everything is stopped\.\n$`)
	if strings.Contains(out.String(), "\x1b") {
		t.Error("colours where none were asked for")
	}
}

func TestTourIsInterrupted(t *testing.T) {
	var out screen
	o := options(t, &out)
	ctx, cancel := context.WithCancelCause(t.Context())
	left := errors.New("the visitor left")
	o.Tour, o.Out = demo.TourThenStay, writerFunc(func(b []byte) (int, error) {
		if strings.Contains(string(b), "no token") {
			cancel(left)
		}
		return out.Write(b)
	})
	if err := demo.Run(ctx, o); !errors.Is(err, left) || !strings.HasPrefix(err.Error(), "the tour was interrupted: ") {
		t.Errorf("error %v", err)
	}
}

type writerFunc func(b []byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func TestDemoWithARedisOfYours(t *testing.T) {
	var out screen
	o := options(t, &out)
	o.Tour = demo.TourNone
	for url, want := range map[string]string{
		"redis://:hunter2@127.0.0.1:1/0": "no Redis answers at 127.0.0.1:1: ",
		"http://user:hunter2@127.0.0.1":  "the Redis URL is not one: ",
	} {
		o.Stack.RedisURL = url
		if err := demo.Run(t.Context(), o); err == nil || !strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("error %v, want %q", err, want)
		}
	}
	o.Stack.RedisURL = "redis://" + redistest.Embedded(t) + "/0"
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- demo.Run(ctx, o) }()
	out.await(t, `The system stays up until Ctrl-C`)
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if strings.Contains(out.String(), "counters, revocations") {
		t.Errorf("a Redis was started:\n%s", &out)
	}
}

func TestDemoCannotStart(t *testing.T) {
	var out screen
	o := options(t, &out)
	o.Stack.Bin = t.TempDir()
	if err := demo.Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), "authz is missing at ") {
		t.Errorf("error %v", err)
	}
	o.Stack.KeyFile = filepath.Join(o.Stack.Root, "config", "authz.yaml")
	if err := demo.Run(t.Context(), o); err == nil || !strings.HasPrefix(err.Error(), "development signing key: ") {
		t.Errorf("error %v", err)
	}
}
