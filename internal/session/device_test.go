package session

import (
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func TestDescribe(t *testing.T) {
	devices, err := NewDevices()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ give, want Device }{
		"nothing": {},
		"desktop": {
			Device{UserAgent: "Mozilla/5.0 (X11; Linux x86_64; rv:133.0) Gecko/20100101 Firefox/133.0"},
			Device{Name: "Firefox 133 on Linux", Browser: "Firefox 133", System: "Linux"},
		},
		"windows": {
			Device{UserAgent: "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36 Edg/131.0.0.0"},
			Device{Name: "Edge 131 on Windows 10", Browser: "Edge 131", System: "Windows 10"},
		},
		"phone": {
			Device{UserAgent: "Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.1 Mobile/15E148 Safari/604.1"},
			Device{Name: "Mobile Safari 18 on iPhone", Browser: "Mobile Safari 18", System: "iOS 18", Model: "iPhone"},
		},
		"tool":         {Device{UserAgent: "curl/8.5.0"}, Device{Name: "curl 8", Browser: "curl 8"}},
		"unknown":      {Device{UserAgent: "x"}, Device{}},
		"named by app": {Device{Name: "Anna's phone", Model: "P9", UserAgent: "curl/8.5.0"}, Device{Name: "Anna's phone", Model: "P9", Browser: "curl 8"}},
		"no browser": {
			Device{UserAgent: "Dalvik/2.1.0 (Linux; U; Android 15; Pixel 9 Build/X)"},
			Device{Name: "Android 15 on Pixel 9", Browser: "Android 15", System: "Android 15", Model: "Pixel 9"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			c.want.UserAgent = c.give.UserAgent
			if diff := cmp.Diff(c.want, devices.Describe(c.give)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestUserAgentIsCleaned(t *testing.T) {
	for give, want := range map[string]string{
		" a\r\nb\x00c\xff ":            "abc",
		strings.Repeat("é", 300):       strings.Repeat("é", 256),
		"x" + strings.Repeat("é", 300): "x" + strings.Repeat("é", 255),
	} {
		if got := clean(give); got != want {
			t.Errorf("clean(%q) = %q, want %q", give, got, want)
		}
	}
}

// Any user agent can be described, also by many at a time, and what comes out fits a session.
func FuzzDescribe(f *testing.F) {
	devices, err := NewDevices()
	if err != nil {
		f.Fatal(err)
	}
	f.Add("Mozilla/5.0 (Linux; Android 15; Pixel 9) AppleWebKit/537.36")
	f.Add(strings.Repeat("(", 5000))
	f.Add("\x00\xff")
	f.Fuzz(func(t *testing.T, agent string) {
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				s := Session{Ref: ref("s"), User: "u", Device: devices.Describe(Device{UserAgent: agent})}
				if err := s.Validate(); err != nil {
					t.Error(err)
				}
				if !utf8.ValidString(s.Device.Name) {
					t.Errorf("name %q is not UTF-8", s.Device.Name)
				}
			})
		}
		wg.Wait()
	})
}
