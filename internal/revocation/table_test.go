package revocation

import (
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// The table agrees with a map under any sequence of merges and sweeps.
func TestTableAgreesWithAMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		table, model := newTable(), map[fingerprint]uint64{}
		names := rapid.Custom(func(t *rapid.T) fingerprint {
			// Few hi words, so that fingerprints that share one occur.
			return fingerprint{
				hi: rapid.Uint64Range(1, 3).Draw(t, "hi"),
				lo: rapid.Uint64Range(0, 60).Draw(t, "lo"),
			}
		})
		t.Repeat(map[string]func(*rapid.T){
			"merge": func(t *rapid.T) {
				f, word := names.Draw(t, "name"), rapid.Uint64Range(0, 100).Draw(t, "word")
				old, known := model[f]
				changed, refused := table.merge(f, word, 0, larger)
				if refused {
					t.Fatal("refused without a limit")
				}
				if want := !known || word > old; changed != want {
					t.Fatalf("changed = %v, want %v", changed, want)
				}
				model[f] = max(old, word)
			},
			"sweep": func(t *rapid.T) {
				below := rapid.Uint64Range(0, 100).Draw(t, "below")
				table.sweep(func(_ fingerprint, word uint64) bool { return word < below })
				for f, word := range model {
					if word < below {
						delete(model, f)
					}
				}
			},
			"": func(t *rapid.T) {
				held := map[fingerprint]uint64{}
				for shard := range shardCount {
					table.each(shard, func(f fingerprint, word uint64) { held[f] = word })
				}
				if diff := cmp.Diff(model, held, cmp.AllowUnexported(fingerprint{})); diff != "" {
					t.Fatalf("contents (-want +got):\n%s", diff)
				}
				if table.len() != len(model) {
					t.Fatalf("len = %d, want %d", table.len(), len(model))
				}
				f := names.Draw(t, "asked")
				want, known := model[f]
				if got, found := table.get(f); found != known || got != want {
					t.Fatalf("get(%v) = %d, %v, want %d, %v", f, got, found, want, known)
				}
			},
		})
	})
}

// What was once put in is found by every reader from then on, while the table grows and is swept under them.
func TestTableReadersNeverMissWhatIsThere(t *testing.T) {
	table := newTable()
	const kept, churn = 2_000, 10_000
	name := func(i int) fingerprint { return fingerprint{hi: uint64(i) + 1, lo: uint64(i) * 0x9e3779b97f4a7c15} }
	for i := range kept {
		table.merge(name(i), 2, 0, larger)
	}
	done := make(chan struct{})
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				i := rand.IntN(kept)
				if word, found := table.get(name(i)); !found || word < 2 {
					t.Errorf("entry %d: found %v, word %d", i, found, word)
					return
				}
			}
		})
	}
	for i := kept; i < kept+churn; i++ {
		table.merge(name(i), 1, 0, larger)
		table.merge(name(i%kept), uint64(2+i/kept), 0, larger)
		if i%4_000 == 0 {
			table.sweep(func(_ fingerprint, word uint64) bool { return word < 2 })
		}
	}
	close(done)
	readers.Wait()
	table.sweep(func(_ fingerprint, word uint64) bool { return word < 2 })
	if table.len() != kept {
		t.Errorf("len = %d after the sweep, want %d", table.len(), kept)
	}
}

func TestTableRefusesWhatIsBeyondTheLimit(t *testing.T) {
	table := newTable()
	for i := range uint64(10) {
		_, refused := table.merge(fingerprint{hi: i + 1}, 1, 8, larger)
		if want := i >= 8; refused != want {
			t.Errorf("entry %d: refused = %v, want %v", i, refused, want)
		}
	}
	if changed, refused := table.merge(fingerprint{hi: 1}, 9, 8, larger); !changed || refused {
		t.Errorf("a known entry: changed %v, refused %v, want true, false", changed, refused)
	}
}

func TestTableShrinksAfterASweep(t *testing.T) {
	table := newTable()
	for range 20_000 {
		table.merge(fingerprint{hi: rand.Uint64() | 1, lo: rand.Uint64()}, 1, 0, larger)
	}
	full := table.bytes()
	table.sweep(func(fingerprint, uint64) bool { return true })
	if got := table.bytes(); got > full/10 {
		t.Errorf("%d bytes after everything went, %d before", got, full)
	}
}

// Memory is at most 64 bytes an entry at every moment, so that a million take less than 64 MiB: BenchmarkMillion shows
// the figure itself.
func TestTableMemory(t *testing.T) {
	table := newTable()
	random := rand.New(rand.NewPCG(1, 2))
	for i := range 100_000 {
		table.merge(fingerprint{hi: random.Uint64() | 1, lo: random.Uint64()}, 1, 0, larger)
		if n := int64(i + 1); n >= 20_000 && n%1_000 == 0 && table.bytes() > 64*n {
			t.Fatalf("%d bytes at %d entries", table.bytes(), n)
		}
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	held := table.bytes()
	runtime.KeepAlive(table) // it is dead from here on
	runtime.GC()
	runtime.ReadMemStats(&after)
	if freed := int64(before.HeapAlloc) - int64(after.HeapAlloc); freed > held*11/10 {
		t.Errorf("the heap gave back %d bytes, bytes() said %d", freed, held)
	}
}
