package ratelimit

import (
	"crypto/sha256"
	"encoding/base64"
)

// keyPrefix begins every bucket's key.
const keyPrefix = "tollgate:bucket:{"

// maxSubject is the longest subject that stands in a key as it is, in bytes.
// A longer one is replaced by its SHA-256.
const maxSubject = 160

// plain are the bytes that stand for themselves in a key. Every other byte,
// the separators among them, is written %XX, so that no value can end its
// place in the key and be taken for another.
var plain = func() (t [256]bool) {
	for c := '0'; c <= '9'; c++ {
		t[c] = true
	}
	for c := 'a'; c <= 'z'; c++ {
		t[c], t[c-'a'+'A'] = true, true
	}
	for _, c := range "-_.@+/,!*" {
		t[c] = true
	}
	return t
}()

func appendEscaped(b []byte, s string) []byte {
	const digits = "0123456789ABCDEF"
	for i := range len(s) {
		if c := s[i]; plain[c] {
			b = append(b, c)
		} else {
			b = append(b, '%', digits[c>>4], digits[c&15])
		}
	}
	return b
}

// appendSubjectKey appends the key of a subject's buckets up to the part that
// tells the limit: the prefix and the hash tag. kind separates name spaces: '~'
// for the tier table's users, ';' for descriptors of the rule tree.
func appendSubjectKey(b []byte, domain string, kind byte, entries []Entry) []byte {
	b = append(b, keyPrefix...)
	b = appendEscaped(b, domain)
	start := len(b)
	for _, e := range entries {
		b = append(b, kind)
		b = appendEscaped(b, e.Key)
		b = append(b, '=')
		b = appendEscaped(b, e.Value)
	}
	if len(b)-start > maxSubject {
		sum := sha256.Sum256(b[start:])
		b = append(b[:start], kind, '#')
		b = base64.RawURLEncoding.AppendEncode(b, sum[:])
	}
	return append(b, '}')
}

// systemKey is the same for a domain's system-wide limits.
func systemKey(domain string) string {
	return string(append(appendEscaped([]byte(keyPrefix), domain), "}:system"...))
}
