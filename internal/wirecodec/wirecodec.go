// Package wirecodec lets a gRPC service read and write its hottest messages by
// hand, beside generated code for all others.
//
// Decoding only the fields that are needed, and writing answers from prebuilt
// pieces, halves what a small call costs. Whatever implements the interfaces
// here is fuzzed against the generated code, which stays the definition of what
// is right.
package wirecodec

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
)

// Unmarshaler reads itself from the wire. It must not keep data.
type Unmarshaler interface {
	UnmarshalWire(data []byte) error
}

// Marshaler returns its wire form. The slice is the codec's afterwards.
type Marshaler interface {
	MarshalWire() ([]byte, error)
}

// Codec reads Unmarshalers and writes Marshalers by themselves, and everything
// else with generated code. It goes by the name of the codec it stands in for.
type Codec struct{ generated encoding.CodecV2 }

// New returns the codec, for grpc.ForceServerCodecV2.
func New() Codec { return Codec{encoding.GetCodecV2(proto.Name)} }

// Name implements encoding.CodecV2.
func (Codec) Name() string { return proto.Name }

// Marshal implements encoding.CodecV2.
func (c Codec) Marshal(v any) (mem.BufferSlice, error) {
	m, ok := v.(Marshaler)
	if !ok {
		return c.generated.Marshal(v)
	}
	data, err := m.MarshalWire()
	if err != nil {
		return nil, err
	}
	return mem.BufferSlice{mem.SliceBuffer(data)}, nil
}

// Unmarshal implements encoding.CodecV2.
func (c Codec) Unmarshal(data mem.BufferSlice, v any) error {
	u, ok := v.(Unmarshaler)
	if !ok {
		return c.generated.Unmarshal(data, v)
	}
	if len(data) == 1 { // the usual case: no copy
		return u.UnmarshalWire(data[0].ReadOnlyData())
	}
	buf := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buf.Free()
	return u.UnmarshalWire(buf.ReadOnlyData())
}

// Method returns the description of a unary method whose request is read as a
// Req. call's answer is a Marshaler or a generated message.
func Method[S any, Req any, PReq interface {
	*Req
	Unmarshaler
}](service, name string, call func(s S, ctx context.Context, r PReq) (any, error)) grpc.MethodDesc {
	full := "/" + service + "/" + name
	return grpc.MethodDesc{
		MethodName: name,
		Handler: func(srv any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
			request := PReq(new(Req))
			if err := decode(request); err != nil {
				return nil, err
			}
			server := srv.(S) //nolint:forcetypeassert // grpc checked the type when the service was registered
			if interceptor == nil {
				return call(server, ctx, request)
			}
			info := &grpc.UnaryServerInfo{Server: srv, FullMethod: full}
			return interceptor(ctx, request, info, func(ctx context.Context, r any) (any, error) {
				return call(server, ctx, r.(PReq)) //nolint:forcetypeassert // interceptors hand on what they were given
			})
		},
	}
}
