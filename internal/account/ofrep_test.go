package account

import (
	"bufio"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/open-feature/go-sdk-contrib/providers/ofrep"
	"github.com/open-feature/go-sdk/openfeature"

	"github.com/tollgate-proxy/tollgate/internal/flag"
	"github.com/tollgate-proxy/tollgate/internal/polltest"
	"github.com/tollgate-proxy/tollgate/internal/redistest"
)

func putFlag(t *testing.T, a *flagAPI, key, text string) {
	t.Helper()
	def, err := flag.ParseFlag("test", key, []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.store.Put(t.Context(), def, flag.Change{Expect: flag.AnyVersion}); err != nil {
		t.Fatal(err)
	}
	version, err := a.store.Version(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	a.watcher.Wake()
	polltest.Until(t, "the flag "+key, func() bool { return a.watcher.Current().Version() >= version })
}

func newOFREPServer(t *testing.T) *flagAPI {
	t.Helper()
	a := newFlagAPI(t, redistest.Client(t, redistest.Embedded(t)))
	a.seeded(t)
	putFlag(t, a, "half", `{"variants":{"on":true,"off":false},"defaultVariant":"off","tollgate":{"rollout":{"percentage":50}}}`)
	putFlag(t, a, "zero", `{"variants":{"none":0,"some":2.5},"defaultVariant":"none"}`)
	putFlag(t, a, "whole", `{"variants":{"none":0,"some":2},"defaultVariant":"some"}`)
	putFlag(t, a, "object", `{"variants":{"a":{"x":[1,"y"]}},"defaultVariant":"a"}`)
	putFlag(t, a, "code-default", `{"variants":{"a":"x"}}`)
	putFlag(t, a, "roles", `{"variants":{"yes":"y","no":"n"},"defaultVariant":"no","targeting":{"if":[{"in":["ops",{"var":"roles"}]},"yes",null]}}`)
	return a
}

func TestOFREPSingle(t *testing.T) {
	a := newOFREPServer(t)
	for _, tt := range []struct {
		key, body string
		status    int
		want      string
	}{
		{"shop", `{"context":{"targetingKey":"ann","tier":"premium"}}`, 200, `{"key":"shop","value":true,"reason":"TARGETING_MATCH","variant":"on","metadata":{"team":"shop"}}`},
		{"shop", `{"context":{"targetingKey":"ann"}}`, 200, `{"key":"shop","value":false,"reason":"DEFAULT","variant":"off","metadata":{"team":"shop"}}`},
		{"colour", `{"context":{"theme":"cold","anonymous":true},"later":1}`, 200, `{"key":"colour","value":"#00f","reason":"TARGETING_MATCH","variant":"blue"}`},
		{"roles", `{"context":{"roles":["dev","ops"]}}`, 200, `{"key":"roles","value":"y","reason":"TARGETING_MATCH","variant":"yes"}`},
		{"zero", ``, 200, `{"key":"zero","value":0.0,"reason":"STATIC","variant":"none"}`},
		{"whole", ``, 200, `{"key":"whole","value":2,"reason":"STATIC","variant":"some"}`},
		{"object", `{}`, 200, `{"key":"object","value":{"x":[1,"y"]},"reason":"STATIC","variant":"a"}`},
		{"code-default", `{}`, 200, `{"key":"code-default","reason":"STATIC"}`},
		{"gone", `{}`, 200, `{"key":"gone","reason":"DISABLED"}`},
		{"none", `{}`, 404, `{"key":"none","errorCode":"FLAG_NOT_FOUND","errorDetails":"there is no such flag"}`},
		{"half", `{"context":{}}`, 400, `"errorCode":"TARGETING_KEY_MISSING"`},
		{"shop", `{"context":`, 400, `"errorCode":"PARSE_ERROR"`},
		{"shop", `{"context":{"targetingKey":7}}`, 400, `"errorCode":"INVALID_CONTEXT","errorDetails":"targetingKey is not a string"`},
		{"shop", `{"context":{"roles":"ops"}}`, 400, `roles is not a list`},
		{"shop", `{"context":{"roles":[1]}}`, 400, `roles is not a list`},
		{"shop", `{"context":{"x":"` + strings.Repeat("x", ofrepBodyLimit) + `"}}`, 413, `request_too_large`},
	} {
		w := a.call("POST", ofrepPath+"/"+tt.key, tt.body, flagService)
		if w.Code != tt.status || !strings.Contains(w.Body.String(), tt.want) {
			t.Errorf("%s %.80s: got %d %s", tt.key, tt.body, w.Code, w.Body)
		}
	}
}

func TestOFREPAuthentication(t *testing.T) {
	a := newOFREPServer(t)
	for name, tt := range map[string]struct {
		header, value string
		status        int
	}{
		"none":       {"X-Other", "x", 401},
		"bearer":     {"Authorization", "Bearer " + flagService, 200},
		"API key":    {"X-API-Key", flagService, 200},
		"wrong key":  {"X-API-Key", "guess", 401},
		"wrong role": {"X-API-Key", flagOperator, 403},
	} {
		r := httptest.NewRequest("POST", ofrepPath, strings.NewReader("{}"))
		r.Header.Set(tt.header, tt.value)
		w := httptest.NewRecorder()
		a.handler.ServeHTTP(w, r)
		if w.Code != tt.status {
			t.Errorf("%s: got %d %s", name, w.Code, w.Body)
		}
	}
}

func bulk(a *flagAPI, body, tag string) *httptest.ResponseRecorder {
	r := httptest.NewRequest("POST", ofrepPath, strings.NewReader(body))
	r.Header.Set("X-API-Key", flagService)
	if tag != "" {
		r.Header.Set("If-None-Match", tag)
	}
	w := httptest.NewRecorder()
	a.handler.ServeHTTP(w, r)
	return w
}

func TestOFREPBulk(t *testing.T) {
	a := newOFREPServer(t)
	const ann, bob = `{"context":{"targetingKey":"ann"}}`, `{"context":{"targetingKey":"bob","unused":1}}`
	first := bulk(a, ann, "")
	var answer struct {
		Flags    []map[string]any
		Metadata map[string]any
	}
	if err := json.Unmarshal(first.Body.Bytes(), &answer); err != nil || first.Code != 200 {
		t.Fatalf("got %d %s", first.Code, first.Body)
	}
	if len(answer.Flags) != 8 || answer.Flags[0]["key"] != "code-default" || answer.Metadata["version"] != 9.0 {
		t.Errorf("got %s", first.Body)
	}
	if strings.Contains(first.Body.String(), "gone") || strings.Contains(first.Body.String(), "eventStreams") {
		t.Errorf("got %s", first.Body)
	}
	tag := first.Header().Get("ETag")
	for name, tt := range map[string]struct {
		body, tag string
		status    int
	}{
		"same":            {ann, tag, 304},
		"weak":            {ann, "W/" + tag, 304},
		"one of several":  {ann, `"x", ` + tag, 304},
		"any":             {ann, "*", 304},
		"another tag":     {ann, `"x"`, 200},
		"another context": {bob, tag, 200},
	} {
		if w := bulk(a, tt.body, tt.tag); w.Code != tt.status || w.Code == 304 && w.Body.Len() > 0 {
			t.Errorf("%s: got %d %s", name, w.Code, w.Body)
		}
	}
	putFlag(t, a, "zero", `{"variants":{"none":0,"some":2.5},"defaultVariant":"some"}`)
	if w := bulk(a, ann, tag); w.Code != 200 || w.Header().Get("ETag") == tag {
		t.Errorf("after a change: %d", w.Code)
	}
	if w := bulk(a, `{"context":{"tier":5}}`, ""); w.Code != 400 || !strings.Contains(w.Body.String(), "INVALID_CONTEXT") {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
}

// A client reads server-sent events over a real connection, hears of a change,
// and reads the changed flags with what the notice said.
func TestOFREPEvents(t *testing.T) {
	a := newOFREPServer(t)
	server := httptest.NewServer(a.handler)
	defer server.Close()
	listen := func(last string) (*bufio.Scanner, func()) {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+ofrepEvents, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-API-Key", flagService)
		r.Header.Set("Last-Event-ID", last)
		response, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		if kind := response.Header.Get("Content-Type"); kind != "text/event-stream" {
			t.Fatalf("content type %q", kind)
		}
		return bufio.NewScanner(response.Body), func() { _ = response.Body.Close() }
	}
	event := func(s *bufio.Scanner) (id, kind string) {
		for s.Scan() {
			if text, ok := strings.CutPrefix(s.Text(), "id: "); ok {
				id = text
			}
			if text, ok := strings.CutPrefix(s.Text(), "data: "); ok {
				var data struct{ Type, Etag string }
				if err := json.Unmarshal([]byte(text), &data); err != nil || data.Etag != id {
					t.Fatalf("event %s: %v", text, err)
				}
				return id, data.Type
			}
		}
		t.Fatalf("the stream ended: %v", s.Err())
		return "", ""
	}
	stream, hangUp := listen("")
	id, kind := event(stream)
	if kind != "refetchEvaluation" {
		t.Errorf("event %q", kind)
	}
	putFlag(t, a, "zero", `{"variants":{"none":0,"some":2.5},"defaultVariant":"some"}`)
	next, _ := event(stream)
	if next == id {
		t.Error("two events with one id")
	}
	hangUp()
	w := a.call("POST", ofrepPath+"?flagConfigEtag="+next, "{}", flagService)
	if !strings.Contains(w.Body.String(), `"key":"zero","value":2.5`) {
		t.Errorf("got %s", w.Body)
	}
	// Whoever knows the present flags hears nothing until the next change.
	stream, hangUp = listen(next)
	defer hangUp()
	putFlag(t, a, "zero", `{"variants":{"none":0,"some":2.5},"defaultVariant":"none"}`)
	if again, _ := event(stream); again != id {
		t.Errorf("got %s, want the first state's %s", again, id)
	}
}

// A notice from another replica may come before this one has the change: the
// answer waits for it.
func TestOFREPCatchesUp(t *testing.T) {
	c := redistest.Client(t, redistest.Embedded(t))
	fast, slow := newFlagAPI(t, c), newFlagAPI(t, c)
	fast.seeded(t)
	slow.seeded(t)
	for i, want := range []string{"some", "none", "some"} {
		putFlag(t, fast, "zero", `{"variants":{"none":0,"some":2.5},"defaultVariant":"`+want+`"}`)
		w := slow.call("POST", ofrepPath+"?flagConfigEtag="+configTag(fast.watcher.Current()), "{}", flagService)
		if !strings.Contains(w.Body.String(), `"variant":"`+want+`"`) {
			t.Errorf("change %d: got %s", i, w.Body)
		}
	}
	if w := slow.call("POST", ofrepPath+"?flagConfigEtag=unheard-of", "{}", flagService); w.Code != 200 {
		t.Errorf("got %d", w.Code)
	}
}

func TestOFREPNamesItsStream(t *testing.T) {
	a := newOFREPServer(t)
	o := NewOFREP(a.watcher, func() time.Time { return flagTime })
	o.PublicURL = "https://flags.example.com/"
	w := httptest.NewRecorder()
	o.bulk(w, httptest.NewRequest("POST", ofrepPath, nil))
	if want := `"eventStreams":[{"type":"sse","url":"https://flags.example.com/ofrep/v1/events"}]`; !strings.Contains(w.Body.String(), want) {
		t.Errorf("got %s", w.Body)
	}
}

// OpenFeature's own SDK for Go, with its OFREP provider, gets what it asks for.
func TestOFREPWithOpenFeatureSDK(t *testing.T) {
	a := newOFREPServer(t)
	server := httptest.NewServer(a.handler)
	defer server.Close()
	provider := ofrep.NewProvider(server.URL, ofrep.WithBearerToken(flagService))
	ann := openfeature.FlattenedContext{"targetingKey": "ann", "tier": "premium", "theme": "cold", "roles": []string{"ops"}}
	ctx := t.Context()
	boolean := provider.BooleanEvaluation(ctx, "shop", false, ann)
	if !boolean.Value || boolean.Variant != "on" || boolean.Reason != openfeature.TargetingMatchReason {
		t.Errorf("got %+v", boolean)
	}
	if team, err := boolean.FlagMetadata.GetString("team"); err != nil || team != "shop" {
		t.Errorf("metadata %q, %v", team, err)
	}
	if got := provider.StringEvaluation(ctx, "colour", "", ann); got.Value != "#00f" {
		t.Errorf("got %+v", got)
	}
	if got := provider.StringEvaluation(ctx, "roles", "", ann); got.Value != "y" {
		t.Errorf("got %+v", got)
	}
	if got := provider.FloatEvaluation(ctx, "zero", 9, ann); got.Value != 0 || got.Variant != "none" {
		t.Errorf("got %+v", got)
	}
	if got := provider.IntEvaluation(ctx, "whole", 9, ann); got.Value != 2 {
		t.Errorf("got %+v", got)
	}
	if got, ok := provider.ObjectEvaluation(ctx, "object", nil, ann).Value.(map[string]any); !ok || len(got) != 1 {
		t.Errorf("got %+v", got)
	}
	if got := provider.BooleanEvaluation(ctx, "none", true, ann); !got.Value || !strings.Contains(got.Error().Error(), "FLAG_NOT_FOUND") {
		t.Errorf("got %+v", got)
	}
	if got := provider.BooleanEvaluation(ctx, "half", true, openfeature.FlattenedContext{}); !strings.Contains(got.Error().Error(), "TARGETING_KEY_MISSING") {
		t.Errorf("got %+v", got)
	}
	anonymous := ofrep.NewProvider(server.URL)
	if got := anonymous.BooleanEvaluation(ctx, "shop", true, ann); got.Error() == nil {
		t.Errorf("answered without credentials: %+v", got)
	}
}
