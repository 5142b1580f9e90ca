package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tollgate-proxy/tollgate/internal/stack"
)

const (
	checkMethod     = "/envoy.service.auth.v3.Authorization/Check"
	rateLimitMethod = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"
)

func dial(t *testing.T, address string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// rawCodec sends and receives bytes as they are.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) ([]byte, error) {
	if b, ok := v.(*[]byte); ok {
		return *b, nil
	}
	return nil, fmt.Errorf("%T is no bytes", v)
}

func (rawCodec) Unmarshal(data []byte, v any) error {
	b, ok := v.(*[]byte)
	if !ok {
		return errors.New("not bytes")
	}
	*b = append([]byte(nil), data...)
	return nil
}

func invoke(t *testing.T, conn *grpc.ClientConn, method string, request []byte) ([]byte, codes.Code) {
	t.Helper()
	var answer []byte
	err := conn.Invoke(t.Context(), method, &request, &answer, grpc.ForceCodec(rawCodec{}))
	return answer, status.Code(err)
}

// testMalformedCalls: whatever arrives at the gRPC ports gets a defined answer,
// none of them a pass, and the process lives.
func testMalformedCalls(t *testing.T, s *system) {
	authz, limits := dial(t, s.Ports().Address(stack.AuthzGRPC)), dial(t, s.Ports().Address(stack.RatelimitGRPC))
	_, token := s.user(t, "admin")
	good, err := proto.Marshal(checkRequest(http.MethodGet, "/orders", token))
	if err != nil {
		t.Fatal(err)
	}
	panics := func() float64 {
		return s.metric(t, stack.AuthzOperations, "tollgate_panics_total") + s.metric(t, stack.RatelimitOps, "tollgate_panics_total")
	}
	before := panics()
	for _, tc := range []struct {
		name    string
		request []byte
		refused bool // by gRPC itself; else the answer is a denial, or an error all the same
	}{
		{"empty", nil, false},
		{"rubbish", []byte("\x00\xff\xfe\x01 this is no protobuf"), false},
		{"cut short", good[:len(good)-7], false},
		{"another message", []byte("\x0a\x08tollgate\x18\x01"), false},
		{"unknown fields", append(append([]byte(nil), mustMarshal(t, checkRequest(http.MethodGet, "/orders", ""))...), 0xba, 0x3e, 0x01, 'x'), false},
		{"no path", mustMarshal(t, checkRequest(http.MethodGet, "", token)), false},
		{"no method", mustMarshal(t, checkRequest("", "/orders", token)), false},
		{"path without a slash", mustMarshal(t, checkRequest(http.MethodGet, "orders", "")), false},
		{"no http", mustMarshal(t, &authv3.CheckRequest{Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{}}}), false},
		{"a token of a mebibyte", mustMarshal(t, checkRequest(http.MethodGet, "/orders", strings.Repeat("a", 1<<20))), false},
		{"a path of a mebibyte", mustMarshal(t, checkRequest(http.MethodGet, "/"+strings.Repeat("a/", 1<<19), "")), false},
		{"huge", mustMarshal(t, checkRequest(http.MethodGet, "/"+strings.Repeat("a", 8<<20), token)), true},
	} {
		t.Run("check: "+tc.name, func(t *testing.T) {
			answer, code := invoke(t, authz, checkMethod, tc.request)
			switch {
			case code == codes.Internal || code == codes.ResourceExhausted: // no pass: Envoy answers 503
				return
			case code != codes.OK || tc.refused:
				t.Fatalf("code %s", code)
			}
			var said authv3.CheckResponse
			if err := proto.Unmarshal(answer, &said); err != nil {
				t.Fatal(err)
			}
			denied := said.GetDeniedResponse()
			if said.GetStatus().GetCode() == 0 || denied == nil || denied.GetStatus().GetCode() < 400 {
				t.Errorf("not a denial: %v", &said)
			}
			if !strings.Contains(denied.GetBody(), `"code":"`) {
				t.Errorf("body %q", denied.GetBody())
			}
		})
	}
	entry := func(key, value string) *commonv3.RateLimitDescriptor_Entry {
		return &commonv3.RateLimitDescriptor_Entry{Key: key, Value: value}
	}
	user, _ := s.user(t, "free")
	for _, tc := range []struct {
		name    string
		request []byte
		code    codes.Code
		overall rlsv3.RateLimitResponse_Code
	}{
		{"empty", nil, codes.InvalidArgument, 0},
		{"rubbish", []byte("\x00\xff\xfe\x01 this is no protobuf"), codes.Internal, 0},
		{"cut short", mustMarshal(t, rateLimitRequest("free", user, "default"))[:20], codes.Internal, 0},
		{"no domain", mustMarshal(t, &rlsv3.RateLimitRequest{Descriptors: rateLimitRequest("free", user, "default").GetDescriptors()}), codes.InvalidArgument, 0},
		{"no descriptors", mustMarshal(t, &rlsv3.RateLimitRequest{Domain: "tollgate"}), codes.InvalidArgument, 0},
		{"descriptor without entries", mustMarshal(t, &rlsv3.RateLimitRequest{Domain: "tollgate", Descriptors: []*commonv3.RateLimitDescriptor{{}}}), codes.InvalidArgument, 0},
		{"unknown domain", mustMarshal(t, &rlsv3.RateLimitRequest{Domain: "nowhere", Descriptors: rateLimitRequest("free", user, "default").GetDescriptors()}), codes.OK, rlsv3.RateLimitResponse_OK},
		{"odd values", mustMarshal(t, rateLimitRequest("free", "\x00{}:\n"+strings.Repeat("é", 2000), "%s")), codes.OK, rlsv3.RateLimitResponse_OK},
		{"cost above the bucket", mustMarshal(t, &rlsv3.RateLimitRequest{Domain: "tollgate", HitsAddend: 4_000_000_000, Descriptors: rateLimitRequest("free", user, "default").GetDescriptors()}), codes.OK, rlsv3.RateLimitResponse_OVER_LIMIT},
		{"cost beyond 32 bits", mustMarshal(t, &rlsv3.RateLimitRequest{Domain: "tollgate", Descriptors: []*commonv3.RateLimitDescriptor{{
			Entries: []*commonv3.RateLimitDescriptor_Entry{entry("tier", "free"), entry("user", user), entry("endpoint", "default")}, HitsAddend: wrapperspb.UInt64(1 << 63),
		}}}), codes.OK, rlsv3.RateLimitResponse_OVER_LIMIT},
		{"huge", mustMarshal(t, rateLimitRequest("free", strings.Repeat("x", 8<<20), "default")), codes.ResourceExhausted, 0},
	} {
		t.Run("ratelimit: "+tc.name, func(t *testing.T) {
			answer, code := invoke(t, limits, rateLimitMethod, tc.request)
			if code != tc.code {
				t.Fatalf("code %s instead of %s", code, tc.code)
			}
			var said rlsv3.RateLimitResponse
			if err := proto.Unmarshal(answer, &said); err != nil {
				t.Fatal(err)
			}
			if code == codes.OK && said.GetOverallCode() != tc.overall {
				t.Errorf("%s instead of %s", said.GetOverallCode(), tc.overall)
			}
		})
	}
	t.Run("many descriptors", func(t *testing.T) {
		request := &rlsv3.RateLimitRequest{Domain: "tollgate"}
		for i := range 100_000 {
			request.Descriptors = append(request.Descriptors, &commonv3.RateLimitDescriptor{Entries: []*commonv3.RateLimitDescriptor_Entry{entry("tier", "free"), entry("user", fmt.Sprint(i))}})
		}
		if _, code := invoke(t, limits, rateLimitMethod, mustMarshal(t, request)); code != codes.InvalidArgument && code != codes.ResourceExhausted {
			t.Errorf("code %s", code)
		}
	})
	if n := panics() - before; n != 0 {
		t.Errorf("%v panics", n)
	}
	s.want(t, http.StatusOK, ask{path: "/orders", token: token})
}

func mustMarshal(t *testing.T, m proto.Message) []byte {
	t.Helper()
	data, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
