package authn

import (
	"errors"
	"strings"
	"testing"
)

func TestExtract(t *testing.T) {
	all := SourcesConfig{Authorization: true, Header: "x-token", Cookie: "session"}
	for _, c := range []struct {
		name                          string
		sources                       SourcesConfig
		authorization, cookie, header string
		token                         string
		scheme                        Scheme
		code                          string
	}{
		{name: "nothing", sources: all, code: CodeMissing},
		{name: "bearer", sources: all, authorization: "Bearer abc", token: "abc"},
		{name: "any case", sources: all, authorization: "bEARER abc", token: "abc"},
		{name: "spaces", sources: all, authorization: "  Bearer   abc \t", token: "abc"},
		{name: "DPoP", sources: all, authorization: "DPoP abc", token: "abc", scheme: DPoP},
		{name: "two headers", sources: all, authorization: "Bearer abc,Bearer def", code: CodeMalformed},
		{name: "two headers, first foreign", sources: all, authorization: "Basic abc, Bearer def", code: CodeMalformed},
		{name: "comma alone", sources: all, authorization: ",", code: CodeMalformed},
		{name: "no token", sources: all, authorization: "Bearer", code: CodeMalformed},
		{name: "no token but spaces", sources: all, authorization: "Bearer   ", code: CodeMalformed},
		{name: "two tokens", sources: all, authorization: "Bearer abc def", code: CodeMalformed},
		{name: "tab", sources: all, authorization: "Bearer a\tb", code: CodeMalformed},
		{name: "foreign scheme", sources: all, authorization: "Basic abc", code: CodeMissing},
		{name: "foreign scheme and cookie", sources: all, authorization: "Basic abc", cookie: "session=xyz", token: "xyz"},
		{name: "scheme without space", sources: all, authorization: "Bearerabc", code: CodeMissing},
		{name: "bad authorization wins over cookie", sources: all, authorization: "Bearer ", cookie: "session=xyz", code: CodeMalformed},
		{name: "authorization off", sources: SourcesConfig{Cookie: "session"}, authorization: "Bearer abc", cookie: "session=xyz", token: "xyz"},
		{name: "header", sources: all, header: " abc ", cookie: "session=xyz", token: "abc"},
		{name: "header twice", sources: all, header: "abc,def", code: CodeMalformed},
		{name: "header off", sources: SourcesConfig{Authorization: true}, header: "abc", code: CodeMissing},
		{name: "authorization before header", sources: all, authorization: "Bearer abc", header: "def", token: "abc"},
		{name: "cookie", sources: all, cookie: "a=b; session=abc; c=d", token: "abc"},
		{name: "cookie with spaces", sources: all, cookie: "a=b;session = abc ", token: "abc"},
		{name: "cookie of another case", sources: all, cookie: "Session=abc", code: CodeMissing},
		{name: "cookie of a longer name", sources: all, cookie: "mysession=abc; session2=abc", code: CodeMissing},
		{name: "cookie without value", sources: all, cookie: "session=; session", code: CodeMissing},
		{name: "cookie twice", sources: all, cookie: "session=abc; session=def", code: CodeMalformed},
		{name: "cookie headers joined", sources: all, cookie: "session=abc,session=def", code: CodeMalformed},
		{name: "cookie off", sources: SourcesConfig{Authorization: true}, cookie: "session=abc", code: CodeMissing},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := c.sources.Extract(c.authorization, c.cookie, c.header)
			if c.code == "" {
				if err != nil || got.Token != c.token || got.Scheme != c.scheme {
					t.Errorf("got %+v, %v, want %q", got, err, c.token)
				}
				return
			}
			var e *Error
			if !errors.As(err, &e) || e.Code != c.code || got != (Credential{}) {
				t.Errorf("got %+v, %v, want %s", got, err, c.code)
			}
		})
	}
}

// FuzzExtract: whatever is found is one word of the header it was found in.
func FuzzExtract(f *testing.F) {
	f.Add("Bearer abc", "", "")
	f.Add("DPoP a b", "session=x; session=y", ",")
	f.Add("Basic,", "session==;;=", "\x00")
	s := SourcesConfig{Authorization: true, Header: "x-token", Cookie: "session"}
	f.Fuzz(func(t *testing.T, authorization, cookie, header string) {
		got, err := s.Extract(authorization, cookie, header)
		if err != nil {
			if got != (Credential{}) {
				t.Fatalf("%+v with %v", got, err)
			}
			return
		}
		if got.Token == "" && header == "" || strings.ContainsRune(got.Token, ',') {
			t.Fatalf("token %q", got.Token)
		}
		if !strings.Contains(authorization+"\x00"+cookie+"\x00"+header, got.Token) {
			t.Fatalf("token %q is in no header", got.Token)
		}
	})
}

func BenchmarkExtract(b *testing.B) {
	s := SourcesConfig{Authorization: true}
	value := "Bearer " + strings.Repeat("a", 700)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Extract(value, "", ""); err != nil {
			b.Fatal(err)
		}
	}
}
