package anomaly

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/redis/go-redis/v9"
	"pgregory.net/rapid"

	"github.com/tollgate-proxy/tollgate/internal/redistest"
)

// onEach runs f over every store.
func onEach(t *testing.T, f func(t *testing.T, s Store)) {
	t.Run("memory", func(t *testing.T) { f(t, NewMemory()) })
	t.Run("redis-server", func(t *testing.T) { f(t, NewRedis(redistest.Client(t, redistest.Server(t)))) })
	t.Run("embedded", func(t *testing.T) { f(t, NewRedis(redistest.Client(t, redistest.Embedded(t)))) })
}

func fact(kind Kind, value string, after time.Duration) Fact {
	return Fact{Kind: kind, Value: value, First: at(after), Last: at(after), Count: 1}
}

func mustRecord(t testing.TB, s Store, user string, keep time.Duration, facts ...Fact) History {
	t.Helper()
	h, err := s.Record(t.Context(), user, facts, keep)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func mustHistory(t testing.TB, s Store, user string) History {
	t.Helper()
	h, err := s.History(t.Context(), user, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func expectFacts(t *testing.T, what string, got History, want ...Fact) {
	t.Helper()
	if diff := cmp.Diff(want, got.Facts, cmpopts.EquateEmpty(), cmpopts.EquateApproxTime(0)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func TestRecordTellsWhatWasKnownBefore(t *testing.T) {
	onEach(t, func(t *testing.T, s Store) {
		const user = "a{b}:c%"
		expectFacts(t, "first", mustRecord(t, s, user, day, fact(KindDevice, "d1", 0), fact(KindCountry, "DE", 0)))
		expectFacts(t, "second", mustRecord(t, s, user, day, fact(KindDevice, "d2", time.Hour)),
			fact(KindCountry, "DE", 0), fact(KindDevice, "d1", 0))
		again := fact(KindDevice, "d1", 0)
		again.Last = at(2 * time.Hour)
		expectFacts(t, "third", mustRecord(t, s, user, day, fact(KindDevice, "d1", 2*time.Hour)),
			fact(KindCountry, "DE", 0), fact(KindDevice, "d1", 0), fact(KindDevice, "d2", time.Hour))
		expectFacts(t, "now", mustHistory(t, s, user), fact(KindCountry, "DE", 0), again, fact(KindDevice, "d2", time.Hour))
		expectFacts(t, "another user", mustHistory(t, s, "a"))

		// A report that arrives late widens what is known, and never narrows it.
		mustRecord(t, s, user, day, fact(KindDevice, "d2", 30*time.Minute))
		late := fact(KindDevice, "d2", 30*time.Minute)
		late.Last = at(time.Hour)
		expectFacts(t, "late", mustHistory(t, s, user), fact(KindCountry, "DE", 0), again, late)

		// What was not seen for keep is gone.
		expectFacts(t, "next day", mustRecord(t, s, user, day, fact(KindDevice, "d1", 25*time.Hour+30*time.Minute)), again)
		h, err := s.History(t.Context(), user, at(30*time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		expectFacts(t, "since", h)
		if h, err := s.Record(t.Context(), user, nil, day); err != nil || len(h.Facts) > 0 {
			t.Errorf("no facts: %+v, %v", h, err)
		}
	})
}

func TestHoursCountOnceAnHour(t *testing.T) {
	onEach(t, func(t *testing.T, s Store) {
		count := func() int {
			hours, _ := func() (hoursOfDay, time.Time) { h := mustHistory(t, s, "u"); return h.hours() }()
			return hours[12]
		}
		for i, after := range []time.Duration{0, time.Minute, 59 * time.Minute, day, day + time.Second, 2 * day} {
			mustRecord(t, s, "u", 30*day, fact(KindHour, "12", after))
			if want := []int{1, 1, 1, 2, 2, 3}[i]; count() != want {
				t.Fatalf("after %s: %d, want %d", after, count(), want)
			}
		}
		// Habits change: past the bound everything counts half, and what counted once is forgotten.
		mustRecord(t, s, "u", 1000*day, fact(KindHour, "3", 3*day))
		for d := 4; d < maxCount+2; d++ {
			mustRecord(t, s, "u", 1000*day, fact(KindHour, "12", time.Duration(d)*day))
		}
		if n := count(); n != (maxCount+1)/2 || len(mustHistory(t, s, "u").Facts) != 1 {
			t.Errorf("%d, %+v", n, mustHistory(t, s, "u"))
		}
	})
}

func TestKindsAreBounded(t *testing.T) {
	onEach(t, func(t *testing.T, s Store) {
		for _, kind := range []Kind{KindCountry, KindAddress} {
			for i := range kind.most() + 3 {
				mustRecord(t, s, "u", day, fact(kind, strconv.Itoa(i), time.Duration(i)*time.Second))
			}
		}
		// One that comes late is kept: it was seen last, whatever its time.
		mustRecord(t, s, "u", day, fact(KindCountry, "late", 0))
		counts := map[Kind]int{}
		h := mustHistory(t, s, "u")
		for _, f := range h.Facts {
			counts[f.Kind]++
		}
		if counts[KindCountry] != KindCountry.most() || counts[KindAddress] != KindAddress.most() {
			t.Errorf("%v", counts)
		}
		if h.find(KindCountry, "2") != nil || h.find(KindCountry, "late") == nil || h.find(KindAddress, "2") != nil || h.find(KindAddress, "3") == nil {
			t.Errorf("%+v", h)
		}
	})
}

func TestAmend(t *testing.T) {
	onEach(t, func(t *testing.T, s Store) {
		mustRecord(t, s, "u", day, fact(KindDevice, "old", 0), fact(KindDevice, "again", 0))
		mustRecord(t, s, "u", day, fact(KindDevice, "new", time.Hour), fact(KindDevice, "again", time.Hour), fact(KindCountry, "US", time.Hour))
		err := s.Amend(t.Context(), "u", Amendment{
			At:       at(time.Hour),
			Withdraw: []Fact{fact(KindDevice, "new", 0), fact(KindDevice, "again", 0), fact(KindDevice, "never", 0)},
			Vouch:    []Fact{fact(KindCountry, "US", 0), fact(KindDevice, "old", 0), fact(KindCountry, "never", 0)},
			Since:    at(30 * time.Minute),
		})
		if err != nil {
			t.Fatal(err)
		}
		again, us := fact(KindDevice, "again", 0), fact(KindCountry, "US", 30*time.Minute)
		again.Last, us.Last = at(time.Hour), at(time.Hour)
		expectFacts(t, "amended", mustHistory(t, s, "u"), us, again, fact(KindDevice, "old", 0))
		if err := s.Amend(t.Context(), "u", Amendment{}); err != nil {
			t.Error(err)
		}
		if err := s.Amend(t.Context(), "nobody", Amendment{Withdraw: []Fact{us}, Vouch: []Fact{us}}); err != nil || len(mustHistory(t, s, "nobody").Facts) > 0 {
			t.Error(err)
		}
	})
}

func TestEvents(t *testing.T) {
	onEach(t, func(t *testing.T, s Store) {
		add := func(key string, after time.Duration) bool {
			t.Helper()
			added, err := s.Append(t.Context(), "u:{}", Event{
				At: at(after), Session: "s", Score: 50, Action: StepUp, Country: "DE", ASN: 1, Range: "192.0.2.0/24",
				Signals: []Signal{{NewDevice, 15, "a b  c"}}, key: key,
			}, time.Hour, day)
			if err != nil {
				t.Fatal(err)
			}
			return added
		}
		list := func(since time.Duration) []Event {
			t.Helper()
			events, err := s.Events(t.Context(), "u:{}", at(since))
			if err != nil {
				t.Fatal(err)
			}
			return events
		}
		for i, c := range []struct {
			key   string
			after time.Duration
			want  bool
		}{
			{"k1", 0, true}, {"k1", time.Minute, false}, {"k2", time.Minute, true}, {"k1", 59 * time.Minute, false},
			{"k1", time.Hour, true}, {"k1", time.Hour + time.Minute, false},
		} {
			if add(c.key, c.after) != c.want {
				t.Errorf("%d: added %v", i, !c.want)
			}
		}
		want := Event{
			At: at(time.Hour), Session: "s", Score: 50, Action: StepUp, Country: "DE", ASN: 1, Range: "192.0.2.0/24",
			Signals: []Signal{{NewDevice, 15, "a b  c"}}, key: "k1",
		}
		events := list(0)
		if len(events) != 3 {
			t.Fatalf("%+v", events)
		}
		if diff := cmp.Diff(want, events[0], cmp.AllowUnexported(Event{}), cmpopts.EquateApproxTime(0)); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if events := list(30 * time.Minute); len(events) != 1 {
			t.Errorf("since: %+v", events)
		}
		for i := range maxEvents + 5 {
			add("many"+strconv.Itoa(i), 2*time.Hour)
		}
		if events := list(0); len(events) != maxEvents {
			t.Errorf("%d events", len(events))
		}
		add("nextday", 27*time.Hour)
		if events := list(0); len(events) != 1 || events[0].key != "nextday" {
			t.Errorf("old events stay: %d", len(events))
		}
		mustRecord(t, s, "u:{}", day, fact(KindDevice, "d", 0))
		if err := s.Erase(t.Context(), "u:{}"); err != nil {
			t.Fatal(err)
		}
		if len(list(0)) != 0 || len(mustHistory(t, s, "u:{}").Facts) != 0 {
			t.Error("something is left")
		}
	})
}

// Of many that see something new at once, exactly one is told that nothing was known.
func TestRecordIsAtomic(t *testing.T) {
	onEach(t, func(t *testing.T, s Store) {
		const n = 20
		sizes := make([]int, n)
		var all sync.WaitGroup
		for i := range n {
			all.Go(func() {
				h, err := s.Record(context.Background(), "u", []Fact{fact(KindAddress, strconv.Itoa(i), 0)}, day)
				if err != nil {
					t.Error(err)
				}
				sizes[i] = len(h.Facts)
			})
		}
		all.Wait()
		seen := map[int]bool{}
		for _, size := range sizes {
			seen[size] = true
		}
		if len(seen) != n {
			t.Errorf("%v", sizes)
		}
	})
}

// The script and the twin in memory do the same, whatever is asked of them.
func TestStoresAgree(t *testing.T) {
	for name, addr := range map[string]string{"redis-server": redistest.Server(t), "embedded": redistest.Embedded(t)} {
		t.Run(name, func(t *testing.T) {
			s, round := NewRedis(redistest.Client(t, addr)), 0
			rapid.Check(t, func(rt *rapid.T) {
				round++
				user, twin := "u"+strconv.Itoa(round), NewMemory()
				minutes := 0
				for range rapid.IntRange(1, 40).Draw(rt, "operations") {
					minutes += rapid.IntRange(-30, 300).Draw(rt, "step")
					after := time.Duration(minutes) * time.Minute
					var facts []Fact
					for range rapid.IntRange(1, 4).Draw(rt, "facts") {
						kind := rapid.SampledFrom([]Kind{KindDevice, KindPlace, KindHour, KindCountry}).Draw(rt, "kind")
						facts = append(facts, fact(kind, strconv.Itoa(rapid.IntRange(0, 23).Draw(rt, "value")), after))
					}
					if rapid.IntRange(0, 4).Draw(rt, "amend") == 0 {
						a := Amendment{At: at(after), Withdraw: facts[:1], Vouch: facts, Since: at(after - 3*time.Hour)}
						if err := errors.Join(s.Amend(context.Background(), user, a), twin.Amend(context.Background(), user, a)); err != nil {
							rt.Fatal(err)
						}
						continue
					}
					got, err := s.Record(context.Background(), user, facts, day)
					if err != nil {
						rt.Fatal(err)
					}
					want, _ := twin.Record(context.Background(), user, facts, day)
					if diff := cmp.Diff(want, got, cmpopts.EquateEmpty(), cmpopts.EquateApproxTime(0)); diff != "" {
						rt.Fatalf("(-memory +redis):\n%s", diff)
					}
				}
			})
		})
	}
}

func TestRedisKeysExpireAndShareASlot(t *testing.T) {
	redistest.Each(t, func(t *testing.T, c *redis.Client) {
		s := NewRedis(c)
		mustRecord(t, s, "u{x}", day, fact(KindDevice, "d", 0))
		if _, err := s.Append(t.Context(), "u{x}", Event{At: at(0), key: "k"}, time.Hour, day); err != nil {
			t.Fatal(err)
		}
		keys, err := c.Keys(t.Context(), "*").Result()
		if err != nil || len(keys) != 2 {
			t.Fatalf("%v, %v", keys, err)
		}
		for _, k := range keys {
			if ttl := c.PTTL(t.Context(), k).Val(); ttl <= 23*time.Hour || ttl > day {
				t.Errorf("%s expires in %s", k, ttl)
			}
		}
		want := []string{"tollgate:anomaly:{u%7Bx%7D}:events", "tollgate:anomaly:{u%7Bx%7D}:facts"}
		if diff := cmp.Diff(want, keys, cmpopts.SortSlices(func(a, b string) bool { return a < b })); diff != "" {
			t.Error(diff)
		}
		// What another version wrote is passed over.
		c.HSet(t.Context(), factsKey("u{x}"), "d:broken", "1 2", "x", "1 2 3", "d:nan", "a b c")
		c.LPush(t.Context(), eventsKey("u{x}"), "nonsense", "1 k {")
		if h := mustHistory(t, s, "u{x}"); len(h.Facts) != 1 {
			t.Errorf("%+v", h)
		}
		if events, err := s.Events(t.Context(), "u{x}", time.Time{}); err != nil || len(events) != 1 {
			t.Errorf("%+v, %v", events, err)
		}
	})
}

func TestRedisAway(t *testing.T) {
	s := NewRedis(redistest.Client(t, redistest.FreeAddr(t)))
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	_, err1 := s.Record(ctx, "u", []Fact{fact(KindDevice, "d", 0)}, day)
	err2 := s.Amend(ctx, "u", Amendment{Withdraw: []Fact{{}}})
	_, err3 := s.Append(ctx, "u", Event{}, day, day)
	_, err4 := s.History(ctx, "u", start)
	_, err5 := s.Events(ctx, "u", start)
	for i, err := range []error{err1, err2, err3, err4, err5, s.Erase(ctx, "u")} {
		if !errors.Is(err, ErrUnavailable) {
			t.Errorf("%d: %v", i, err)
		}
	}
}
