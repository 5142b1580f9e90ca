package e2e

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/tollgate-proxy/tollgate/internal/stack"
)

const languages = "/api/v1/nlp/languages"

// fresh asks the service itself: an answer that pyproxy keeps would say nothing of it.
func fresh() http.Header { return http.Header{"Cache-Control": {"no-store"}} }

// fault tells a Python service to misbehave; "" ends it.
func (s *system) fault(t *testing.T, service, fault string) {
	t.Helper()
	a := ask{base: s.URL(stack.Endpoint(service)), path: "/fault", method: http.MethodDelete}
	if fault != "" {
		a.method, a.body = http.MethodPost, fault
	}
	s.want(t, http.StatusOK, a)
}

// testPythonFaults: each way in which a service can fail, as the client sees it.
func testPythonFaults(t *testing.T, s *system) {
	_, token := s.user(t, "admin")
	call := ask{path: languages, token: token, header: fresh()}
	recovers := func(t *testing.T) {
		t.Helper()
		s.fault(t, "nlp", "")
		await(t, "the service to be served again", func() error { return wrong(s.do(t, call).status, http.StatusOK) })
	}
	t.Run("hangs", func(t *testing.T) {
		timeouts := func() float64 {
			return s.pyproxyMetric(t, "tollgate_pyproxy_attempts_total", `route="nlp.languages"`, `outcome="timeout"`)
		}
		before := timeouts()
		s.fault(t, "nlp", `{"hang":true}`)
		s.refused(t, http.StatusGatewayTimeout, "upstream_timeout", call)
		if timeouts() == before {
			t.Error("no attempt was counted as timed out")
		}
		recovers(t)
	})
	t.Run("answers garbage", func(t *testing.T) {
		s.fault(t, "nlp", `{"garbage":true}`)
		a := s.want(t, http.StatusOK, call) // bytes are the service's business, but they arrive as they are
		if !strings.HasPrefix(string(a.body), "\x00\xff{\"price\"") {
			t.Errorf("body %q", excerpt(a.body))
		}
		recovers(t)
	})
	t.Run("closes mid-body", func(t *testing.T) {
		broken := func() float64 {
			return s.pyproxyMetric(t, "tollgate_pyproxy_attempts_total", `route="nlp.languages"`, `outcome="body"`)
		}
		before := broken()
		for _, http2 := range []bool{false, true} {
			s.fault(t, "nlp", `{"close_mid_body":true}`)
			call := call
			call.http2 = http2
			a, err := s.try(call)
			if err == nil && a.status == http.StatusOK {
				t.Errorf("a truncated answer looks whole (HTTP/2: %t): %s", http2, excerpt(a.body))
			}
		}
		if broken() == before {
			t.Error("no attempt was counted as broken within its body")
		}
		recovers(t)
	})
	t.Run("errors", func(t *testing.T) {
		s.fault(t, "nlp", `{"error_rate":1,"status":500,"requests":1}`)
		a := s.do(t, call) // 500 is not worth a retry: the service's own words arrive
		if err := a.problem(http.StatusInternalServerError, "injected_fault"); err != nil {
			t.Errorf("%v: %s", err, excerpt(a.body))
		}
		s.fault(t, "nlp", `{"error_rate":1,"status":503,"requests":1}`)
		s.want(t, http.StatusOK, call) // 503 is, and a GET may be repeated
		recovers(t)
	})
	t.Run("is not needed for what is kept", func(t *testing.T) {
		kept := ask{path: languages, token: token}
		for _, e := range []stack.Endpoint{stack.Pyproxy1HTTP, stack.Pyproxy2HTTP} { // whichever Envoy asks
			await(t, "the answer to be kept", func() error {
				if status := s.want(t, http.StatusOK, ask{base: s.URL(e), path: languages}).header.Get("Cache-Status"); !strings.Contains(status, "; hit") {
					return errors.New(status)
				}
				return nil
			})
		}
		s.fault(t, "nlp", `{"error_rate":1,"status":500}`)
		s.want(t, http.StatusInternalServerError, call)
		tag := s.want(t, http.StatusOK, kept).header.Get("Etag")
		kept.header = http.Header{"If-None-Match": {tag}}
		if a := s.want(t, http.StatusNotModified, kept); tag == "" || len(a.body) > 0 {
			t.Errorf("tag %q, body %q", tag, excerpt(a.body))
		}
		recovers(t)
	})
	t.Run("circuit", func(t *testing.T) { testCircuit(t, s, token) })
	t.Run("protocol", func(t *testing.T) { testRogue(t, s, token) })
}

// testCircuit: a service that keeps failing is left alone, its clients are told
// so at once, and it is served again without anybody's doing.
func testCircuit(t *testing.T, s *system, token string) {
	call := ask{path: "/api/v1/data/aggregate", token: token, body: `{"interval_ms":60000,"trades":[{"symbol":"A","timestamp_ms":0,"price":1.0,"quantity":1.0}]}`}
	s.want(t, http.StatusOK, call)
	s.fault(t, "data", `{"error_rate":1,"status":500}`)
	transitions := func(e stack.Endpoint, to string) float64 {
		return s.metric(t, e, "tollgate_pyproxy_breaker_transitions_total", `upstream="data"`, `to="`+to+`"`)
	}
	each := []stack.Endpoint{stack.Pyproxy1Ops, stack.Pyproxy2Ops} // has a circuit of its own
	before := map[stack.Endpoint][2]float64{}
	for _, e := range each {
		before[e] = [2]float64{transitions(e, "open"), transitions(e, "closed")}
	}
	refused := func() error {
		a := s.do(t, call)
		err := a.problem(http.StatusServiceUnavailable, "circuit_open")
		if wait, atoi := strconv.Atoi(a.header.Get("Retry-After")); err == nil && (atoi != nil || wait < 1) {
			t.Errorf("retry-after %q", a.header.Get("Retry-After"))
		}
		if err != nil && a.problem(http.StatusInternalServerError, "injected_fault") != nil {
			t.Fatalf("%v: %s", err, excerpt(a.body))
		}
		return err
	}
	await(t, "both circuits to open", func() error {
		for range 20 {
			_ = refused() // or failed: until then
		}
		for _, e := range each {
			if transitions(e, "open") == before[e][0] {
				return fmt.Errorf("%s has not", e)
			}
		}
		return nil
	})
	await(t, "a client to be told", refused)
	// Other services are served meanwhile.
	s.want(t, http.StatusOK, ask{path: languages, token: token})
	s.fault(t, "data", "")
	await(t, "the circuits to close", func() error {
		for range 10 {
			if a := s.do(t, call); a.status != http.StatusOK {
				return wrong(a.status, http.StatusOK)
			}
		}
		if n := s.pyproxyMetric(t, "tollgate_pyproxy_breaker_state", `upstream="data"`); n != 0 {
			return fmt.Errorf("the states add up to %v", n)
		}
		return nil
	})
	for _, e := range each {
		if transitions(e, "closed") == before[e][1] {
			t.Errorf("%s: the circuit was never closed", e)
		}
	}
}

// testRogue: what a service says that is no HTTP never looks like an answer.
func testRogue(t *testing.T, s *system, token string) {
	for way, want := range map[string]int{
		"hang": 504, "stall": 0, "reset": 502, "garbage": 502, "silent": 502, "cut": 0, "cut-chunked": 0, "bad-chunk": 0, "two-lengths": 502, "huge-header": 502,
	} {
		t.Run(way, func(t *testing.T) {
			for _, http2 := range []bool{false, true} {
				a, err := s.try(ask{path: "/api/v1/data/e2e/" + way, token: token, body: "{}", http2: http2})
				if want == 0 { // the headers had gone out already
					if err == nil && a.status == http.StatusOK {
						t.Errorf("half an answer looks whole (HTTP/2: %t): %s", http2, excerpt(a.body))
					}
					if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !strings.Contains(err.Error(), "stream error") && !strings.Contains(err.Error(), "EOF") {
						t.Errorf("%v", err)
					}
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				if err := a.problem(want, ""); err != nil {
					t.Errorf("%v: %s", err, excerpt(a.body))
				}
			}
		})
	}
}
