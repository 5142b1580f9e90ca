package rls

import (
	"sync"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
)

// codec reads and writes exchanges itself and leaves every other message, such
// as those of health checks, to the standard codec.
type codec struct{}

// Name implements encoding.CodecV2.
func (codec) Name() string { return proto.Name }

// Unmarshal implements encoding.CodecV2.
func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	x, ok := v.(*exchange)
	if !ok {
		return encoding.GetCodecV2(proto.Name).Unmarshal(data, v)
	}
	if len(data) == 1 {
		return decode(string(data[0].ReadOnlyData()), &x.req)
	}
	return decode(string(data.Materialize()), &x.req)
}

// Marshal implements encoding.CodecV2. An exchange is released.
func (codec) Marshal(v any) (mem.BufferSlice, error) {
	x, ok := v.(*exchange)
	if !ok {
		return encoding.GetCodecV2(proto.Name).Marshal(v)
	}
	buf := buffers.Get(0)
	var err error
	*buf, err = x.append((*buf)[:0])
	x.release()
	return mem.BufferSlice{mem.NewBuffer(buf, buffers)}, err
}

// bufferPool implements mem.BufferPool.
type bufferPool struct{ pool sync.Pool }

// bufferSize is what an answer fits into; grpc does not pool less than 1 KiB.
const bufferSize = 2048

var buffers = &bufferPool{sync.Pool{New: func() any {
	b := make([]byte, 0, bufferSize)
	return &b
}}}

// Get implements mem.BufferPool.
func (p *bufferPool) Get(int) *[]byte { return p.pool.Get().(*[]byte) } //nolint:forcetypeassert // The pool holds nothing else.

// Put implements mem.BufferPool.
func (p *bufferPool) Put(b *[]byte) { p.pool.Put(b) }
