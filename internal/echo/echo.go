// Package echo is a backend that answers with what reached it, so that the demo
// and the end-to-end tests can show what Envoy and authz did to a request.
package echo

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
)

// Seen is what reached the backend; it is the body of every answer.
type Seen struct {
	Method string `json:"method"`
	// URI is the request target as it arrived, with its query.
	URI   string `json:"uri"`
	Host  string `json:"host"`
	Proto string `json:"proto"`
	// Headers and Trailers hold every value of each field; names as net/http
	// writes them ("X-User-Id"; "X_user_id" for one with underscores).
	Headers  http.Header `json:"headers"`
	Trailers http.Header `json:"trailers,omitempty"`
	// BodyBytes is the body's length, at most MaxBody.
	BodyBytes int64 `json:"body_bytes"`
}

// MaxBody bounds how much of a request's body is read, in bytes. A longer one is
// answered with 413.
const MaxBody = 8 << 20

// StatusParameter is the query parameter that chooses the answer's status, 200 to
// 599 (default 200; anything else is answered with 400).
const StatusParameter = "echo-status"

// Handler answers every request with a Seen as JSON. It keeps no state and may
// serve requests concurrently.
func Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		status := http.StatusOK
		if wanted := r.URL.Query().Get(StatusParameter); wanted != "" {
			code, err := strconv.Atoi(wanted)
			if err != nil || code < 200 || code > 599 {
				http.Error(w, StatusParameter+" must be 200 to 599", http.StatusBadRequest)
				return
			}
			status = code
		}
		n, err := io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, MaxBody))
		if tooLarge := new(http.MaxBytesError); errors.As(err, &tooLarge) {
			http.Error(w, "body over "+strconv.Itoa(MaxBody)+" bytes", http.StatusRequestEntityTooLarge)
			return
		}
		if err != nil {
			http.Error(w, "body not readable", http.StatusBadRequest)
			return
		}
		body, err := json.MarshalIndent(Seen{
			Method: r.Method, URI: r.RequestURI, Host: r.Host, Proto: r.Proto,
			Headers: r.Header, Trailers: r.Trailer, BodyBytes: n,
		}, "", "  ")
		if err != nil { // strings and numbers always encode
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = w.Write(append(body, '\n')) // a client that left is no concern of the echo
	})
}
