package health

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc/health/grpc_health_v1"
)

func grpcStatus(t *testing.T, r *Registry) grpc_health_v1.HealthCheckResponse_ServingStatus {
	t.Helper()
	a, err := r.GRPC().Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return a.GetStatus()
}

func ready(t *testing.T, r *Registry) (int, state) {
	t.Helper()
	w := httptest.NewRecorder()
	r.ServeReady(w, httptest.NewRequest("GET", "/readyz", nil))
	var s state
	if err := json.Unmarshal(w.Body.Bytes(), &s); err != nil {
		t.Fatal(err)
	}
	return w.Code, s
}

func TestReadinessFollowsCriticalComponents(t *testing.T) {
	var log bytes.Buffer
	metrics := prometheus.NewRegistry()
	r := New(slog.New(slog.NewTextHandler(&log, nil)), metrics)
	feed := r.Component("feed", true)
	redis := r.Component("redis", false)

	steps := []struct {
		name string
		do   func()
		want bool
	}{
		{"registered", func() {}, false},
		{"feed well before start", func() { feed.Set(true, "") }, false},
		{"started", r.Start, true},
		{"redis is not critical", func() { redis.Set(false, "connection refused") }, true},
		{"feed lost", func() { feed.Set(false, "gap") }, false},
		{"feed back", func() { feed.Set(true, "ignored") }, true},
		{"draining", r.Drain, false},
		{"draining is for good", func() { feed.Set(false, "x"); feed.Set(true, "") }, false},
	}
	for _, s := range steps {
		s.do()
		code, body := ready(t, r)
		serving := grpcStatus(t, r) == grpc_health_v1.HealthCheckResponse_SERVING
		if r.Ready() != s.want || (code == 200) != s.want || body.Ready != s.want || serving != s.want {
			t.Fatalf("%s: ready %v, /readyz %d %+v, grpc %v; want %v", s.name, r.Ready(), code, body, serving, s.want)
		}
	}
	if got := testutil.ToFloat64(r.metric.WithLabelValues("feed")); got != 1 {
		t.Errorf("metric %v", got)
	}
	if n := strings.Count(log.String(), "component changed"); n != 5 {
		t.Errorf("%d lines logged, want one a change:\n%s", n, log.String())
	}
	if !strings.Contains(log.String(), "reason=gap") {
		t.Errorf("the reason is not logged: %s", log.String())
	}
}

func TestLive(t *testing.T) {
	r := New(slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	w := httptest.NewRecorder()
	r.Live(w, httptest.NewRequest("GET", "/livez", nil))
	if w.Code != 200 {
		t.Errorf("got %d", w.Code)
	}
}
