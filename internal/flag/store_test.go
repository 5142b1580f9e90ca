package flag

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/config"
	"github.com/tollgate-proxy/tollgate/internal/redistest"
	"github.com/tollgate-proxy/tollgate/internal/versioned"
)

func testClock() time.Time { return testTime }

// onOff is a boolean flag rolled out to a percentage.
func onOff(t testing.TB, key string, percentage float64) Definition {
	t.Helper()
	def, err := ParseFlag("test", key, fmt.Appendf(nil,
		`{"variants":{"on":true,"off":false},"defaultVariant":"off","tollgate":{"rollout":{"percentage":%v}}}`, percentage))
	if err != nil {
		t.Fatal(err)
	}
	return def
}

// TestStore is the suite that every kind of Redis passes.
func TestStore(t *testing.T) {
	tests := map[string]func(t *testing.T, s *Store){
		"put, get, list, delete":             storeLifecycle,
		"compare and set":                    storeCompareAndSet,
		"update":                             storeUpdate,
		"history and revert":                 storeHistory,
		"history is bounded":                 storeHistoryBound,
		"flags are checked together":         storeChecksTogether,
		"seed only what was never there":     storeSeed,
		"concurrent edits lose nothing":      storeConcurrent,
		"a broken flag can be put right":     storeBroken,
		"a broken flag hinders no other":     storeBrokenPrerequisite,
		"definitions are bounded when saved": storeBound,
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			redistest.Each(t, func(t *testing.T, c *redis.Client) { test(t, NewStore(c, testClock)) })
		})
	}
}

func put(t *testing.T, s *Store, def Definition, expect int64) Record {
	t.Helper()
	r, err := s.Put(t.Context(), def, Change{Actor: "ann", Reason: "test", Expect: expect})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func storeLifecycle(t *testing.T, s *Store) {
	ctx := t.Context()
	if _, err := s.Get(ctx, "a"); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v", err)
	}
	if snapshot, err := s.List(ctx); err != nil || snapshot.Version != 0 || len(snapshot.Records) != 0 {
		t.Errorf("got %+v, %v", snapshot, err)
	}
	want := Record{Definition: onOff(t, "b", 10), Version: 1, Updated: testTime, UpdatedBy: "ann"}
	if diff := cmp.Diff(want, put(t, s, want.Definition, 0)); diff != "" {
		t.Error(diff)
	}
	put(t, s, onOff(t, "a", 20), AnyVersion)
	got, err := s.Get(ctx, "b")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	snapshot, err := s.List(ctx)
	if err != nil || snapshot.Version != 2 || len(snapshot.Records) != 2 || snapshot.Records[0].Definition.Key != "a" {
		t.Errorf("got %+v, %v", snapshot, err)
	}
	if err := s.Delete(ctx, "b", Change{Expect: 1}); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(ctx, "b", Change{Expect: AnyVersion}); !errors.Is(err, ErrNotFound) {
		t.Errorf("deleted twice: %v", err)
	}
	if version, err := s.Version(ctx); err != nil || version != 3 {
		t.Errorf("version %d, %v", version, err)
	}
	// Coming back, a flag goes on counting: an old version never matches again.
	if r := put(t, s, onOff(t, "b", 1), 0); r.Version != 3 {
		t.Errorf("version %d", r.Version)
	}
}

func storeCompareAndSet(t *testing.T, s *Store) {
	ctx := t.Context()
	put(t, s, onOff(t, "a", 10), 0)
	for _, expect := range []int64{0, 2} {
		if _, err := s.Put(ctx, onOff(t, "a", 20), Change{Expect: expect}); !errors.Is(err, ErrConflict) {
			t.Errorf("expect %d: %v", expect, err)
		}
		if err := s.Delete(ctx, "a", Change{Expect: expect}); !errors.Is(err, ErrConflict) {
			t.Errorf("delete, expect %d: %v", expect, err)
		}
	}
	if _, err := s.Put(ctx, onOff(t, "b", 20), Change{Expect: 1}); !errors.Is(err, ErrConflict) {
		t.Errorf("a flag that is not there was at version 1: %v", err)
	}
	if r := put(t, s, onOff(t, "a", 20), 1); r.Version != 2 {
		t.Errorf("version %d", r.Version)
	}
}

func storeUpdate(t *testing.T, s *Store) {
	ctx := t.Context()
	raise := func(d *Definition) error {
		d.Extension.Rollout = &Rollout{Percentage: 12500}
		return nil
	}
	if _, err := s.Update(ctx, "a", Change{Expect: AnyVersion}, raise); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v", err)
	}
	put(t, s, onOff(t, "a", 10), 0)
	r, err := s.Update(ctx, "a", Change{Actor: "bob", Expect: 1}, raise)
	if err != nil || r.Version != 2 || r.UpdatedBy != "bob" || r.Definition.Extension.Rollout.Percentage != 12500 {
		t.Errorf("got %+v, %v", r, err)
	}
	own := errors.New("no")
	if _, err := s.Update(ctx, "a", Change{Expect: AnyVersion}, func(*Definition) error { return own }); !errors.Is(err, own) {
		t.Errorf("got %v", err)
	}
	var faults config.Faults
	_, err = s.Update(ctx, "a", Change{Expect: AnyVersion}, func(d *Definition) error {
		d.Extension.Force = "a=b\r\nx-user-id: admin"
		return nil
	})
	if !errors.As(err, &faults) {
		t.Errorf("a header was smuggled into a variant's name: %v", err)
	}
}

func storeHistory(t *testing.T, s *Store) {
	ctx := t.Context()
	put(t, s, onOff(t, "a", 10), 0)
	put(t, s, onOff(t, "a", 20), 1)
	if err := s.Delete(ctx, "a", Change{Actor: "bob", Reason: "gone", Expect: 2}); err != nil {
		t.Fatal(err)
	}
	r, err := s.Revert(ctx, "a", 1, Change{Actor: "cat", Expect: 0})
	if err != nil || r.Version != 4 || r.Definition.Extension.Rollout.Percentage != 10*Percent {
		t.Fatalf("got %+v, %v", r, err)
	}
	for _, version := range []int64{3, 9} {
		if _, err := s.Revert(ctx, "a", version, Change{Expect: AnyVersion}); !errors.Is(err, ErrNotFound) {
			t.Errorf("reverted to version %d: %v", version, err)
		}
	}
	entries, err := s.History(ctx, "a", 3)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, fmt.Sprintf("%d %s %s %s %v %s", e.Version, e.Actor, e.Action, e.Reason, string(e.Definition) == "null", e.At.Format(time.DateOnly)))
	}
	want := []string{"4 cat revert  false 2026-03-04", "3 bob delete gone true 2026-03-04", "2 ann update test false 2026-03-04"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if entries, err := s.History(ctx, "nobody", 3); err != nil || len(entries) != 0 {
		t.Errorf("got %v, %v", entries, err)
	}
}

func storeHistoryBound(t *testing.T, s *Store) {
	for i := range MaxHistory + 5 {
		put(t, s, onOff(t, "a", float64(i%100)), int64(i))
	}
	entries, err := s.History(t.Context(), "a", 2*MaxHistory)
	if err != nil || len(entries) != MaxHistory || entries[0].Version != MaxHistory+5 {
		t.Errorf("%d entries, %v", len(entries), err)
	}
}

func storeChecksTogether(t *testing.T, s *Store) {
	ctx := t.Context()
	put(t, s, onOff(t, "a", 10), 0)
	needs := onOff(t, "b", 10)
	needs.Extension.Prerequisites = []Prerequisite{{Flag: "a", Variants: []string{"on"}}}
	put(t, s, needs, 0)
	var faults config.Faults
	if err := s.Delete(ctx, "a", Change{Expect: AnyVersion}); !errors.As(err, &faults) {
		t.Errorf("a prerequisite was deleted: %v", err)
	}
	back := onOff(t, "a", 10)
	back.Extension.Prerequisites = []Prerequisite{{Flag: "b", Variants: []string{"on"}}}
	if _, err := s.Put(ctx, back, Change{Expect: AnyVersion}); !errors.As(err, &faults) || !strings.Contains(err.Error(), "a -> b -> a") {
		t.Errorf("a cycle was written: %v", err)
	}
}

func storeSeed(t *testing.T, s *Store) {
	ctx := t.Context()
	put(t, s, onOff(t, "changed", 10), 0)
	put(t, s, onOff(t, "deleted", 10), 0)
	if err := s.Delete(ctx, "deleted", Change{Expect: AnyVersion}); err != nil {
		t.Fatal(err)
	}
	defs := &Definitions{Flags: map[string]Definition{}}
	for _, key := range []string{"changed", "deleted", "fresh", "restored"} {
		defs.Flags[key] = onOff(t, key, 90)
	}
	for i, want := range []int{2, 0} {
		if n, err := s.Seed(ctx, defs, map[string]int64{"restored": 7}, Change{Actor: "bootstrap"}); err != nil || n != want {
			t.Errorf("seeding %d: %d, %v", i+1, n, err)
		}
	}
	snapshot, err := s.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, r := range snapshot.Records {
		got[r.Definition.Key] = fmt.Sprintf("%s at %d", r.Definition.Extension.Rollout.Percentage, r.Version)
	}
	want := map[string]string{"changed": "10 at 1", "fresh": "90 at 1", "restored": "90 at 7"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// Writers of different flags do not disturb each other; of writers of one flag
// at one version, exactly one wins and the others are told.
func storeConcurrent(t *testing.T, s *Store) {
	ctx := t.Context()
	put(t, s, onOff(t, "shared", 1), 0)
	var wg sync.WaitGroup
	errs := make([]error, 6)
	for i := range errs {
		wg.Go(func() {
			if _, err := s.Put(ctx, onOff(t, fmt.Sprintf("own-%d", i), 1), Change{Expect: 0}); err != nil {
				t.Errorf("own flag: %v", err)
			}
			_, errs[i] = s.Put(ctx, onOff(t, "shared", float64(i)), Change{Expect: 1})
		})
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		switch {
		case err == nil:
			won++
		case !errors.Is(err, ErrConflict):
			t.Error(err)
		}
	}
	if won != 1 {
		t.Errorf("%d writers won", won)
	}
	if snapshot, err := s.List(ctx); err != nil || len(snapshot.Records) != len(errs)+1 || snapshot.Version != int64(len(errs)+2) {
		t.Errorf("got %+v, %v", snapshot, err)
	}
}

func storeBroken(t *testing.T, s *Store) {
	ctx := t.Context()
	put(t, s, onOff(t, "good", 1), 0)
	newer := map[string]versioned.Write{
		"bad": {Version: 4, Document: []byte(`{"version":4,"definition":{"targeting":{"future":[]}}}`)}, "worse": {Version: 1, Document: []byte("{")},
	}
	if written, err := s.documents.Write(ctx, 1, newer); err != nil || !written {
		t.Fatal(written, err)
	}
	snapshot, err := s.List(ctx)
	if err != nil || len(snapshot.Records) != 1 || len(snapshot.Broken) != 2 {
		t.Fatalf("got %+v, %v", snapshot, err)
	}
	if _, err := s.Get(ctx, "bad"); err == nil {
		t.Error("a broken flag was read")
	}
	// To edit one would lose what this program does not understand.
	for key, want := range map[string]string{"bad": "targeting.future", "worse": "JSON"} {
		_, err := s.Update(ctx, key, Change{Expect: AnyVersion}, func(*Definition) error { return nil })
		if faults := (config.Faults)(nil); !errors.As(err, &faults) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", key, err, want)
		}
	}
	// Who expects a version is told which it is at.
	for version, want := range map[int64]string{0: "is at version 4, not 0", 3: "is at version 4, not 3"} {
		if _, err := s.Put(ctx, onOff(t, "bad", 1), Change{Expect: version}); !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	put(t, s, onOff(t, "bad", 1), 4)
	if err := s.Delete(ctx, "worse", Change{Expect: AnyVersion}); err != nil {
		t.Error(err)
	}
	if snapshot, err := s.List(ctx); err != nil || len(snapshot.Broken) != 0 {
		t.Errorf("got %+v, %v", snapshot, err)
	}
}

// Nothing can be said of a prerequisite that is broken: what is there can be
// changed, and what comes new may not depend on it.
func storeBrokenPrerequisite(t *testing.T, s *Store) {
	needs := func(key, flag, variant string) Definition {
		def := onOff(t, key, 1)
		def.Extension.Prerequisites = []Prerequisite{{Flag: flag, Variants: []string{variant}}}
		return def
	}
	put(t, s, onOff(t, "base", 1), 0)
	put(t, s, needs("needs", "base", "on"), 0)
	newer := map[string]versioned.Write{"base": {Version: 2, Document: []byte(`{"version":2,"definition":{"targeting":{"future":[]}}}`)}}
	if written, err := s.documents.Write(t.Context(), 2, newer); err != nil || !written {
		t.Fatal(written, err)
	}
	put(t, s, onOff(t, "other", 1), 0)
	if _, err := s.Update(t.Context(), "needs", Change{Expect: AnyVersion}, func(d *Definition) error { d.Extension.Killed = true; return nil }); err != nil {
		t.Errorf("what depends on it cannot be killed: %v", err)
	}
	for _, def := range []Definition{needs("late", "base", "on"), needs("needs", "base", "later"), needs("base", "needs", "on")} {
		faults := (config.Faults)(nil)
		if _, err := s.Put(t.Context(), def, Change{Expect: AnyVersion}); !errors.As(err, &faults) {
			t.Errorf("%s: got %v", def.Key, err)
		}
	}
	if faults := (config.Faults)(nil); !errors.As(s.Delete(t.Context(), "base", Change{Expect: AnyVersion}), &faults) {
		t.Error("what another depends on was deleted")
	}
}

func storeBound(t *testing.T, s *Store) {
	def := onOff(t, "a", 1)
	def.Metadata = map[string]any{"x": strings.Repeat("x", MaxFlagBytes)}
	if _, err := s.Put(t.Context(), def, Change{Expect: AnyVersion}); err == nil {
		t.Error("a gigantic definition was written")
	}
}

func TestStoreWithoutRedis(t *testing.T) {
	c := redis.NewClient(&redis.Options{Addr: redistest.FreeAddr(t), MaxRetries: -1})
	t.Cleanup(func() { _ = c.Close() })
	s, ctx := NewStore(c, testClock), t.Context()
	_, listErr := s.List(ctx)
	_, versionErr := s.Version(ctx)
	_, getErr := s.Get(ctx, "a")
	_, putErr := s.Put(ctx, onOff(t, "a", 1), Change{})
	_, historyErr := s.History(ctx, "a", 1)
	_, revertErr := s.Revert(ctx, "a", 1, Change{})
	_, seedErr := s.Seed(ctx, &Definitions{}, nil, Change{})
	for i, err := range []error{listErr, versionErr, getErr, putErr, historyErr, revertErr, seedErr} {
		if err == nil || errors.Is(err, ErrNotFound) || errors.Is(err, ErrConflict) {
			t.Errorf("%d: got %v", i, err)
		}
	}
}

func TestEntryIsJSON(t *testing.T) {
	data, err := json.Marshal(Entry{Version: 1, At: testTime, Actor: "ann", Action: "delete", Definition: json.RawMessage("null")})
	if want := `{"version":1,"at":"2026-03-04T05:06:07Z","actor":"ann","action":"delete","definition":null}`; err != nil || string(data) != want {
		t.Errorf("got %s, %v", data, err)
	}
}
