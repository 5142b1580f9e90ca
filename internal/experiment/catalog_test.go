package experiment

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/redistest"
	"github.com/tollgate-proxy/tollgate/internal/versioned"
)

var catalogTime = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

func fixedNow() time.Time { return catalogTime }

func anyone(reason string) Change {
	return Change{Actor: "ada", Reason: reason, Expect: AnyRevision}
}

func put(t *testing.T, c *Catalog, d *Definition) Record {
	t.Helper()
	r, err := c.Put(t.Context(), *d, anyone("test"))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func started(t *testing.T, c *Catalog, d *Definition) *Record {
	t.Helper()
	put(t, c, d)
	r, err := c.Start(t.Context(), d.Key, anyone("go"))
	if err != nil {
		t.Fatal(err)
	}
	return &r
}

func TestCatalogLife(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rdb *redis.Client) {
		c, d := NewCatalog(rdb, fixedNow), valid()
		first := put(t, c, d)
		if first.Revision != 1 || first.Definition.Version != 1 || first.Definition.State != Draft || first.UpdatedBy != "ada" {
			t.Errorf("got %+v", first)
		}
		r, err := c.Start(t.Context(), d.Key, anyone("go"))
		if err != nil || r.Definition.State != Started || !r.Definition.Start.Equal(catalogTime) || r.Definition.Version != 1 {
			t.Fatalf("got %+v, %v", r, err)
		}
		if _, err := c.Start(t.Context(), d.Key, anyone("")); !errors.Is(err, ErrInvalid) {
			t.Errorf("started twice: %v", err)
		}
		if _, err := c.Delete(t.Context(), d.Key, anyone("")); !errors.Is(err, ErrInvalid) {
			t.Errorf("deleted while running: %v", err)
		}
		// More traffic is the same experiment, other weights are another.
		d.Traffic = 0.5
		if r = put(t, c, d); r.Definition.Version != 1 || r.Definition.State != Started {
			t.Errorf("got %+v", r)
		}
		d.Variants[1].Weight = 3
		if r = put(t, c, d); r.Definition.Version != 4 || r.Revision != 4 {
			t.Errorf("got %+v", r)
		}
		c.now = func() time.Time { return catalogTime.Add(time.Hour) }
		if r, err = c.Stop(t.Context(), d.Key, anyone("enough")); err != nil || r.Definition.State != Stopped || r.Definition.Stop.IsZero() {
			t.Errorf("got %+v, %v", r, err)
		}
		if _, err := c.Stop(t.Context(), d.Key, anyone("")); !errors.Is(err, ErrInvalid) {
			t.Errorf("stopped twice: %v", err)
		}
		if was, err := c.Delete(t.Context(), d.Key, anyone("done")); err != nil || was.Version != 4 || was.State != Stopped {
			t.Errorf("got %+v, %v", was, err)
		}
		// Made anew, it does not inherit what was measured.
		if r = put(t, c, d); r.Revision != 7 || r.Definition.Version != 7 {
			t.Errorf("got %+v", r)
		}
		entries, err := c.History(t.Context(), d.Key, MaxHistory)
		var actions []string
		for _, e := range entries {
			actions = append(actions, e.Action)
		}
		if diff := cmp.Diff([]string{"create", "delete", "stop", "update", "update", "start", "create"}, actions); err != nil || diff != "" {
			t.Errorf("%v, %s", err, diff)
		}
		if entries[1].Definition != nil || entries[2].Definition == nil || entries[2].Reason != "enough" {
			t.Errorf("got %+v", entries[1:3])
		}
		for _, err := range []error{
			func() error { _, err := c.Get(t.Context(), "none"); return err }(),
			func() error { _, err := c.Delete(t.Context(), "none", anyone("")); return err }(),
			func() error { _, err := c.Start(t.Context(), "none", anyone("")); return err }(),
		} {
			if !errors.Is(err, ErrNotFound) {
				t.Errorf("got %v", err)
			}
		}
	})
}

// An earlier definition comes back without the life that it had.
func TestCatalogReverts(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rdb *redis.Client) {
		c, d := NewCatalog(rdb, fixedNow), valid()
		d.Stop = catalogTime.Add(time.Hour)
		put(t, c, d)
		if _, err := c.Start(t.Context(), d.Key, anyone("go")); err != nil {
			t.Fatal(err)
		}
		d.Traffic, d.Stop = 0.25, time.Time{}
		put(t, c, d)
		r, err := c.Revert(t.Context(), d.Key, 1, Change{Actor: "ada", Reason: "back", Expect: 3})
		if x := &r.Definition; err != nil || r.Revision != 4 || x.Traffic != 1 || x.Version != 1 || x.State != Started || !x.Start.Equal(catalogTime) || !x.Stop.IsZero() {
			t.Errorf("got %+v, %v", r, err)
		}
		for revision, want := range map[int64]error{1: ErrConflict, 9: ErrNotFound} {
			if _, err := c.Revert(t.Context(), d.Key, revision, Change{Expect: 3}); !errors.Is(err, want) {
				t.Errorf("to %d: got %v", revision, err)
			}
		}
		// What a newer release has written does not come back without what is new.
		newer := versioned.Write{Version: 5, Entry: []byte(`{"revision":5,"definition":{"key":"checkout","weather":"rain"}}`)}
		if written, err := c.documents.Write(t.Context(), 4, map[string]versioned.Write{d.Key: newer}); err != nil || !written {
			t.Fatal(written, err)
		}
		if _, err := c.Revert(t.Context(), d.Key, 5, anyone("")); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "weather") {
			t.Errorf("got %v", err)
		}
		if r, err := c.Revert(t.Context(), d.Key, 4, anyone("")); err != nil || r.State != Draft || !r.Definition.Start.IsZero() || r.Definition.Version != 6 {
			t.Errorf("got %+v, %v", r, err)
		}
		entries, err := c.History(t.Context(), d.Key, 1)
		if err != nil || entries[0].Action != "revert" {
			t.Errorf("got %+v, %v", entries, err)
		}
	})
}

func TestCatalogRefuses(t *testing.T) {
	c := NewCatalog(redistest.Client(t, redistest.Embedded(t)), fixedNow)
	started(t, c, valid())
	layered := func(key string, from, until float64) *Definition {
		d := valid()
		d.Key, d.Layer = key, &Layer{"page", from, until}
		return d
	}
	put(t, c, layered("one", 0, 0.5))
	put(t, c, layered("two", 0.5, 1))
	twin := valid()
	twin.Key, twin.Flag = "twin", "checkout"
	broken := valid()
	broken.Key, broken.Variants[1].Name = "broken", "a=b\r\nx-user-tier: admin"
	huge := valid()
	huge.Key, huge.Description = "huge", strings.Repeat("x", maxDescription+1)
	for name, d := range map[string]*Definition{
		"the same flag": twin, "overlapping slices": layered("three", 0.4, 0.6), "a variant that forges headers": broken, "a gigantic one": huge,
	} {
		if _, err := c.Put(t.Context(), *d, anyone("")); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	for revision, d := range map[int64]*Definition{0: valid(), 1: valid(), 3: valid()} {
		if _, err := c.Put(t.Context(), *d, Change{Actor: "bob", Expect: revision}); !errors.Is(err, ErrConflict) {
			t.Errorf("at revision %d: got %v", revision, err)
		}
	}
	if _, err := c.Put(t.Context(), *valid(), Change{Actor: "bob", Expect: 2}); err != nil {
		t.Error(err)
	}
}

// Many at once: every change is made once, or told apart.
func TestCatalogConcurrently(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rdb *redis.Client) {
		var running sync.WaitGroup
		for i := range 6 {
			running.Go(func() {
				d := valid()
				d.Key = fmt.Sprintf("e-%d", i)
				if _, err := NewCatalog(rdb, fixedNow).Put(t.Context(), *d, anyone("")); err != nil {
					t.Error(err)
				}
			})
		}
		running.Wait()
		s, err := NewCatalog(rdb, fixedNow).List(t.Context())
		if err != nil || len(s.Records) != 6 || s.Version != 6 {
			t.Errorf("got %+v, %v", s, err)
		}
	})
}

// What a newer release has written is not read without what is new in it, and
// not written back without it either: it may be replaced, reverted and deleted.
func TestCatalogUnknownMembers(t *testing.T) {
	rdb := redistest.Client(t, redistest.Embedded(t))
	c := NewCatalog(rdb, fixedNow)
	started(t, c, valid())
	document := rdb.HGet(t.Context(), catalogRoot+"definitions", "checkout").Val()
	newer := strings.Replace(document, `"traffic":1`, `"traffic":1,"weather":"rain"`, 1)
	if newer == document {
		t.Fatal(document)
	}
	spoil := func() {
		t.Helper()
		if err := rdb.HSet(t.Context(), catalogRoot+"definitions", "checkout", newer).Err(); err != nil {
			t.Fatal(err)
		}
	}
	spoil()
	_, getErr := c.Get(t.Context(), "checkout")
	_, stopErr := c.Stop(t.Context(), "checkout", anyone("stop"))
	_, updateErr := c.Update(t.Context(), "checkout", anyone("update"), func(*Definition) error { return nil })
	for _, err := range []error{getErr, stopErr, updateErr} {
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), `unknown field "weather"`) {
			t.Errorf("got %v", err)
		}
	}
	if got := rdb.HGet(t.Context(), catalogRoot+"definitions", "checkout").Val(); got != newer {
		t.Errorf("now %s", got)
	}
	// Who expects a revision is told which it is at.
	for revision, want := range map[int64]string{0: "is at revision 2, not 0", 1: "is at revision 2, not 1"} {
		if _, err := c.Put(t.Context(), *valid(), Change{Expect: revision}); !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	if r, err := c.Revert(t.Context(), "checkout", 1, Change{Expect: 2}); err != nil || r.State != Draft || r.Revision != 3 || r.Definition.Version != 3 {
		t.Errorf("got %+v, %v", r, err)
	}
	spoil()
	if r, err := c.Put(t.Context(), *valid(), Change{Expect: 3}); err != nil || r.State != Draft || r.Revision != 4 {
		t.Errorf("got %+v, %v", r, err)
	}
	spoil()
	if was, err := c.Delete(t.Context(), "checkout", Change{Expect: 4}); err != nil || was.Key != "checkout" || was.Version != 1 {
		t.Errorf("got %+v, %v", was, err)
	}
}

// A Redis whose memory is full takes nothing more and can still be read, by a
// client that has never asked it before too.
func TestFullRedis(t *testing.T) {
	rdb := redistest.Client(t, redistest.Server(t))
	d := &started(t, NewCatalog(rdb, fixedNow), valid()).Definition
	b := newBatch(t, d)
	observe(t, b, "ann", 0, "latency", 1)
	write(t, NewStore(rdb), b)
	if err := rdb.ConfigSet(t.Context(), "maxmemory", "1").Err(); err != nil {
		t.Fatal(err)
	}
	if _, err := NewCatalog(rdb, fixedNow).Stop(t.Context(), d.Key, anyone("")); err == nil {
		t.Error("a full Redis was written to")
	}
	if s, err := NewCatalog(rdb, fixedNow).List(t.Context()); err != nil || len(s.Records) != 1 {
		t.Errorf("got %+v, %v", s, err)
	}
	if data := read(t, NewStore(rdb), d); data[0].Users != 1 {
		t.Errorf("got %+v", data)
	}
}
