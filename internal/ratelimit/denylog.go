package ratelimit

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"sync/atomic"
	"time"
)

// denyLog logs some of the denials: so many each second, and how many it left
// out. Nothing that a request says stands in it in clear unless that is wanted.
type denyLog struct {
	log    *slog.Logger
	most   int64 // lines each second; 0 logs none
	clear  bool  // log subjects as they are
	key    []byte
	second atomic.Int64 // of the limiter's clock
	lines  atomic.Int64 // in that second
	left   atomic.Int64 // denials left out since the last line
}

func newDenyLog(log *slog.Logger, most int, clear bool) *denyLog {
	d := &denyLog{log: log, most: int64(most), clear: clear, key: make([]byte, sha256.Size)}
	_, _ = rand.Read(d.key) // It never fails.
	return d
}

// admits says whether a denial at that time is to be logged. Around the end of
// a second a few lines more may be, with concurrent requests.
func (d *denyLog) admits(now time.Time) bool {
	if d.most == 0 {
		return false
	}
	if second := now.Unix(); d.second.Load() != second && d.second.Swap(second) != second {
		d.lines.Store(0)
	}
	if d.lines.Load() >= d.most || d.lines.Add(1) > d.most {
		d.left.Add(1)
		return false
	}
	return true
}

// write logs a denied descriptor.
func (d *denyLog) write(ctx context.Context, domain string, m *match, s *Status, path Path) {
	attrs := []slog.Attr{slog.String("domain", domain), slog.String("path", path.String()), slog.Int64("unlogged", d.left.Swap(0))}
	if s.Rule != nil {
		attrs = append(attrs, slog.String("rule", s.Rule.Name))
	}
	if s.Limit != nil {
		attrs = append(attrs, slog.String("limit", s.Limit.Name), slog.Duration("reset", s.Reset))
	}
	if subject := string(appendSubjectKey(nil, domain, m.kind, m.entries)); len(m.entries) > 0 {
		name := "subject"
		if !d.clear {
			name, subject = "subject_hash", d.hash(subject)
		}
		attrs = append(attrs, slog.String(name, subject))
	}
	d.log.LogAttrs(ctx, slog.LevelInfo, "request denied by a limit", attrs...)
}

// hash tells subjects apart within this process, and tells nothing else.
func (d *denyLog) hash(subject string) string {
	mac := hmac.New(sha256.New, d.key)
	mac.Write([]byte(subject))
	return hex.EncodeToString(mac.Sum(nil)[:8])
}
