package e2e

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/tollgate-proxy/tollgate/internal/stack"
)

// metric adds up the series of a metric at url whose labels hold all of those
// given ("code=\"ok\""). No series is 0.
func metric(t *testing.T, url, name string, labels ...string) float64 {
	t.Helper()
	response, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%s: %d, %v", url, response.StatusCode, err)
	}
	var sum float64
	for line := range strings.Lines(string(body)) {
		series, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if i := strings.LastIndex(line, "} "); i >= 0 { // label values may hold spaces
			series, value, ok = line[:i+1], strings.TrimSpace(line[i+2:]), true
		}
		base, _, _ := strings.Cut(series, "{")
		if !ok || base != name || !holdsAll(series, labels) {
			continue
		}
		n, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		sum += n
	}
	return sum
}

func holdsAll(text string, parts []string) bool {
	for _, part := range parts {
		if !strings.Contains(text, part) {
			return false
		}
	}
	return true
}

// metric reads a metric of one of our processes.
func (s *system) metric(t *testing.T, operations stack.Endpoint, name string, labels ...string) float64 {
	t.Helper()
	return metric(t, s.URL(operations)+"/metrics", name, labels...)
}

// envoy reads one of Envoy's own metrics.
func (s *system) envoyMetric(t *testing.T, name string, labels ...string) float64 {
	t.Helper()
	return metric(t, s.URL(stack.EnvoyAdmin)+"/stats/prometheus", name, labels...)
}

// pyproxyMetric adds up a metric of both pyproxy.
func (s *system) pyproxyMetric(t *testing.T, name string, labels ...string) float64 {
	t.Helper()
	return s.metric(t, stack.Pyproxy1Ops, name, labels...) + s.metric(t, stack.Pyproxy2Ops, name, labels...)
}

// testMetrics: each decision is counted once, where the contract says, and no
// label holds what clients choose.
func testMetrics(t *testing.T, s *system) {
	allowed := func() float64 {
		return s.metric(t, stack.AuthzOperations, "tollgate_authz_decisions_total", `code="ok"`, `endpoint="fraud"`)
	}
	before := allowed()
	user, token := s.user(t, "admin")
	s.want(t, http.StatusMethodNotAllowed, ask{path: "/api/v1/fraud/assess", token: token})
	if got := allowed() - before; got != 1 {
		t.Errorf("one allowed request was counted %v times", got)
	}
	missing := func() float64 {
		return s.metric(t, stack.AuthzOperations, "tollgate_authz_decisions_total", `code="token_missing"`)
	}
	before = missing()
	s.want(t, http.StatusUnauthorized, ask{path: "/orders"})
	if got := missing() - before; got != 1 {
		t.Errorf("one refused request was counted %v times", got)
	}
	for _, e := range []stack.Endpoint{stack.AuthzOperations, stack.RatelimitOps, stack.Pyproxy1Ops, stack.Pyproxy2Ops} {
		a := s.want(t, http.StatusOK, ask{base: s.URL(e), path: "/metrics"})
		text := string(a.body)
		for _, bad := range []string{user, token} {
			if strings.Contains(text, bad) {
				t.Errorf("%s: a label holds %q", e, bad)
			}
		}
		if n := strings.Count(text, "\ntollgate_"); n < 10 || n > 3000 {
			t.Errorf("%s: %d series", e, n)
		}
		for line := range strings.Lines(text) {
			if !strings.HasPrefix(line, "tollgate_") {
				continue
			}
			if err := plausibleLabels(line); err != nil {
				t.Errorf("%s: %v", e, err)
			}
		}
		s.want(t, http.StatusOK, ask{base: s.URL(e), path: "/livez"})
		s.want(t, http.StatusOK, ask{base: s.URL(e), path: "/readyz"})
	}
}

// plausibleLabels refuses label names that could hold anything.
func plausibleLabels(line string) error {
	for _, name := range []string{"user", "token", "uri", "address", "remote_address", "session", "ip"} {
		if strings.Contains(line, "{"+name+`="`) || strings.Contains(line, ","+name+`="`) {
			return fmt.Errorf("a label that is unbounded: %s", strings.TrimSpace(line))
		}
	}
	return nil
}

var metricName = regexp.MustCompile("`((?:tollgate|envoy)_[a-z_]+)[`{]")

// testRunbook: the metrics that the runbook sends people to are there.
func testRunbook(t *testing.T, s *system) {
	text, err := os.ReadFile(filepath.Join(root, "docs", "guide", "troubleshooting.md"))
	if err != nil {
		t.Fatal(err)
	}
	// Envoy has its counter of requests that passed unlimited from the first one on.
	_, token := s.user(t, "free")
	s.kill(t, stack.Ratelimit)
	s.want(t, http.StatusOK, ask{path: "/orders", token: token})
	s.start(t, stack.Ratelimit)
	s.repair(t)
	var exported strings.Builder
	for _, url := range []string{
		s.URL(stack.AuthzOperations) + "/metrics", s.URL(stack.RatelimitOps) + "/metrics",
		s.URL(stack.Pyproxy1Ops) + "/metrics", s.URL(stack.EnvoyAdmin) + "/stats/prometheus",
	} {
		exported.WriteString("\n")
		exported.Write(s.want(t, http.StatusOK, ask{base: url}).body)
	}
	names := map[string]bool{}
	for _, found := range metricName.FindAllStringSubmatch(string(text), -1) {
		names[found[1]] = true
	}
	if len(names) < 10 {
		t.Fatalf("the runbook names %d metrics", len(names))
	}
	for name := range names {
		switch {
		case name == "tollgate_authn_jwks_age_seconds": // only where a key set has a URL
		case !strings.Contains(exported.String(), "# TYPE "+name+" "):
			t.Errorf("no process exports %s", name)
		}
	}
}
