package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/tollgate-proxy/tollgate/internal/config"
	"github.com/tollgate-proxy/tollgate/internal/faultproxy"
	"github.com/tollgate-proxy/tollgate/internal/pyproxy"
	"github.com/tollgate-proxy/tollgate/internal/supervisor"
)

const (
	python   = "../../.venv/services/bin/python"
	examples = "../../examples/python-services"
	patience = time.Minute // of every wait; nothing asserts how long a thing took
)

// The real Python services, started once, behind what ships and behind a network
// that breaks.
func TestTheRealServices(t *testing.T) {
	c, err := config.Load(shipped, nil, defaults())
	if err != nil {
		t.Fatal(err)
	}
	addresses := startServices(t, c.Upstreams)
	t.Run("documents", func(t *testing.T) { testDocuments(t, addresses) })
	t.Run("answers", func(t *testing.T) { testAnswers(t, c, addresses) })
	t.Run("broken network", func(t *testing.T) { testBrokenNetwork(t, c, addresses["nlp"]) })
	for name, attack := range map[string]func(*testing.T, pyproxy.Config, string){
		"half of the replicas bad": testHalfBad,
		"all bad, and back":        testAllBadAndBack,
		"a name not found":         testNameNotFound,
		"an endless body":          testEndlessBody,
		"smuggling":                testSmuggling,
	} {
		t.Run(name, func(t *testing.T) { attack(t, c.Config, addresses["nlp"]) })
	}
}

// startServices starts the services and returns their addresses by name.
func startServices(t *testing.T, upstreams []pyproxy.Upstream) map[string]string {
	t.Helper()
	program, err := filepath.Abs(python)
	if err != nil {
		t.Fatal(err)
	}
	source, err := filepath.Abs(filepath.Join(examples, "src"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(program); err != nil {
		t.Fatalf("make tools installs the services' packages: %v", err)
	}
	ports, err := supervisor.FreePorts(len(upstreams))
	if err != nil {
		t.Fatal(err)
	}
	addresses := map[string]string{}
	var started []*supervisor.Process
	for i, u := range upstreams {
		p, err := supervisor.Start(supervisor.Spec{
			Name: u.Name, Path: program, Args: []string{"-m", "tollgate_examples", u.Name, "--port", fmt.Sprint(ports[i])},
			Env: []string{"PYTHONPATH=" + source, "PYTHONUNBUFFERED=1", "PATH=" + os.Getenv("PATH")}, Log: filepath.Join(t.TempDir(), u.Name+".log"),
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := p.Stop(patience); err != nil {
				t.Error(err)
			}
		})
		started = append(started, p)
		addresses[u.Name] = fmt.Sprintf("127.0.0.1:%d", ports[i])
	}
	end := time.After(patience)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for i, u := range upstreams {
		for {
			resp, err := get(t, "http://"+addresses[u.Name]+"/health")
			if err == nil && resp.status == http.StatusOK {
				break
			}
			select {
			case <-started[i].Done():
				t.Fatalf("the %s service ended: %s", u.Name, strings.Join(started[i].Tail(20), "\n"))
			case <-end:
				t.Fatalf("the %s service is not ready: %v", u.Name, err)
			case <-tick.C:
			}
		}
	}
	return addresses
}

type reply struct {
	status int
	header http.Header
	body   []byte
}

// problem is the code of a problem, or empty.
func (r reply) problem() string {
	var p struct{ Code string }
	_ = json.Unmarshal(r.body, &p)
	return p.Code
}

func get(t *testing.T, url string) (reply, error) {
	t.Helper()
	return send(t, http.MethodGet, url, nil)
}

// send asks; the error is of the request or of a body that breaks.
func send(t *testing.T, method, url string, body []byte) (reply, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	r.Header.Set("X-Request-Id", "r-1")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, resp.Header, data}, err
}

// testDocuments: what the services say of themselves is what the document of the
// routes is made of.
func testDocuments(t *testing.T, addresses map[string]string) {
	for service, address := range addresses {
		r, err := get(t, "http://"+address+"/openapi.json")
		if err != nil || r.status != http.StatusOK {
			t.Fatalf("%s: %v %d", service, err, r.status)
		}
		if d := cmp.Diff(serviceDocument(t, service), parse(t, service, r.body)); d != "" {
			t.Errorf("%s says of itself: %s", service, d)
		}
	}
}

// testAnswers: through pyproxy each route answers its sample as its document says.
func testAnswers(t *testing.T, c Config, addresses map[string]string) {
	url := serve(t, c.Config, addresses)
	compiler := jsonschema.NewCompiler()
	data, err := os.ReadFile(routesDocument)
	if err != nil {
		t.Fatal(err)
	}
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	if err := compiler.AddResource("routes.json", document); err != nil {
		t.Fatal(err)
	}
	var samples []struct {
		Service, Method, Path, File string
		Status                      int
	}
	manifest, err := os.ReadFile(filepath.Join(examples, "samples", "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(manifest, &samples); err != nil {
		t.Fatal(err)
	}
	answered := map[string]bool{}
	for _, s := range samples {
		if s.Path == "/health" {
			continue
		}
		answered[s.Method+" "+s.Path] = true
		var body []byte
		if s.File != "" {
			if body, err = os.ReadFile(filepath.Join(examples, "samples", s.File)); err != nil {
				t.Fatal(err)
			}
		}
		r, err := send(t, s.Method, url+s.Path, body)
		if err != nil || r.status != s.Status {
			t.Errorf("%s %s: %v %d %s", s.Method, s.Path, err, r.status, r.body)
			continue
		}
		schema, err := compiler.Compile(fmt.Sprintf("routes.json#/paths/%s/%s/responses/%d/content/application~1json/schema",
			strings.ReplaceAll(s.Path, "/", "~1"), strings.ToLower(s.Method), s.Status))
		if err != nil {
			t.Fatal(err)
		}
		answer, err := jsonschema.UnmarshalJSON(bytes.NewReader(r.body))
		if err == nil {
			err = schema.Validate(answer)
		}
		if err != nil {
			t.Errorf("%s %s: %v\n%s", s.Method, s.Path, err, r.body)
		}
	}
	for _, rt := range c.Routes {
		if !answered[rt.Method+" "+rt.Path] {
			t.Errorf("no sample of %s", rt.Name)
		}
	}
}

// serve runs a proxy with the upstreams at the given addresses.
func serve(t *testing.T, c pyproxy.Config, addresses map[string]string) string {
	t.Helper()
	upstreams := c.Upstreams
	c.Upstreams = nil
	for _, u := range upstreams {
		u.Addresses = []string{addresses[u.Name]}
		c.Upstreams = append(c.Upstreams, u)
	}
	server := httptest.NewServer(pyproxy.New(c, pyproxy.Options{}))
	t.Cleanup(server.Close)
	return server.URL
}

// testBrokenNetwork: the service is well, and what lies between breaks its
// answers. Where answers are kept, half of one is never begun, so that the client
// hears of it.
func testBrokenNetwork(t *testing.T, c Config, service string) {
	for i, rt := range c.Routes {
		if rt.Name == "nlp.languages" {
			t.Run("kept", func(t *testing.T) { breakNetwork(t, c, service, true) })
			c.Routes = slices.Clone(c.Routes)
			c.Routes[i].Cache = nil
			t.Run("streamed", func(t *testing.T) { breakNetwork(t, c, service, false) })
		}
	}
}

func breakNetwork(t *testing.T, c Config, service string, kept bool) {
	const path = languagesPath
	whole := raw(t, service, path)
	headers := int64(bytes.Index(whole, []byte("\r\n\r\n"))) + 4
	body := whole[headers:]
	if headers < 10 || len(body) < 50 {
		t.Fatalf("%q", whole)
	}
	for _, tc := range []struct {
		name   string
		fault  faultproxy.Fault
		status int // 0: the answer's body breaks
		code   string
		brief  bool // the time for what is broken is short
	}{
		{"hangs before the headers", faultproxy.Fault{Action: faultproxy.Hang}, 504, "upstream_timeout", true},
		{"hangs within the headers", faultproxy.Fault{Action: faultproxy.Hang, After: 20}, 504, "upstream_timeout", true},
		{"hangs after the headers", faultproxy.Fault{Action: faultproxy.Hang, After: headers}, 0, "", true},
		{"closes before the headers", faultproxy.Fault{Action: faultproxy.Close}, 502, "upstream_failed", false},
		{"resets before the headers", faultproxy.Fault{Action: faultproxy.Reset, After: 20}, 502, "upstream_failed", false},
		{"resets mid-body", faultproxy.Fault{Action: faultproxy.Reset, After: headers + 20}, 0, "", false},
		{"a body shorter than its length", faultproxy.Fault{Action: faultproxy.Close, After: headers + 20}, 0, "", false},
		{"a body longer than its length", faultproxy.Fault{Action: faultproxy.Garbage, After: int64(len(whole))}, 200, "", false},
		{"garbage for headers", faultproxy.Fault{Action: faultproxy.Garbage}, 502, "upstream_failed", false},
		{"garbage within the headers", faultproxy.Fault{Action: faultproxy.Garbage, After: 20}, 502, "upstream_failed", false},
		{"endless headers", faultproxy.Fault{Action: faultproxy.Endless, After: 20}, 502, "upstream_failed", false},
		{"drips and arrives", faultproxy.Fault{Action: faultproxy.Drip, After: headers, Every: time.Microsecond}, 200, "", false},
		{"drips too slowly", faultproxy.Fault{Action: faultproxy.Drip, After: headers + 1, Every: time.Minute}, 0, "", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			network, err := faultproxy.New(service)
			if err != nil {
				t.Fatal(err)
			}
			defer network.Close()
			settings := c.Config
			settings.Retry.Base = time.Millisecond
			switch { // what comes before the fault has all the time that a busy machine takes
			case tc.brief && tc.status == 0:
				settings.Timeouts.BodyIdle, settings.Timeouts.Body = 200*time.Millisecond, time.Second
			case tc.brief:
				settings.Timeouts.Attempt, settings.Timeouts.Total = 500*time.Millisecond, patience
			}
			url := serve(t, settings, map[string]string{"nlp": network.Address()})
			network.Set(tc.fault)
			if kept && tc.status == 0 {
				tc.status, tc.code = http.StatusBadGateway, "upstream_failed"
			}
			r, err := get(t, url+path)
			switch {
			case tc.status == 0 && err == nil:
				t.Fatalf("half an answer looks whole: %d %s", r.status, r.body)
			case tc.status != 0 && (err != nil || r.status != tc.status || r.problem() != tc.code):
				t.Fatalf("%v %d %s, want %d %s", err, r.status, r.body, tc.status, tc.code)
			case tc.status == http.StatusOK && !bytes.Equal(r.body, body):
				t.Fatalf("%q, want %q", r.body, body)
			}
			attempts := 1
			if tc.status > 500 && tc.fault.After < headers {
				attempts = 1 + settings.Retry.Max
			}
			if n := network.Accepted(); n != attempts {
				t.Errorf("attempted %d times, want %d", n, attempts)
			}
			network.Set(faultproxy.Fault{})
			end := time.Now().Add(patience)
			for r, err = get(t, url+path); (err != nil || r.status != http.StatusOK) && time.Now().Before(end); { // a brief time may be too short for a busy machine
				r, err = get(t, url+path)
			}
			if err != nil || r.status != http.StatusOK || !bytes.Equal(r.body, body) {
				t.Fatalf("after it: %v %d %q", err, r.status, r.body)
			}
		})
	}
}

// raw is an answer as it comes over the wire.
func raw(t *testing.T, address, path string) []byte {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nX-Request-Id: r-1\r\nConnection: close\r\n\r\n", path, address); err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
