package configtest

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/tollgate-proxy/tollgate/internal/app"
)

type sample struct {
	app.Base `yaml:",inline"`
	Greeting string `yaml:"greeting" doc:"What it says."`
}

type unexplained struct {
	Greeting string `yaml:"greeting"`
}

// What this package is there to catch, it catches.
func TestFaultsAreFound(t *testing.T) {
	root := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		name = filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := app.Process[sample]{Name: "sample", Defaults: func() sample { return sample{Base: app.DefaultBase("127.0.0.1:0")} }}
	want := func(what string, err error, fault bool) {
		t.Helper()
		if (err != nil) != fault {
			t.Errorf("%s: %v", what, err)
		}
	}
	want("no file", shipped(root, p), true)
	write("config/sample.yaml", "greeting: hi\n")
	want("a good file", shipped(root, p), false)
	p.Check = func(c sample) error { return errors.New("no greeting for " + c.Greeting) }
	want("a file that the process refuses", shipped(root, p), true)
	write("config/sample.yaml", "greeting: hi\nno_such_key: 1\n")
	want("an unknown key", shipped(root, p), true)

	want("no page", reference(root, p, false), true)
	want("a page written", reference(root, p, true), false)
	want("a page that is true", reference(root, p, false), false)
	p.Defaults = func() sample { return sample{Base: app.DefaultBase("127.0.0.1:0"), Greeting: "good day"} }
	want("a page of another default", reference(root, p, false), true)

	want("keys with a meaning", explained[sample](), false)
	want("a key without", explained[unexplained](), true)
}
