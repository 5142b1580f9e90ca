package httpcache

import (
	"bytes"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestEntriesSurviveTheStore(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := time.Unix(rapid.Int64Range(0, 4e9).Draw(t, "now"), 0).UTC()
		h := http.Header(rapid.MapOf(rapid.StringMatching(`X-[A-Z][a-z]{1,9}`), rapid.SliceOfN(rapid.String(), 1, 3)).Draw(t, "header"))
		body := bytes.Repeat(rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, "body"), rapid.IntRange(0, 1000).Draw(t, "times"))
		e := newEntry(200, h, body, lifetime{time.Minute, time.Hour, time.Second}, now)
		b, err := e.encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := decode(b)
		if err != nil {
			t.Fatal(err)
		}
		if got.Status != 200 || !bytes.Equal(got.Body, body) || !got.Fresh.Equal(e.Fresh) || !got.SIE.Equal(e.SIE) || !got.SWR.Equal(e.SWR) || !got.Stored.Equal(now) || len(got.Header) != len(e.Header) {
			t.Fatalf("%+v", got)
		}
	})
}

func FuzzDecode(f *testing.F) {
	e := newEntry(200, http.Header{"A": {"b"}}, bytes.Repeat([]byte("x"), 10_000), lifetime{}, time.Unix(0, 0))
	for _, body := range [][]byte{nil, e.Body} {
		e.Body = body
		b, err := e.encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte{})
	f.Add([]byte{1, 1})
	f.Add([]byte{1, 0, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		if e, err := decode(b); err == nil && (e.Status < 200 || e.Status > 599) {
			t.Fatal(e.Status)
		}
	})
}

func TestDirectives(t *testing.T) {
	got := parseDirectives([]string{` No-Store , max-age="1,2", x="a\",b", =y,, s-maxage`, "max-age=9"})
	want := directives{"no-store": "", "max-age": "1,2", "x": `a\",b`, "s-maxage": ""}
	if d := cmp.Diff(want, got); d != "" {
		t.Fatal(d)
	}
	if d, ok := (directives{"a": "99999999999"}).seconds("a"); !ok || d != maxAge {
		t.Fatal(d)
	}
}

func FuzzDirectives(f *testing.F) {
	f.Add(`max-age="1,2", private`)
	f.Fuzz(func(t *testing.T, s string) {
		for name := range parseDirectives([]string{s}) {
			if d, _ := parseDirectives([]string{s}).seconds(name); d < 0 || d > maxAge {
				t.Fatal(d)
			}
		}
	})
}

// Two requests share an entry only if all that the policy keys on is the same.
func TestKeysAreUnambiguous(t *testing.T) {
	type question struct {
		path, query, body, epoch string
		user, flag               []string
	}
	p := Policy{Route: "r", Vary: []string{"X-User-Id", "X-User-Tier"}}
	small := rapid.SampledFrom([]string{"", "a", "b", "ab", "a,b", "/"})
	draw := func(t *rapid.T, name string) question {
		list := func(n string) []string { return rapid.SliceOfN(small, 0, 2).Draw(t, name+n) }
		return question{small.Draw(t, name+"path"), small.Draw(t, name+"query"), small.Draw(t, name+"body"), small.Draw(t, name+"epoch"), list("user"), list("flag")}
	}
	of := func(q question) key {
		r, err := http.NewRequest(http.MethodPost, "http://h/", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.URL.Path, r.URL.RawQuery = q.path, q.query
		if len(q.user) > 0 {
			r.Header["X-User-Id"] = q.user
		}
		if len(q.flag) > 0 {
			r.Header["X-User-Tier"] = q.flag
		}
		k, _ := p.request(r, []byte(q.body), q.epoch)
		return k
	}
	rapid.Check(t, func(t *rapid.T) {
		a, b := draw(t, "a"), draw(t, "b")
		same := a.path == b.path && a.query == b.query && a.body == b.body && a.epoch == b.epoch && slices.Equal(a.user, b.user) && slices.Equal(a.flag, b.flag)
		if (of(a) == of(b)) != same {
			t.Fatalf("%+v %+v", a, b)
		}
	})
}

func TestTheMemoryNeverExceedsItsBound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := newLRU(16 * 2000)
		now := time.Unix(1000, 0)
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				k := key{rapid.Byte().Draw(t, "shard") % 4, rapid.Byte().Draw(t, "key") % 8}
				l.put(k, newEntry(200, nil, make([]byte, rapid.IntRange(0, 3000).Draw(t, "size")), lifetime{fresh: time.Minute}, now))
			},
			"get": func(t *rapid.T) {
				l.get(key{rapid.Byte().Draw(t, "shard") % 4, rapid.Byte().Draw(t, "key") % 8}, now.Add(time.Duration(rapid.IntRange(0, 2).Draw(t, "later"))*time.Minute))
			},
			"": func(t *rapid.T) {
				for i := range l.shards {
					s := &l.shards[i]
					var sum int64
					for el := s.order.Front(); el != nil; el = el.Next() {
						sum += el.Value.(*item).size
					}
					if s.bytes != sum || sum > s.most || len(s.byKey) != s.order.Len() {
						t.Fatalf("%d bytes counted, %d held, %d allowed", s.bytes, sum, s.most)
					}
				}
			},
		})
	})
}
