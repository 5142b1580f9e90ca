package pyproxy

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestTemplates(t *testing.T) {
	for _, tc := range []struct {
		template, path string
		want           bool
	}{
		{"/", "/", true}, {"/a", "/a", true}, {"/a", "/b", false}, {"/a", "/a/", false}, {"/a/", "/a", false},
		{"/{x}", "/a", true}, {"/{x}", "/", false}, {"/{x}", "/a/b", false}, {"/{x}", "/..", false}, {"/{x}", "/.", false},
		{"/{x}", "/a b'ä", true}, {"/{x}", "/a\nb", false}, {"/{x}", "/a\x00", false}, {"/{x}", "/a\x7f", false}, {"/{x}", `/..\..`, false},
		{"/a/{x}/b", "/a/q/b", true}, {"/a/{x}/b", "/a//b", false}, {"/a/{x}/{y}", "/a/1/2", true},
	} {
		if got := matches(tc.template, tc.path); got != tc.want {
			t.Errorf("matches(%q, %q) = %v", tc.template, tc.path, got)
		}
	}
}

func TestValidTemplate(t *testing.T) {
	for path, want := range map[string]bool{"/": true, "/a/{b}": true, "/a-b_c.d~e": true, "": false, "a": false, "/a//b": false, "/a/": false,
		"/{": false, "/{A}": false, "/a{b}": false, "/a?b": false, "/%61": false, "/..": false, "/a b": false} {
		if got := validTemplate(path); got != want {
			t.Errorf("%q: %v", path, got)
		}
	}
}

// Two templates that one path matches are found to overlap.
func TestOverlapFindsWhatMatches(t *testing.T) {
	segment := rapid.SampledFrom([]string{"a", "b", "{x}"})
	rapid.Check(t, func(t *rapid.T) {
		draw := func(name string) string {
			return "/" + strings.Join(rapid.SliceOfN(segment, 1, 3).Draw(t, name), "/")
		}
		a, b := draw("a"), draw("b")
		path := "/" + strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c"}), 1, 3).Draw(t, "path"), "/")
		if matches(a, path) && matches(b, path) && !overlap(a, b) {
			t.Fatalf("%s and %s both match %s", a, b, path)
		}
	})
}
