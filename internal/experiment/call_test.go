package experiment

import (
	"errors"
	"fmt"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/redistest"
)

func newCall(t *testing.T, d *Definition, id, content string) *Call {
	t.Helper()
	c, err := NewCall(d, id, []byte(content))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A call that is repeated counts once, also where it takes several batches of
// which some had been written; another id is another call.
func TestCall(t *testing.T) {
	redistest.Each(t, func(t *testing.T, c *redis.Client) {
		d, s := valid(), NewStore(c)
		recorder, _ := newRecorder(t, c)
		d.Primary.Kind = Sum
		met := newBatch(t, d)
		for i := range 900 {
			if err := met.Expose(fmt.Sprint(i), i%2); err != nil {
				t.Fatal(err)
			}
		}
		write(t, s, met)
		call := func(id string) *Call {
			c := newCall(t, d, id, "all of them")
			for i := range 900 {
				if err := errors.Join(c.Report(d, fmt.Sprint(i), i%2, Value{"conversion", 1}), c.Before(d, fmt.Sprint("before ", i), Value{"conversion", 1})); err != nil {
					t.Fatal(err)
				}
			}
			return c
		}
		first := call("a}:b")
		if len(first.batches) < 2 {
			t.Fatal("one batch")
		}
		write(t, s, first.batches[0])
		for range 2 {
			if err := recorder.WriteCall(t.Context(), call("a}:b")); err != nil {
				t.Fatal(err)
			}
		}
		if m := read(t, s, d)[0].Metrics["conversion"].Users; m.N != 450 || !near(m.Mean, 1, 1e-9) {
			t.Errorf("got %+v", m)
		}
		if got := c.HGet(t.Context(), keyOf(d, "before"), "conversion "+met.hash("before 7")).Val(); got != "1 1 1" {
			t.Errorf("before: %s", got)
		}
		if err := recorder.WriteCall(t.Context(), call("b")); err != nil {
			t.Fatal(err)
		}
		if m := read(t, s, d)[0].Metrics["conversion"].Users; m.N != 450 || !near(m.Mean, 2, 1e-9) {
			t.Errorf("got %+v", m)
		}
		if err := newCall(t, d, "x", "").Report(d, "ann", 0, Value{"weight", 1}); err == nil {
			t.Error("an unknown metric was taken")
		}
	})
}

// An id stands for one content: with another it is refused, and nothing is
// written, even where nothing of the first call counted.
func TestCallReused(t *testing.T) {
	redistest.Each(t, func(t *testing.T, c *redis.Client) {
		d := valid()
		recorder, _ := newRecorder(t, c)
		if err := recorder.WriteCall(t.Context(), newCall(t, d, "order", "of nobody")); err != nil {
			t.Fatal(err)
		}
		other := newCall(t, d, "order", "of ann")
		if err := other.Before(d, "ann", Value{"conversion", 1}); err != nil {
			t.Fatal(err)
		}
		if err := recorder.WriteCall(t.Context(), other); !errors.Is(err, ErrReused) {
			t.Errorf("got %v", err)
		}
		if n := c.Exists(t.Context(), keyOf(d, "before")).Val(); n != 0 {
			t.Error("the other call was written")
		}
		if err := recorder.WriteCall(t.Context(), newCall(t, d, "order", "of nobody")); err != nil {
			t.Errorf("the first call again: %v", err)
		}
	})
}

// Users who change the variant are told of, however they are reported.
func TestCallOfStrays(t *testing.T) {
	c := redistest.Client(t, redistest.Embedded(t))
	d := valid()
	recorder, log := newRecorder(t, c)
	recorder.Expose(d, "ann", 0)
	recorder.flush(t.Context())
	astray := newCall(t, d, "order", "")
	if err := astray.Report(d, "ann", 1, Value{"conversion", 1}); err != nil {
		t.Fatal(err)
	}
	for range 2 { // repeated, it is the same one
		if err := recorder.WriteCall(t.Context(), astray); err != nil {
			t.Fatal(err)
		}
	}
	if got := testutil.ToFloat64(recorder.strays); got != 1 || log.Count("changed the variant") != 1 {
		t.Errorf("%v strays; log:\n%s", got, log)
	}
}

func TestCallWithoutRedis(t *testing.T) {
	c := redis.NewClient(&redis.Options{Addr: redistest.FreeAddr(t), MaxRetries: -1})
	t.Cleanup(func() { _ = c.Close() })
	recorder, _ := newRecorder(t, c)
	if recorder.WriteCall(t.Context(), newCall(t, valid(), "x", "")) == nil {
		t.Error("a call was written without Redis")
	}
}
