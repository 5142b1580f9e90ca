package revocation

import (
	"testing"

	"github.com/redis/go-redis/v9"
	"pgregory.net/rapid"
)

func TestChangesSurviveTheWire(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := change{
			print:  fingerprint{hi: rapid.Uint64Min(1).Draw(t, "hi"), lo: rapid.Uint64().Draw(t, "lo")},
			isMark: rapid.Bool().Draw(t, "mark"),
		}
		if c.isMark {
			c.mark = mark{
				notBefore: rapid.Int64Range(0, 1<<32-1).Draw(t, "notBefore"),
				tie:       rapid.Int64Range(0, tieNone).Draw(t, "tie"),
				expires:   rapid.Int64Range(0, 1<<32-1).Draw(t, "expires"),
				version:   rapid.Int64Range(0, maxVersion).Draw(t, "version"),
			}
		} else {
			c.entry = rapid.Int64Range(0, 1<<32-1).Draw(t, "expiry")
		}
		got, err := parseChange(c.member(), c.value())
		if err != nil || got != c {
			t.Errorf("%+v becomes %+v, %v", c, got, err)
		}
	})
}

func TestUnreadableChanges(t *testing.T) {
	entry, marked := member(fingerprint{1, 2}, false), member(fingerprint{1, 2}, true)
	for name, c := range map[string][2]string{
		"no member":          {"", "1"},
		"short member":       {entry[:16], "1"},
		"long member":        {entry + "x", "1"},
		"unknown letter":     {"x" + entry[1:], "1"},
		"entry: no number":   {entry, "soon"},
		"entry: negative":    {entry, "-1"},
		"entry: too large":   {entry, "4294967296"},
		"entry: a mark":      {entry, "1:2:3:4"},
		"mark: an entry":     {marked, "1"},
		"mark: too few":      {marked, "1:2:3"},
		"mark: too many":     {marked, "1:2:3:4:5"},
		"mark: empty number": {marked, "1::3:4"},
		"mark: large tie":    {marked, "1:4096:3:4"},
		"mark: large time":   {marked, "4294967296:0:3:4"},
	} {
		if got, err := parseChange(c[0], c[1]); err == nil {
			t.Errorf("%s: read as %+v", name, got)
		}
	}
}

// Whatever Redis says, reading it neither panics nor yields something that cannot be written again.
func FuzzParseChange(f *testing.F) {
	f.Add(member(fingerprint{1, 2}, false), "1800000000")
	f.Add(member(fingerprint{1, 2}, true), "1800000000:501:1800086400:7")
	f.Add(member(fingerprint{}, true), "0:0:0:0")
	f.Add("", "")
	f.Fuzz(func(t *testing.T, member, value string) {
		c, err := parseChange(member, value)
		if err != nil {
			return
		}
		again, err := parseChange(c.member(), c.value())
		if err != nil || again != c {
			t.Errorf("%+v becomes %+v, %v", c, again, err)
		}
		newSet(10).learn(c)
		_ = c.mark.covers(1, 1)
	})
}

func FuzzParseMessage(f *testing.F) {
	f.Add("1-0", "link", "abc")
	f.Add("1-1", "prev", "")
	f.Add("-0", member(fingerprint{1, 2}, false), "1")
	f.Fuzz(func(t *testing.T, id, field, value string) {
		m, _, err := parseMessage(redis.XMessage{ID: id, Values: map[string]any{field: value}})
		if err == nil && m.at.feedID() == "" {
			t.Error("a message without an id")
		}
	})
}
