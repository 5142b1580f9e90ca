package versioned

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/redistest"
)

const root = "tollgate:test:{test}:"

func write(t *testing.T, s *Store, expect int64, writes map[string]Write, want bool) {
	t.Helper()
	if written, err := s.Write(t.Context(), expect, writes); err != nil || written != want {
		t.Fatalf("at %d: written %v, %v", expect, written, err)
	}
}

func TestStore(t *testing.T) {
	redistest.Each(t, func(t *testing.T, c *redis.Client) {
		s, ctx := New(c, root), t.Context()
		if set, err := s.Read(ctx); err != nil || set.Version != 0 || len(set.Documents) != 0 {
			t.Errorf("got %+v, %v", set, err)
		}
		write(t, s, 0, map[string]Write{"a": {1, []byte("A"), []byte(`"made"`)}, "b:c": {7, []byte("B"), []byte(`"made"`)}}, true)
		write(t, s, 0, map[string]Write{"a": {2, []byte("late"), nil}}, false)
		write(t, s, 2, map[string]Write{"a": {2, nil, []byte(`"deleted"`)}}, true)
		want := Set{Version: 3, Documents: map[string]string{"b:c": "B"}, Versions: map[string]int64{"a": 2, "b:c": 7}}
		set, err := s.Read(ctx)
		if diff := cmp.Diff(want, set); err != nil || diff != "" {
			t.Error(err, diff)
		}
		if version, err := s.Version(ctx); err != nil || version != 3 {
			t.Errorf("got %d, %v", version, err)
		}
		for name, want := range map[string]string{"a": "", "b:c": "B"} {
			if got, err := s.Get(ctx, name); err != nil || got != want {
				t.Errorf("%s: got %q, %v", name, got, err)
			}
		}
		history, err := History[string](ctx, s, "a", 10)
		if diff := cmp.Diff([]string{"deleted", "made"}, history); err != nil || diff != "" {
			t.Error(err, diff)
		}
		if _, err := History[int](ctx, s, "a", 10); err == nil {
			t.Error("a text was read as a number")
		}
		for name, want := range map[string]bool{"made": true, "lost": false} {
			if got, ok, err := Find(ctx, s, "a", func(e string) bool { return e == name }); err != nil || ok != want || ok && got != name {
				t.Errorf("%s: got %q, %v, %v", name, got, ok, err)
			}
		}
		for i := range MaxHistory + 3 {
			write(t, s, int64(3+i), map[string]Write{"a": {int64(3 + i), []byte("A"), []byte(`"again"`)}}, true)
		}
		if history, err := History[string](ctx, s, "a", 1000); err != nil || len(history) != MaxHistory {
			t.Errorf("%d entries, %v", len(history), err)
		}
	})
}

// Of writers that have read the same set, one writes.
func TestCompareAndSet(t *testing.T) {
	redistest.Each(t, func(t *testing.T, c *redis.Client) {
		var writers sync.WaitGroup
		won := make(chan string, 8)
		for i := range 8 {
			writers.Go(func() {
				name := fmt.Sprint(i)
				if written, err := New(c, root).Write(t.Context(), 0, map[string]Write{name: {1, []byte(name), []byte("1")}}); err != nil {
					t.Error(err)
				} else if written {
					won <- name
				}
			})
		}
		writers.Wait()
		set, err := New(c, root).Read(t.Context())
		if err != nil || len(won) != 1 || set.Documents[<-won] == "" || set.Version != 1 {
			t.Errorf("got %+v, %v", set, err)
		}
	})
}

func TestFollower(t *testing.T) {
	redistest.Each(t, func(t *testing.T, c *redis.Client) {
		s := New(c, root)
		for name, poll := range map[string]time.Duration{"by notice": time.Hour, "by polling": 5 * time.Millisecond} {
			f := NewFollower(poll)
			ctx, cancel := context.WithCancel(t.Context())
			looked, done := make(chan int64, 1000), make(chan struct{})
			go func() {
				f.Run(ctx, s, func(ctx context.Context) {
					version, err := s.Version(ctx)
					if err == nil && len(looked) < cap(looked) {
						looked <- version
					}
				})
				close(done)
			}()
			before := <-looked
			f.Wake()
			f.Wake() // does not wait
			<-looked
			write(t, s, before, map[string]Write{"a": {1, []byte("A"), []byte("1")}}, true)
			for version := range looked {
				if version > before {
					break
				}
			}
			cancel()
			select {
			case <-done:
			case <-time.After(30 * time.Second):
				t.Fatalf("%s: it does not end", name)
			}
		}
	})
}

func TestBadAnswers(t *testing.T) {
	none := []any{}
	for _, answer := range [][]any{
		{}, {1, none, none}, {"x", none, none}, {"1", []any{"a"}, none}, {"1", []any{"a", 1}, none}, {"1", "a", none}, {"1", none, []any{"a", "x"}}, {"1", none, "a"},
	} {
		if set, err := parse(answer); err == nil {
			t.Errorf("%v was read as %+v", answer, set)
		}
	}
	c := redis.NewClient(&redis.Options{Addr: redistest.FreeAddr(t), MaxRetries: -1})
	t.Cleanup(func() { _ = c.Close() })
	s := New(c, root)
	_, readErr := s.Read(t.Context())
	_, versionErr := s.Version(t.Context())
	_, getErr := s.Get(t.Context(), "a")
	_, writeErr := s.Write(t.Context(), 0, nil)
	_, historyErr := History[string](t.Context(), s, "a", 1)
	_, _, findErr := Find(t.Context(), s, "a", func(string) bool { return true })
	for i, err := range []error{readErr, versionErr, getErr, writeErr, historyErr, findErr} {
		if err == nil {
			t.Errorf("%d: nothing failed without Redis", i)
		}
	}
}
