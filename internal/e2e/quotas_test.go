package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/envoyconf"
)

// quotaRate is what the user of TestQuotas may have, a second.
const quotaRate = 40

// steady asks at a rate until it is stopped, whatever the answers.
type steady struct {
	passed, refused, failed atomic.Int64
	rate                    atomic.Int64
	stop                    func()
}

func startSteady(t *testing.T, url, token string, rate int64) *steady {
	t.Helper()
	s := &steady{}
	s.rate.Store(rate)
	ctx, cancel := context.WithCancel(context.Background())
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}, Timeout: askTimeout}
	var all sync.WaitGroup
	all.Go(func() {
		for ctx.Err() == nil {
			next := time.NewTimer(time.Second / time.Duration(s.rate.Load()))
			select {
			case <-ctx.Done():
			case <-next.C:
				all.Go(func() { s.count(askOnce(client, url, token)) })
			}
			next.Stop()
		}
	})
	s.stop = sync.OnceFunc(func() {
		cancel()
		all.Wait()
		client.CloseIdleConnections()
	})
	t.Cleanup(s.stop)
	return s
}

func askOnce(client *http.Client, url, token string) int {
	request, err := http.NewRequest(http.MethodGet, url, nil) //nolint:noctx // the client has a timeout
	if err != nil {
		return 0
	}
	request.Header.Set("Authorization", "Bearer "+token)
	response, err := client.Do(request)
	if err != nil {
		return 0
	}
	defer response.Body.Close()
	_, _ = io.Copy(io.Discard, response.Body)
	return response.StatusCode
}

func (s *steady) count(status int) {
	switch status {
	case http.StatusOK:
		s.passed.Add(1)
	case http.StatusTooManyRequests:
		s.refused.Add(1)
	default:
		s.failed.Add(1)
	}
}

// sample sums a metric's samples whose line has all the texts.
func sample(t *testing.T, operations, name string, texts ...string) float64 {
	t.Helper()
	response, err := http.Get("http://" + operations + "/metrics") //nolint:noctx // a page of ours
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	page, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
lines:
	for line := range strings.Lines(string(page)) {
		if !strings.HasPrefix(line, name) {
			continue
		}
		for _, text := range texts {
			if !strings.Contains(line, text) {
				continue lines
			}
		}
		fields := strings.Fields(line)
		v, err := strconv.ParseFloat(fields[len(fields)-1], 64)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		sum += v
	}
	return sum
}

// TestQuotas: two Envoys with unequal, steady load share one user's limit without
// a call for each request, and one that vanishes gives its share back.
func TestQuotas(t *testing.T) {
	e := newEdge(t)
	_, authz := e.spawn(t, "authz", "authz")
	rules := filepath.Join(e.work, "limits.yaml")
	config := filepath.Join(e.work, "ratelimit.yaml")
	for path, text := range map[string]string{
		rules:  fmt.Sprintf("domain: tollgate\ntiers: {entry: tier, subjects: [user, remote_address], default: premium, table: [{name: premium, limits: [{unit: second, requests_per_unit: %d}]}]}\n", quotaRate),
		config: "limits: {files: [limits.yaml]}\n",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	free := freeAddresses(t, 2)
	e.start(t, "ratelimit", filepath.Join(programs, "ratelimit"), []string{"-config", config}, []string{
		"TOLLGATE_GRPC_LISTEN=" + free[0], "TOLLGATE_OPERATIONS_LISTEN=" + free[1], "TOLLGATE_REDIS_URL=" + e.redis.url(), "TOLLGATE_SHUTDOWN_DRAIN_DELAY=0s",
		"TOLLGATE_STORE_TIMEOUT=" + storeWaits,
	})
	await(t, "ratelimit", func() error { return answers("http://" + free[1] + "/readyz") })
	options := func() envoyconf.Options {
		return envoyconf.Options{Quotas: true, AccessLog: filepath.Join(e.work, "access.log"), Clusters: map[string][]envoyconf.Endpoint{
			envoyconf.ClusterAuthz: {{Address: authz}}, envoyconf.ClusterRateLimit: {{Address: free[0]}},
		}}
	}
	first, one := e.envoy(t, "envoy-1", options())
	_, two := e.envoy(t, "envoy-2", options())
	s := &system{minter: e.minter}
	_, other := s.user(t, "premium")
	for _, base := range []string{one, two} {
		await(t, base, func() error {
			a, err := s.try(ask{base: base, path: "/orders", token: other})
			if err == nil && a.status != http.StatusOK {
				err = fmt.Errorf("%d %s", a.status, a.body)
			}
			return err
		})
	}

	_, token := s.user(t, "premium")
	// Together nearly twice what is allowed; the second wants less than half.
	much, little := startSteady(t, one+"/orders", token, 60), startSteady(t, two+"/orders", token, 15)
	// Each reports with its first request, and then every 5 s, of every bucket it has: this user's and the other's.
	reports := func() float64 { return sample(t, free[1], "tollgate_rlqs_actions_total") }
	await(t, "both Envoys to have reported three times", func() error {
		if n := reports(); n < 4+3*4 {
			return fmt.Errorf("%g reports of buckets", n)
		}
		return nil
	})
	calls := reports()
	begin := time.Now()
	before := [4]int64{much.passed.Load(), little.passed.Load(), much.refused.Load(), little.refused.Load()}
	await(t, "600 requests", func() error {
		if n := much.passed.Load() + little.passed.Load() - before[0] - before[1]; n < 600 {
			return fmt.Errorf("%d passed", n)
		}
		return nil
	})
	took := time.Since(begin).Seconds()
	a, b := float64(much.passed.Load()-before[0]), float64(little.passed.Load()-before[1])
	denied := float64(little.refused.Load() - before[3])
	asked := a + b + denied + float64(much.refused.Load()-before[2])
	t.Logf("%.0f and %.0f (with %.0f refused) of %.0f passed in %.1f s: %.1f a second of %d", a, b, denied, asked, took, (a+b)/took, quotaRate)
	if (a+b)/took > quotaRate*1.05 {
		t.Errorf("%.1f a second passed", (a+b)/took)
	}
	if (a+b)/took < 0.8*min(quotaRate, asked/took) { // a slow machine asks for less
		t.Errorf("only %.1f a second passed", (a+b)/took)
	}
	if denied > 0.1*(b+denied) {
		t.Errorf("the Envoy that wants less than its part was refused %.0f of %.0f", denied, b+denied)
	}
	if n := reports() - calls; n > 4*(took/5+2) {
		t.Errorf("%g reports in %.1f s of steady traffic", n, took)
	}
	if n := sample(t, free[1], "tollgate_ratelimit_decisions_total"); n != 0 {
		t.Errorf("%g requests were asked about", n)
	}
	if n := much.failed.Load() + little.failed.Load(); n != 0 {
		t.Errorf("%d requests got neither 200 nor 429", n)
	}

	// A refusal is a problem document.
	await(t, "a refusal", func() error {
		answer, err := s.try(ask{base: one, path: "/orders", token: token})
		if err != nil {
			return err
		}
		if answer.status != http.StatusTooManyRequests {
			return fmt.Errorf("status %d", answer.status)
		}
		if answer.header.Get("Retry-After") == "" {
			t.Error("a refusal without Retry-After")
		}
		return answer.problem(http.StatusTooManyRequests, "rate_limited")
	})

	// One Envoy vanishes; the other gets what is free when it reports.
	much.stop()
	if err := first.Kill(); err != nil {
		t.Fatal(err)
	}
	little.rate.Store(50)
	await(t, "the share of the one that vanished", func() error {
		began, was, refused := time.Now(), little.passed.Load(), little.refused.Load()
		tick := time.NewTimer(2 * time.Second)
		<-tick.C
		took := time.Since(began).Seconds()
		passed := float64(little.passed.Load()-was) / took
		if asked := passed + float64(little.refused.Load()-refused)/took; passed < 0.85*min(quotaRate, asked) {
			return fmt.Errorf("%.1f of %.1f a second pass", passed, asked)
		}
		return nil
	})
}
