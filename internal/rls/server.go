// Package rls adapts the rate limiter to Envoy's rate limit service protocol,
// version 3. It translates and nothing more: every decision is
// internal/ratelimit's.
//
// Requests are read from, and answers written to, the wire format directly,
// without the generated messages: at the rate of a busy proxy those cost more
// than the decision. Tests hold both directions equal to the generated code.
package rls

import (
	"context"
	"errors"
	"net/http"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tollgate-proxy/tollgate/internal/problem"
	"github.com/tollgate-proxy/tollgate/internal/ratelimit"
)

// Decider decides requests; *ratelimit.Limiter is one.
type Decider interface {
	Decide(ctx context.Context, req *ratelimit.Request, dec *ratelimit.Decision) error
}

// Options are what a [Server] is made of.
type Options struct {
	Decider Decider
	// Headers adds the RateLimit headers to every answer.
	Headers bool
}

// Server is the rate limit service. It may be used by any number of
// goroutines. Use [New].
type Server struct {
	decider   Decider
	headers   bool
	denied    []byte
	exchanges sync.Pool
}

// New returns a server.
func New(o Options) *Server {
	s := &Server{
		decider: o.Decider, headers: o.Headers,
		denied: problem.New(http.StatusTooManyRequests, ratelimit.DeniedCode, ratelimit.DeniedDetail).JSON(),
	}
	s.exchanges.New = func() any { return &exchange{server: s} }
	return s
}

// exchange is one call: the request, then the answer. It is both messages to
// grpc, and reused.
type exchange struct {
	server *Server
	req    ratelimit.Request
	dec    ratelimit.Decision
	value  []byte // of the header being written
}

func (x *exchange) release() { x.server.exchanges.Put(x) }

// workers is how many goroutines are kept for calls, so that not each grows a
// stack of its own. More calls at once get goroutines of their own.
const workers = 256

// Options are the options that the service's grpc server must have.
func (s *Server) Options() []grpc.ServerOption {
	return []grpc.ServerOption{grpc.ForceServerCodecV2(codec{}), grpc.NumStreamWorkers(workers)}
}

// Register adds the service to a grpc server made with Options.
func (s *Server) Register(r grpc.ServiceRegistrar) { r.RegisterService(&serviceDesc, s) }

const (
	serviceName = "envoy.service.ratelimit.v3.RateLimitService"
	methodName  = "ShouldRateLimit"
)

// serviceDesc is the service with a handler for exchanges.
var serviceDesc = grpc.ServiceDesc{
	ServiceName: serviceName,
	HandlerType: (*service)(nil),
	Methods:     []grpc.MethodDesc{{MethodName: methodName, Handler: handle}},
	Metadata:    "envoy/service/ratelimit/v3/rls.proto",
}

type service interface {
	decide(ctx context.Context, x *exchange) (any, error)
	exchange() *exchange
}

func (s *Server) exchange() *exchange {
	return s.exchanges.Get().(*exchange) //nolint:forcetypeassert // The pool holds nothing else.
}

func handle(srv any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
	s := srv.(service) //nolint:forcetypeassert // Checked at registration.
	x := s.exchange()
	if err := decode(x); err != nil {
		x.release()
		return nil, err
	}
	if interceptor == nil {
		return s.decide(ctx, x)
	}
	info := &grpc.UnaryServerInfo{Server: srv, FullMethod: "/" + serviceName + "/" + methodName}
	return interceptor(ctx, x, info, func(ctx context.Context, _ any) (any, error) { return s.decide(ctx, x) })
}

// decide fills the exchange's answer. The codec releases the exchange when it
// has written it.
func (s *Server) decide(ctx context.Context, x *exchange) (any, error) {
	if err := s.decider.Decide(ctx, &x.req, &x.dec); err != nil {
		x.release()
		if errors.Is(err, ratelimit.ErrInvalid) {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
		return nil, status.Error(codes.Internal, "the request could not be decided")
	}
	return x, nil
}
