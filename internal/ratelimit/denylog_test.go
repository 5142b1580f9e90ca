package ratelimit

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// TestDenialsAreLoggedInPart floods: so many lines a second, each with what was
// left out, and no user in clear.
func TestDenialsAreLoggedInPart(t *testing.T) {
	var log bytes.Buffer
	l := newLab(t, mustLoad(t, shipped), func(o *Options) {
		o.LogDenials, o.Denials, o.Log = 2, 100, slog.New(slog.NewTextHandler(&log, nil))
	})
	lines := func() []string {
		defer log.Reset()
		return strings.Split(strings.TrimSuffix(log.String(), "\n"), "\n")
	}
	for range 15 {
		l.decide(request(of("free", "ada", "x")))
	}
	got := lines()
	if len(got) != 2 || !strings.Contains(got[0], `msg="request denied by a limit" domain=tollgate path=deny_cache unlogged=0 rule=tier.free limit=minute reset=6s subject_hash=`) || strings.Contains(got[1], "path=exact") {
		t.Errorf("%q", got)
	}
	l.clock.Advance(time.Second)
	l.decide(request(of("free", "ada", "x")))
	later := lines()
	if len(later) != 1 || !strings.Contains(later[0], "unlogged=3 ") {
		t.Errorf("%q", later)
	}
	hash := func(line string) string { _, h, _ := strings.Cut(line, "subject_hash="); return h }
	if hash(got[0]) != hash(later[0]) || len(hash(got[0])) != 16 || strings.Contains(got[0]+later[0], "ada") {
		t.Errorf("%q, %q", got[0], later[0])
	}

	l = newLab(t, mustLoad(t, shipped), func(o *Options) {
		o.LogDenials, o.LogSubjects, o.Log = 1, true, slog.New(slog.NewTextHandler(&log, nil))
	})
	l.decide(request(of("free", "eve\nmsg=x", "x").with(11)))
	if got := lines(); len(got) != 1 || !strings.Contains(got[0], `subject="tollgate:bucket:{tollgate~user=eve%0Amsg%3Dx}"`) {
		t.Errorf("%q", got)
	}
}
