package problem

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

func TestWrite(t *testing.T) {
	w := httptest.NewRecorder()
	w.Header().Set("Retry-After", "3")
	p := New(http.StatusTooManyRequests, "rate_limited", "wait \"a\r\n while\"").WithRequestID("r-1")
	Write(w, p)
	if w.Code != 429 || w.Header().Get("Content-Type") != ContentType || w.Header().Get("Retry-After") != "3" {
		t.Errorf("got %d %v", w.Code, w.Header())
	}
	var back Problem
	if err := json.Unmarshal(w.Body.Bytes(), &back); err != nil {
		t.Fatal(err)
	}
	if back.Title != "Too Many Requests" || back.Code != "rate_limited" || back.RequestID != "r-1" || back.Detail != p.Detail || back.Type != "about:blank" {
		t.Errorf("got %+v", back)
	}
	if p.Error() == "" {
		t.Error("a problem without an error text")
	}
}

func TestRetryAfter(t *testing.T) {
	for wait, want := range map[time.Duration]string{-time.Second: "1", 0: "1", time.Millisecond: "1", time.Second: "1", time.Second + 1: "2", time.Minute: "60"} {
		if got := RetryAfter(wait); got != want {
			t.Errorf("%s: got %s, want %s", wait, got, want)
		}
	}
}
