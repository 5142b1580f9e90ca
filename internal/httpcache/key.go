package httpcache

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"net/http"
	"strings"
)

// key identifies an entry. It is a cryptographic hash, so that no client can
// make two requests meet in one entry.
type key [sha256.Size]byte

const flagsHeader = "X-Feature-Flags"

// keyed are part of every key.
func keyed() [3]string { return [3]string{"Accept", "Content-Type", "Content-Encoding"} }

// passed reach the service although no key has them: they name the exchange, and
// a service that answers differently for them is beyond help.
func passed() [3]string { return [3]string{"Traceparent", "Tracestate", requestID} }

const requestID = "X-Request-Id"

// request is what a policy makes of a request: its key, and the headers that
// the service gets.
func (p *Policy) request(r *http.Request, body []byte, epoch string) (key, http.Header) {
	s := sha256.New()
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	write(s, p.Route, epoch, method, r.URL.Path, r.URL.RawQuery, string(body))
	always := keyed()
	out := make(http.Header, len(always)+len(p.Vary)+6)
	for _, names := range [2][]string{always[:], p.Vary} {
		for _, name := range names {
			v := r.Header[name]
			write(s, name) // entries outlive the configuration that they were kept under
			count(s, len(v))
			write(s, v...)
			if v != nil {
				out[name] = v
			}
		}
	}
	if len(p.Flags) > 0 {
		flags := p.pack(r.Header.Get(flagsHeader))
		write(s, flagsHeader, flags)
		if flags != "" {
			out[flagsHeader] = []string{flags}
		}
	}
	for _, name := range passed() {
		if v := r.Header[name]; v != nil {
			out[name] = v
		}
	}
	out["User-Agent"] = []string{""} // net/http would add its own
	var k key
	s.Sum(k[:0])
	return k, out
}

// pack keeps of packed flags those that the policy names.
func (p *Policy) pack(packed string) string {
	var kept []string
	for flag := range strings.SplitSeq(packed, ",") {
		name, _, _ := strings.Cut(flag, "=")
		for _, f := range p.Flags {
			if f == strings.TrimSpace(name) {
				kept = append(kept, strings.TrimSpace(flag))
			}
		}
	}
	return strings.Join(kept, ",")
}

// write adds fields with their lengths, so that no two lists of fields are one
// sequence of bytes.
func write(s hash.Hash, fields ...string) {
	for _, f := range fields {
		count(s, len(f))
		_, _ = s.Write([]byte(f)) // a hash never fails
	}
}

func count(s hash.Hash, n int) {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], uint64(n))
	_, _ = s.Write(b[:])
}
