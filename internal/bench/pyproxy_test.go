package main

import (
	"bytes"
	"os"
	"os/exec"
	"regexp"
	"testing"
	"time"
)

// The whole of it, once, short: no figure is asserted.
func TestPyproxyRun(t *testing.T) {
	bin := t.TempDir()
	if out, err := exec.Command("go", "build", "-o", bin+"/", "../../cmd/pyproxy").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	s := &settings{runs: 1, window: 100 * time.Millisecond, warm: 50 * time.Millisecond, bin: bin, work: t.TempDir(), self: self, clients: 64, out: &out}
	if err := s.pyproxy(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`bare +\d`, `pyproxy, kept +\d`, `ratio to bare: \d`, `p99 added at 1000/s: -?\d`, `s = 1.1: 100.0%`, `1 GiB in \d`, `64 keep-alive connections: \d+ MiB in use`} {
		if !regexp.MustCompile(want).MatchString(out.String()) {
			t.Errorf("no %s in %s", want, &out)
		}
	}
}

// The sample is skewed as the law says: most requests are for few keys, and not
// for one alone.
func TestZipf(t *testing.T) {
	counts := map[string]int{}
	sample := zipf(questions())
	for _, r := range sample {
		counts[string(r)]++
	}
	first := counts[string(asEnvoy("/kept", 0))]
	if len(counts) < zipfKeys/2 || first < len(sample)/20 || first > len(sample)/2 {
		t.Errorf("%d keys, the first %d times of %d", len(counts), first, len(sample))
	}
}
