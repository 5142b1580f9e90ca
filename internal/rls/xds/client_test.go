package xds

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	configv3 "github.com/envoyproxy/go-control-plane/ratelimit/config/ratelimit/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/tollgate-proxy/tollgate/internal/config"
	"github.com/tollgate-proxy/tollgate/internal/logtest"
	"github.com/tollgate-proxy/tollgate/internal/ratelimit"
)

// server is a management server whose answers a test gives.
type server struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	requests chan *discoveryv3.DiscoveryRequest
	answers  chan *discoveryv3.DiscoveryResponse
	grpc     *grpc.Server
}

func (s *server) StreamAggregatedResources(stream grpc.BidiStreamingServer[discoveryv3.DiscoveryRequest, discoveryv3.DiscoveryResponse]) error {
	for {
		request, err := stream.Recv()
		if err != nil {
			return err
		}
		s.requests <- request
		select {
		case <-stream.Context().Done():
			return nil
		case answer := <-s.answers:
			if err := stream.Send(answer); err != nil {
				return err
			}
		}
	}
}

// start serves at an address; port 0 is a free one.
func start(t *testing.T, address string) (*server, string) {
	t.Helper()
	s := &server{
		requests: make(chan *discoveryv3.DiscoveryRequest, 100), answers: make(chan *discoveryv3.DiscoveryResponse), grpc: grpc.NewServer(),
	}
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(s.grpc, s)
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = s.grpc.Serve(listener) }()
	t.Cleanup(s.grpc.Stop)
	return s, listener.Addr().String()
}

func within[T any](t *testing.T, from <-chan T) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(30 * time.Second):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

func (s *server) say(t *testing.T, version, nonce string, resources ...proto.Message) *discoveryv3.DiscoveryRequest {
	t.Helper()
	answer := &discoveryv3.DiscoveryResponse{VersionInfo: version, Nonce: nonce, TypeUrl: typeURL}
	for _, r := range resources {
		packed, err := anypb.New(r)
		if err != nil {
			t.Fatal(err)
		}
		answer.Resources = append(answer.Resources, packed)
	}
	select {
	case s.answers <- answer:
	case <-time.After(30 * time.Second):
		t.Fatal("nobody asked")
	}
	return within(t, s.requests)
}

// limit is the resource of one rule.
func limit(domain, key string, unit configv3.RateLimitUnit, requests uint32) *configv3.RateLimitConfig {
	return &configv3.RateLimitConfig{Name: "of-" + domain, Domain: domain, Descriptors: []*configv3.RateLimitDescriptor{{
		Key: key, RateLimit: &configv3.RateLimitPolicy{Unit: unit, RequestsPerUnit: requests, Name: "mine"},
	}}}
}

// client follows a server, and keeps what it put in force.
type client struct {
	*Client
	mu      sync.Mutex
	rules   *ratelimit.Rules
	refused atomic.Int64
	log     logtest.Buffer
}

func (c *client) explain(key string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rules == nil {
		return ""
	}
	return c.rules.Explain("d", []ratelimit.Entry{{Key: key, Value: "x"}})
}

func files(t *testing.T, text string) *ratelimit.Rules {
	t.Helper()
	rules, err := ratelimit.ParseRules("file.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return rules
}

const fromFile = "domain: d\ndescriptors: [{key: file, rate_limit: {unit: hour, requests_per_unit: 7}}]\n"

func follow(t *testing.T, address string) *client {
	t.Helper()
	c := &client{}
	cfg := Default()
	cfg.Server, cfg.Node = address, "node-1"
	var err error
	c.Client, err = New(Options{
		Config: cfg, Files: files(t, fromFile), Retry: time.Millisecond, Log: c.log.Logger(),
		Apply:   func(r *ratelimit.Rules) { c.mu.Lock(); c.rules = r; c.mu.Unlock() },
		Refused: func() { c.refused.Add(1) },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := within(t, done); err != nil {
			t.Error(err)
		}
	})
	return c
}

// TestFollow takes rules, refuses faulty ones with a reason while the last good
// ones stay, and goes on after the server was gone.
func TestFollow(t *testing.T) {
	s, address := start(t, "127.0.0.1:0")
	c := follow(t, address)
	if r := within(t, s.requests); r.GetNode().GetId() != "node-1" || r.GetTypeUrl() != typeURL || r.GetVersionInfo() != "" || r.GetResponseNonce() != "" {
		t.Errorf("first request %v", r)
	}
	if r := s.say(t, "1", "n1", limit("d", "remote", configv3.RateLimitUnit_MINUTE, 5)); r.GetVersionInfo() != "1" || r.GetResponseNonce() != "n1" || r.GetErrorDetail() != nil {
		t.Errorf("acknowledgement %v", r)
	}
	const first = `rule remote: "mine";q=5;w=60, cost 1`
	if got := c.explain("remote"); got != first {
		t.Error(got)
	}
	if got := c.explain("file"); !strings.HasPrefix(got, "rule file") {
		t.Errorf("the rule files are gone: %s", got)
	}

	newer := limit("d", "remote", configv3.RateLimitUnit_MINUTE, 6)
	newer.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 99, protowire.VarintType), 1))
	deeper := limit("d", "remote", configv3.RateLimitUnit_MINUTE, 6)
	deeper.Descriptors[0].RateLimit.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 99, protowire.VarintType), 1))
	for nonce, bad := range map[string]struct {
		resources []proto.Message
		want      string
	}{
		"no unit":      {[]proto.Message{limit("d", "remote", 0, 6)}, "unit"},
		"another unit": {[]proto.Message{limit("d", "remote", 77, 6)}, "unit"},
		"no domain":    {[]proto.Message{limit("", "remote", 1, 6), limit("d", "", 1, 6)}, "key"},
		"another type": {[]proto.Message{&discoveryv3.DiscoveryRequest{}}, "resource of type"},
		"a new field":  {[]proto.Message{newer}, "not known here"},
		"deep field":   {[]proto.Message{deeper}, "not known here"},
		"twice":        {[]proto.Message{limit("d", "file", 1, 6)}, "stands in two files"},
	} {
		r := s.say(t, "2", nonce, bad.resources...)
		if r.GetVersionInfo() != "1" || r.GetResponseNonce() != nonce || !strings.Contains(r.GetErrorDetail().GetMessage(), bad.want) {
			t.Errorf("%s: answered %v", nonce, r)
		}
	}
	if refused := c.refused.Load(); refused != 7 || c.explain("remote") != first {
		t.Errorf("%d refused; in force: %s", refused, c.explain("remote"))
	}

	s.grpc.Stop()
	s, _ = start(t, address)
	if r := within(t, s.requests); r.GetVersionInfo() != "1" || r.GetResponseNonce() != "" {
		t.Errorf("first request of the new stream: %v", r)
	}
	if c.explain("remote") != first {
		t.Error("the rules went with the server")
	}
	s.say(t, "3", "n3")
	if got := c.explain("remote"); got != "no rule: every request passes" {
		t.Errorf("an answer replaces the one before: %s", got)
	}
	if c.log.Count("xds server is gone") != 1 || c.log.Count("xds server is back") != 1 {
		t.Error(c.log.String())
	}
}

func TestReload(t *testing.T) {
	s, address := start(t, "127.0.0.1:0")
	c := follow(t, address)
	within(t, s.requests)
	s.say(t, "1", "n1", limit("d", "remote", configv3.RateLimitUnit_HOUR, 5))
	if _, err := c.Reload(files(t, strings.ReplaceAll(fromFile, "file", "remote"))); err == nil {
		t.Error("files that say what the server says were taken")
	}
	commit, err := c.Reload(files(t, strings.ReplaceAll(fromFile, "file", "other")))
	if err != nil {
		t.Fatal(err)
	}
	commit()
	if c.explain("other") == c.explain("file") || !strings.HasPrefix(c.explain("remote"), "rule remote") {
		t.Errorf("%s; %s", c.explain("other"), c.explain("remote"))
	}
	// What is committed may have ceased to go with the server's rules.
	if commit, err = c.Reload(files(t, strings.ReplaceAll(fromFile, "file", "late"))); err != nil {
		t.Fatal(err)
	}
	s.say(t, "2", "n2", limit("d", "late", configv3.RateLimitUnit_HOUR, 5))
	commit()
	if refused := c.refused.Load(); refused != 1 || !strings.HasPrefix(c.explain("other"), "rule other") {
		t.Errorf("%d refused, %s", refused, c.explain("other"))
	}
}

func TestConfig(t *testing.T) {
	type section struct {
		XDS Config `yaml:"xds" doc:"-"`
	}
	for text, want := range map[string]string{
		"":                                     "",
		"server: h:1":                          "",
		"server: h:1, tls: true":               "",
		"server: nowhere":                      "xds.server",
		"server: h:1, node: ''":                "xds.node",
		"server: h:1, ca_file: f":              "xds.tls",
		"server: h:1, tls: true, cert_file: f": "xds.cert_file",
	} {
		_, err := config.Decode("f.yaml", []byte("xds: {"+text+"}"), section{Default()})
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []Config{
		{Server: "h:1", TLS: true, CAFile: "missing"}, {Server: "h:1", TLS: true, CAFile: config.Path(empty)},
		{Server: "h:1", TLS: true, CertFile: "missing", KeyFile: "missing"},
	} {
		if _, err := New(Options{Config: c}); err == nil {
			t.Errorf("%+v was taken", c)
		}
	}
	if c, err := New(Options{Config: Config{Server: "h:1", TLS: true}, Log: slog.New(slog.DiscardHandler)}); err != nil || c.conn.Close() != nil {
		t.Error(err)
	}
}
