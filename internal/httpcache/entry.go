package httpcache

import (
	"bytes"
	"compress/flate"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// entry is one stored answer. It is never changed once stored.
type entry struct {
	Status int
	Header http.Header
	Body   []byte
	Stored time.Time
	Fresh  time.Time // until when it is fresh
	SIE    time.Time // until when it may stand in for a failing service
	SWR    time.Time // until when it may be used while a fresh one is fetched
	Age    time.Duration

	// pass marks, in memory only, a key whose last answer could not be kept:
	// until Fresh, requests for it do not wait for one another.
	pass bool
}

// passFor is how long such a mark lasts.
const passFor = 5 * time.Second

func newEntry(status int, h http.Header, body []byte, l lifetime, now time.Time) *entry {
	h = h.Clone()
	for _, v := range h["Connection"] { // nor is what it names for anyone but us (RFC 9111, section 3.1)
		for name := range strings.SplitSeq(v, ",") {
			h.Del(strings.TrimSpace(name))
		}
	}
	for _, name := range []string{"Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Age", "Content-Length", requestID} {
		delete(h, name)
	}
	return &entry{Status: status, Header: h, Body: body, Stored: now, Fresh: now.Add(l.fresh), SIE: now.Add(l.fresh + l.sie), SWR: now.Add(l.fresh + l.swr), Age: age(h, now)}
}

// size is the memory that an entry takes, roughly.
func (e *entry) size() int64 {
	n := 400 + len(e.Body)
	for name, vs := range e.Header {
		n += len(name) + 64
		for _, v := range vs {
			n += len(v) + 16
		}
	}
	return int64(n)
}

// last is until when the entry is of any use; one with a validator may be
// revalidated for as long again as it was fresh, at least a minute.
func (e *entry) last() time.Time {
	end := e.Fresh
	for _, t := range []time.Time{e.SIE, e.SWR} {
		if t.After(end) {
			end = t
		}
	}
	if e.validator() {
		if t := e.Fresh.Add(max(e.Fresh.Sub(e.Stored), time.Minute)); t.After(end) {
			end = t
		}
	}
	return end
}

func (e *entry) validator() bool {
	return e.Header.Get("Etag") != "" || e.Header.Get("Last-Modified") != ""
}

// response makes an answer of the entry for a request: without a body for HEAD,
// and 304 where the client has it already.
func (e *entry) response(r *http.Request, status string, now time.Time) *http.Response {
	h := make(http.Header, len(e.Header)+3)
	maps.Copy(h, e.Header)
	h["Age"] = []string{strconv.FormatInt(int64((e.Age+now.Sub(e.Stored))/time.Second), 10)}
	if id := r.Header[requestID]; id != nil {
		h[requestID] = id
	}
	h["Cache-Status"] = append(h["Cache-Status"][:len(h["Cache-Status"]):len(h["Cache-Status"])], status)
	resp := &http.Response{StatusCode: e.Status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: h, Request: r, Body: http.NoBody}
	if e.Status == http.StatusOK && r.Method != http.MethodPost && e.known(r.Header) {
		resp.StatusCode = http.StatusNotModified
		delete(h, "Content-Type")
		return resp
	}
	h["Content-Length"] = []string{strconv.Itoa(len(e.Body))}
	resp.ContentLength = int64(len(e.Body))
	if r.Method != http.MethodHead && len(e.Body) > 0 {
		resp.Body = io.NopCloser(bytes.NewReader(e.Body))
	}
	return resp
}

// whole is the entry as an answer of the service with a header of its own.
func (e *entry) whole(h http.Header) *http.Response {
	h.Set("Content-Length", strconv.Itoa(len(e.Body)))
	return &http.Response{StatusCode: e.Status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: h,
		Body: io.NopCloser(bytes.NewReader(e.Body)), ContentLength: int64(len(e.Body))}
}

// known says whether the client's conditions hold: it has this very answer.
func (e *entry) known(h http.Header) bool {
	if v := h["If-None-Match"]; len(v) > 0 {
		have := strings.TrimPrefix(e.Header.Get("Etag"), "W/")
		for tag := range strings.SplitSeq(strings.Join(v, ","), ",") {
			tag = strings.TrimSpace(tag)
			if tag == "*" || have != "" && strings.TrimPrefix(tag, "W/") == have {
				return true
			}
		}
		return false
	}
	since, err := http.ParseTime(h.Get("If-Modified-Since"))
	if err != nil {
		return false
	}
	modified, err := http.ParseTime(e.Header.Get("Last-Modified"))
	return err == nil && !modified.After(since)
}

// merge is the header of the entry after the service said that it still holds.
func (e *entry) merge(h http.Header, now time.Time) http.Header {
	merged := e.Header.Clone()
	merged.Set("Date", now.UTC().Format(http.TimeFormat)) // unless it says its own
	for name, v := range h {
		if !strings.HasPrefix(name, "Content-") {
			merged[name] = v
		}
	}
	return merged
}

// The form of an entry in a store: a version byte, a byte that says whether the
// rest is compressed, and the rest in gob.
const (
	formVersion   = 1
	compressAbove = 4 << 10
	decodedMost   = 64 << 20
)

var errForm = errors.New("not an entry of this version")

func (e *entry) encode() ([]byte, error) {
	var raw bytes.Buffer
	if err := gob.NewEncoder(&raw).Encode(e); err != nil {
		return nil, fmt.Errorf("encode entry: %w", err)
	}
	if raw.Len() <= compressAbove {
		return append([]byte{formVersion, 0}, raw.Bytes()...), nil
	}
	out := bytes.NewBuffer([]byte{formVersion, 1})
	z, err := flate.NewWriter(out, flate.BestSpeed)
	if err != nil {
		return nil, fmt.Errorf("compress entry: %w", err)
	}
	if _, err := z.Write(raw.Bytes()); err != nil {
		return nil, fmt.Errorf("compress entry: %w", err)
	}
	if err := z.Close(); err != nil {
		return nil, fmt.Errorf("compress entry: %w", err)
	}
	return out.Bytes(), nil
}

func decode(b []byte) (*entry, error) {
	if len(b) < 2 || b[0] != formVersion || b[1] > 1 {
		return nil, errForm
	}
	var r io.Reader = bytes.NewReader(b[2:])
	if b[1] == 1 {
		r = io.LimitReader(flate.NewReader(r), decodedMost)
	}
	e := &entry{}
	if err := gob.NewDecoder(r).Decode(e); err != nil {
		return nil, fmt.Errorf("decode entry: %w", err)
	}
	if e.Status < 200 || e.Status > 599 {
		return nil, errForm
	}
	return e, nil
}
