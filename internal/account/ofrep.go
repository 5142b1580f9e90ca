package account

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/tollgate-proxy/tollgate/internal/credential"
	"github.com/tollgate-proxy/tollgate/internal/flag"
)

const (
	ofrepBodyLimit = 64 << 10
	ofrepPath      = "/ofrep/v1/evaluate/flags"
	ofrepEvents    = "/ofrep/v1/events"
	// ofrepHeartbeat is how often an idle event stream shows that it lives.
	ofrepHeartbeat = 10 * time.Second
	// ofrepCatchUp bounds how long a refetch waits for the change that another
	// replica has told the client of.
	ofrepCatchUp = time.Second
)

// OFREP is the OpenFeature Remote Evaluation Protocol, version 0.3: evaluation
// of one flag and of all, and a stream of change notices. All of it needs the
// role service; the caller's word is taken for the context.
type OFREP struct {
	// PublicURL is this API's base URL as clients reach it, such as
	// https://flags.example.com. Where it is set, bulk answers name the event
	// stream.
	PublicURL string

	watcher *flag.Watcher
	now     func() time.Time
}

// NewOFREP returns the protocol over a process's view of the flags.
func NewOFREP(watcher *flag.Watcher, now func() time.Time) *OFREP {
	return &OFREP{watcher: watcher, now: now}
}

// Register adds the routes.
func (o *OFREP) Register(mux Routes, auth *credential.Authenticator) {
	for pattern, serve := range map[string]http.HandlerFunc{
		"POST " + ofrepPath + "/{key}": o.single,
		"POST " + ofrepPath:            o.bulk,
		"GET " + ofrepEvents:           o.events,
	} {
		guarded := auth.Require(credential.Service, serve)
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			// The protocol's API key is the same secret under another name.
			if key := r.Header.Get("X-API-Key"); key != "" && r.Header.Get("Authorization") == "" {
				r = r.Clone(r.Context())
				r.Header.Set("Authorization", "Bearer "+key)
			}
			guarded.ServeHTTP(w, r)
		})
	}
}

// ofrepFlag is one evaluation, successful or not.
type ofrepFlag struct {
	Key      string         `json:"key"`
	Value    any            `json:"value,omitempty"`
	Reason   flag.Reason    `json:"reason,omitempty"`
	Variant  string         `json:"variant,omitempty"`
	Metadata map[string]any `json:"metadata,omitempty"`
	Code     flag.ErrorCode `json:"errorCode,omitempty"`
	Details  string         `json:"errorDetails,omitempty"`
}

// MarshalJSON keeps values that Go's omitempty would drop: false, 0 and "".
func (f ofrepFlag) MarshalJSON() ([]byte, error) {
	type plain ofrepFlag
	if f.Variant == "" {
		return json.Marshal(plain(f))
	}
	return json.Marshal(struct {
		Key   string `json:"key"`
		Value any    `json:"value"`
		plain
	}{f.Key, f.Value, plain(f)})
}

func ofrepEvaluate(set *flag.Set, key string, subject *flag.Subject, now time.Time) ofrepFlag {
	r := set.Evaluate(key, subject, now)
	if r.ErrorCode != flag.ErrorNone {
		return ofrepFlag{Key: key, Code: r.ErrorCode, Details: ofrepDetails(r.ErrorCode)}
	}
	if whole, ok := r.Value.(float64); ok && whole == math.Trunc(whole) && set.Fractional(key) {
		// Python, among others, takes 2 for an integer where 2.0 is a float.
		r.Value = json.RawMessage(strconv.FormatFloat(whole, 'f', 1, 64))
	}
	return ofrepFlag{Key: key, Value: r.Value, Reason: r.Reason, Variant: r.Variant, Metadata: set.Metadata(key)}
}

func ofrepDetails(code flag.ErrorCode) string {
	switch code {
	case flag.ErrorFlagNotFound:
		return "there is no such flag"
	case flag.ErrorTargetingKeyMissing:
		return "the flag is rolled out by targetingKey, which the context lacks"
	case flag.ErrorParse:
		return "the targeting rule gave no variant of the flag"
	default:
		return ""
	}
}

// ofrepError is a request that the protocol refuses.
type ofrepError struct {
	code    flag.ErrorCode
	details string
}

func (e *ofrepError) Error() string { return string(e.code) + ": " + e.details }

// readContext reads {"context": {…}}. Members that the protocol may add later
// are not refused.
func readContext(w http.ResponseWriter, r *http.Request) (*flag.Subject, map[string]any, error) {
	data, err := readBody(w, r, ofrepBodyLimit)
	if err != nil {
		return nil, nil, err
	}
	var body struct {
		Context map[string]any `json:"context"`
	}
	if len(data) > 0 {
		if err := json.Unmarshal(data, &body); err != nil {
			return nil, nil, &ofrepError{flag.ErrorParse, "the body is not a JSON object with a context: " + jsonFault(err)}
		}
	}
	s := &flag.Subject{Claims: body.Context}
	for name, into := range map[string]*string{"targetingKey": &s.Key, "tier": &s.Tier} {
		v, ok := body.Context[name]
		text, isText := v.(string)
		if ok && !isText {
			return nil, nil, &ofrepError{flag.ErrorInvalidContext, name + " is not a string"}
		}
		*into = text
	}
	s.Anonymous = body.Context["anonymous"] == true
	s.Visitor = flag.IsVisitor(s.Anonymous, s.Key)
	if v, ok := body.Context["roles"]; ok {
		list, isList := v.([]any)
		for _, entry := range list {
			role, isText := entry.(string)
			isList = isList && isText
			s.Roles = append(s.Roles, role)
		}
		if !isList {
			return nil, nil, &ofrepError{flag.ErrorInvalidContext, "roles is not a list of strings"}
		}
	}
	return s, body.Context, nil
}

// refuse answers a request whose context could not be read.
func (o *OFREP) refuse(w http.ResponseWriter, r *http.Request, key string, err error) {
	var refused *ofrepError
	if errors.As(err, &refused) {
		writeJSON(w, http.StatusBadRequest, ofrepFlag{Key: key, Code: refused.code, Details: refused.details})
		return
	}
	writeError(w, r, err)
}

func (o *OFREP) single(w http.ResponseWriter, r *http.Request) {
	key := r.PathValue("key")
	subject, _, err := readContext(w, r)
	if err != nil {
		o.refuse(w, r, key, err)
		return
	}
	result := ofrepEvaluate(o.watcher.Current(), key, subject, o.now())
	status := http.StatusOK
	switch result.Code {
	case flag.ErrorNone:
	case flag.ErrorFlagNotFound:
		status = http.StatusNotFound
	default:
		status = http.StatusBadRequest
	}
	writeJSON(w, status, result)
}

// bulk evaluates every flag. The entity tag covers the definitions, the context
// and the answer, which may also change with time alone.
func (o *OFREP) bulk(w http.ResponseWriter, r *http.Request) {
	subject, given, err := readContext(w, r)
	if err != nil {
		o.refuse(w, r, "", err)
		return
	}
	o.catchUp(r.Context(), r.URL.Query().Get("flagConfigEtag"))
	set, now := o.watcher.Current(), o.now()
	answer := struct {
		Flags    []ofrepFlag    `json:"flags"`
		Metadata map[string]any `json:"metadata"`
		Streams  []eventStream  `json:"eventStreams,omitempty"`
	}{Flags: make([]ofrepFlag, 0, len(set.Keys())), Metadata: map[string]any{"version": set.Version()}}
	for _, key := range set.Keys() {
		if result := ofrepEvaluate(set, key, subject, now); result.Reason != flag.ReasonDisabled || result.Variant != "" {
			answer.Flags = append(answer.Flags, result)
		}
	}
	if o.PublicURL != "" {
		answer.Streams = []eventStream{{Type: "sse", URL: strings.TrimSuffix(o.PublicURL, "/") + ofrepEvents}}
	}
	tag := entityTag(set, given, answer)
	w.Header().Set("ETag", tag)
	if matches(r.Header.Values("If-None-Match"), tag) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	writeJSON(w, http.StatusOK, answer)
}

// eventStream tells clients where changes are announced.
type eventStream struct {
	Type string `json:"type"`
	URL  string `json:"url"`
}

func entityTag(set *flag.Set, parts ...any) string {
	h := xxhash.New()
	_, _ = fmt.Fprintf(h, "%x", set.Digest())
	encoder := json.NewEncoder(h)
	for _, part := range parts {
		if err := encoder.Encode(part); err != nil { // what came from JSON goes to JSON
			panic(err)
		}
	}
	return fmt.Sprintf("%q", fmt.Sprintf("%016x", h.Sum64()))
}

// matches reports whether If-None-Match names the tag (RFC 9110, 13.1.2).
func matches(values []string, tag string) bool {
	for _, value := range values {
		for candidate := range strings.SplitSeq(value, ",") {
			candidate = strings.TrimSpace(candidate)
			if candidate == "*" || strings.TrimPrefix(candidate, "W/") == tag {
				return true
			}
		}
	}
	return false
}

// configTag names a set of flags in change notices.
func configTag(set *flag.Set) string { return fmt.Sprintf("%016x", set.Digest()) }

// catchUp waits, for a moment at most, until this process has the flags that a
// notice from another one spoke of: without that, a client that is told of a
// change could read the old flags and keep them.
func (o *OFREP) catchUp(ctx context.Context, want string) {
	if want == "" || want == configTag(o.watcher.Current()) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, ofrepCatchUp)
	defer cancel()
	changed := o.watcher.Changed()
	o.watcher.Wake()
	for want != configTag(o.watcher.Current()) {
		select {
		case <-ctx.Done():
			return
		case <-changed:
			changed = o.watcher.Changed()
		}
	}
}

// events announces changes as server-sent events. A client that connects anew
// is told at once, unless it names the present flags as its last event: what
// happened between its reading of the flags and its connecting is not lost.
// A stream ends after a while; clients reconnect by themselves.
func (o *OFREP) events(w http.ResponseWriter, r *http.Request) {
	controller := http.NewResponseController(w)
	_ = controller.SetWriteDeadline(time.Time{}) // not every writer can
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no")
	w.WriteHeader(http.StatusOK)
	if _, err := fmt.Fprint(w, "retry: 1000\n\n"); err != nil {
		return
	}
	heartbeat := time.NewTicker(ofrepHeartbeat)
	defer heartbeat.Stop()
	told := r.Header.Get("Last-Event-ID")
	for {
		// The channel is taken before the set: a change in between is seen.
		changed := o.watcher.Changed()
		if tag := configTag(o.watcher.Current()); tag != told {
			data, err := json.Marshal(map[string]any{"type": "refetchEvaluation", "etag": tag, "lastModified": o.now().Unix()})
			if err != nil { // not reached: strings and integers
				return
			}
			if _, err := fmt.Fprintf(w, "id: %s\nevent: message\ndata: %s\n\n", tag, data); err != nil {
				return
			}
			told = tag
		}
		if err := controller.Flush(); err != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-changed:
		case <-heartbeat.C:
			if _, err := fmt.Fprint(w, ": alive\n\n"); err != nil {
				return
			}
		}
	}
}
