package wirecodec

import (
	"context"
	"errors"
	"net"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// raw is a message that keeps its bytes.
type raw struct{ data []byte }

func (r *raw) UnmarshalWire(data []byte) error {
	if len(data) > 100 {
		return errors.New("too long")
	}
	r.data = append([]byte(nil), data...)
	return nil
}

func (r *raw) MarshalWire() ([]byte, error) {
	if len(r.data) == 0 {
		return nil, errors.New("empty")
	}
	return r.data, nil
}

type echoServer interface{ isEcho() }

type echo struct{}

func (echo) isEcho() {}

func serve(t *testing.T, options ...grpc.ServerOption) *grpc.ClientConn {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(append(options, grpc.ForceServerCodecV2(New()))...)
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: "test.Echo", HandlerType: (*echoServer)(nil),
		Methods: []grpc.MethodDesc{Method("test.Echo", "Echo", func(_ echo, _ context.Context, r *raw) (any, error) { return r, nil })},
	}, echo{})
	grpc_health_v1.RegisterHealthServer(s, health.NewServer())
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	c, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestBothKindsOfMessages(t *testing.T) {
	intercepted := 0
	for name, options := range map[string][]grpc.ServerOption{
		"plain": nil,
		"intercepted": {grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
			if info.FullMethod == "/test.Echo/Echo" {
				intercepted++
			}
			return h(ctx, req)
		})},
	} {
		t.Run(name, func(t *testing.T) {
			c := serve(t, options...)
			in, out := wrapperspb.String("hello"), &wrapperspb.StringValue{}
			if err := c.Invoke(t.Context(), "/test.Echo/Echo", in, out); err != nil || out.GetValue() != "hello" {
				t.Errorf("by hand: %v, %v", out, err)
			}
			if _, err := grpc_health_v1.NewHealthClient(c).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{}); err != nil {
				t.Errorf("generated: %v", err)
			}
			long := wrapperspb.String(string(make([]byte, 200)))
			if err := c.Invoke(t.Context(), "/test.Echo/Echo", long, out); status.Code(err) != codes.Internal {
				t.Errorf("a request that cannot be read: %v", err)
			}
			if err := c.Invoke(t.Context(), "/test.Echo/Echo", wrapperspb.String(""), out); status.Code(err) != codes.Internal {
				t.Errorf("an answer that cannot be written: %v", err)
			}
		})
	}
	if intercepted != 2 { // the request that could not be read never got there
		t.Errorf("the interceptor saw %d calls", intercepted)
	}
}

func TestRequestInPieces(t *testing.T) {
	var r raw
	pieces := mem.BufferSlice{mem.SliceBuffer("ab"), mem.SliceBuffer("cd")}
	if err := New().Unmarshal(pieces, &r); err != nil || string(r.data) != "abcd" {
		t.Errorf("got %q, %v", r.data, err)
	}
}
