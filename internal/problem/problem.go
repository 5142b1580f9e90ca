// Package problem writes errors for HTTP clients as application/problem+json
// (RFC 9457).
//
// A Problem holds public text only: what went wrong inside belongs into a log,
// beside the request id that the problem carries.
package problem

import (
	"encoding/json"
	"net/http"
	"strconv"
	"time"
)

// ContentType is the media type of RFC 9457.
const ContentType = "application/problem+json"

// Problem is the body of an error answer.
type Problem struct {
	// Type identifies the kind of problem; about:blank where Code says it all.
	Type string `json:"type"`
	// Title is the short name of the status or code, the same every time.
	Title string `json:"title"`
	// Status is the HTTP status code.
	Status int `json:"status"`
	// Detail says what the caller can do about it, and never more than the
	// caller may know.
	Detail string `json:"detail,omitempty"`
	// Code is the stable name that programs switch on, such as token_expired.
	Code string `json:"code"`
	// RequestID finds the request in logs and traces.
	RequestID string `json:"request_id,omitempty"`
	// Errors lists the faults of a request body, one an entry.
	Errors []FieldError `json:"errors,omitempty"`
}

// FieldError is one fault of a request.
type FieldError struct {
	// Field is the path of the faulty member, such as variants[1].weight.
	Field string `json:"field"`
	// Detail says what is allowed.
	Detail string `json:"detail"`
}

// New makes a problem whose title is the text of the status.
func New(status int, code, detail string) Problem {
	return Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Code: code, Detail: detail}
}

// Error makes a Problem usable as an error with a public text.
func (p Problem) Error() string { return p.Code + ": " + p.Detail }

// WithRequestID returns a copy that names the request.
func (p Problem) WithRequestID(id string) Problem {
	p.RequestID = id
	return p
}

// JSON returns the body.
func (p Problem) JSON() []byte {
	body, err := json.Marshal(p)
	if err != nil { // strings and integers always encode
		panic(err)
	}
	return body
}

// Write answers a request with the problem. Headers set on w before, such as
// Retry-After, are kept.
func Write(w http.ResponseWriter, p Problem) {
	body := p.JSON()
	h := w.Header()
	h.Set("Content-Type", ContentType)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(p.Status)
	_, _ = w.Write(body) // the client is gone; nobody is left to tell
}

// RetryAfter formats a wait for the Retry-After header: whole seconds, rounded
// up, at least 1 (RFC 9110, section 10.2.3).
func RetryAfter(wait time.Duration) string {
	seconds := (wait + time.Second - 1) / time.Second
	return strconv.FormatInt(max(1, int64(seconds)), 10)
}
