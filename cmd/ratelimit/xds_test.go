package main

import (
	"net"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	configv3 "github.com/envoyproxy/go-control-plane/ratelimit/config/ratelimit/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/tollgate-proxy/tollgate/internal/polltest"
	"github.com/tollgate-proxy/tollgate/internal/redistest"
)

// manager is an xDS management server of one rule: user x may ask 3 times.
type manager struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	rule *anypb.Any
}

func (m manager) StreamAggregatedResources(stream grpc.BidiStreamingServer[discoveryv3.DiscoveryRequest, discoveryv3.DiscoveryResponse]) error {
	request, err := stream.Recv()
	if err != nil {
		return err
	}
	if err := stream.Send(&discoveryv3.DiscoveryResponse{VersionInfo: "1", Nonce: "1", TypeUrl: request.GetTypeUrl(), Resources: []*anypb.Any{m.rule}}); err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}

// TestManagedRules adds a management server's rule to the file's, and keeps it
// when the file changes.
func TestManagedRules(t *testing.T) {
	rule, err := anypb.New(&configv3.RateLimitConfig{Name: "one", Domain: "tollgate", Descriptors: []*configv3.RateLimitDescriptor{{
		Key: "tier", Descriptors: []*configv3.RateLimitDescriptor{{
			Key: "user", Value: "x", RateLimit: &configv3.RateLimitPolicy{Unit: configv3.RateLimitUnit_HOUR, RequestsPerUnit: 3},
		}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(server, manager{rule: rule})
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	r := start(t, redistest.Server(t), "TOLLGATE_LIMITS_XDS_SERVER="+listener.Addr().String())
	limit := func(user string) uint32 { return r.ask(user).GetStatuses()[0].GetCurrentLimit().GetRequestsPerUnit() }
	polltest.Until(t, "the server's rule is in force", func() bool { return limit("x") == 3 })
	if got := limit("y"); got != 10 {
		t.Errorf("the file's rule says %d", got)
	}
	r.write("20")
	polltest.Until(t, "the new file is in force", func() bool { return limit("y") == 20 })
	if got := limit("x"); got != 3 {
		t.Errorf("the server's rule says %d", got)
	}
	// What says the same as the server is refused.
	refused := `tollgate_ratelimit_rules_loads_total{result="refused"}`
	before := r.metric(refused)
	r.append("descriptors: [{key: tier, rate_limit: {unit: hour, requests_per_unit: 1}}]\n")
	polltest.Until(t, "the file is refused", func() bool { return r.metric(refused) != before })
	if got := limit("x"); got != 3 {
		t.Errorf("the server's rule says %d", got)
	}
}
