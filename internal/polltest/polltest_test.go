package polltest

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// fatal notes how a test was ended.
type fatal struct {
	testing.TB
	text string
}

func (f *fatal) Fatalf(format string, a ...any) {
	f.text = fmt.Sprintf(format, a...)
	panic(f)
}

func TestUntil(t *testing.T) {
	for _, c := range []struct {
		name  string
		after int // how often it is asked in vain
		want  string
	}{
		{"at once", 0, ""},
		{"later", 100, ""},
		{"never", 1e6, "not so within 1m0s: the moon is full"},
	} {
		synctest.Test(t, func(t *testing.T) {
			asked, began, f := 0, time.Now(), &fatal{TB: t}
			func() {
				defer func() {
					if p := recover(); p != nil && p != f {
						panic(p)
					}
				}()
				Until(f, "the moon is full", func() bool { asked++; return asked > c.after })
			}()
			took := time.Since(began)
			if f.text != c.want || (took == Patience) != (c.want != "") || took > Patience || c.after == 0 && took != 0 {
				t.Errorf("%s: %q after %s", c.name, f.text, took)
			}
		})
	}
}
