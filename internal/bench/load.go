package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// load sends unary gRPC calls over raw HTTP/2: requests are made beforehand and
// nothing is allocated for each, so that the generator stays cheaper than what
// it measures. A closed loop: each connection keeps inflight calls under way.
type load struct {
	addr     string
	method   string   // /package.Service/Method
	messages [][]byte // marshalled, one is chosen at random for each call
	conns    int
	inflight int
	classify func(message []byte) kind
}

// kind sorts answers.
type kind int

const (
	passed kind = iota
	refused
	failed
)

// result is what came of a load.
type result struct {
	passed, refused, failed atomic.Int64
	mu                      sync.Mutex
	micros                  []int32
	failure                 atomic.Pointer[string]
}

func (r *result) requests() int64 {
	return r.passed.Load() + r.refused.Load() + r.failed.Load()
}

// percentile returns a latency in microseconds; call it after the load ended.
func (r *result) percentile(p float64) int32 {
	if len(r.micros) == 0 {
		return 0
	}
	slices.Sort(r.micros)
	return r.micros[min(len(r.micros)-1, int(p*float64(len(r.micros))))]
}

// run sends calls until ctx ends.
func (l *load) run(ctx context.Context, r *result) error {
	errs := make(chan error, l.conns)
	for range l.conns {
		go func() { errs <- l.connection(ctx, r) }()
	}
	var all []error
	for range l.conns {
		if err := <-errs; err != nil {
			all = append(all, err)
		}
	}
	return errors.Join(all...)
}

// call is one stream under way.
type call struct {
	began time.Time
	body  []byte
}

func (l *load) connection(ctx context.Context, r *result) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", l.addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })
	defer stop()
	c := &client{load: l, result: r, out: bufio.NewWriterSize(conn, 64<<10), calls: map[uint32]*call{}, next: 1}
	c.framer = http2.NewFramer(c.out, bufio.NewReaderSize(conn, 64<<10))
	c.framer.SetReuseFrames()
	c.decoder = hpack.NewDecoder(4096, c.field)
	c.encode()
	if _, err := c.out.WriteString(http2.ClientPreface); err != nil {
		return err
	}
	const window = 1 << 30 // more than one run receives, so that nothing need be acknowledged
	if err := errors.Join(
		c.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: window}),
		c.framer.WriteWindowUpdate(0, window),
	); err != nil {
		return err
	}
	for range l.inflight {
		if err := c.begin(); err != nil {
			return err
		}
	}
	err = c.loop()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// client is the state of one connection.
type client struct {
	*load
	*result
	out     *bufio.Writer
	framer  *http2.Framer
	decoder *hpack.Decoder
	header  []byte // encoded request header, the same for every call
	calls   map[uint32]*call
	free    []*call
	next    uint32
	status  string // grpc-status of the header block being decoded
	frame   []byte
	micros  []int32
}

// encode makes the request header without the dynamic table, so that one
// encoding serves every call.
func (c *client) encode() {
	buf := sliceWriter{}
	e := hpack.NewEncoder(&buf)
	e.SetMaxDynamicTableSize(0)
	for _, f := range []hpack.HeaderField{
		{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: c.method},
		{Name: ":authority", Value: c.addr}, {Name: "content-type", Value: "application/grpc"}, {Name: "te", Value: "trailers"},
	} {
		_ = e.WriteField(f) // a sliceWriter does not fail
	}
	c.header = buf.data
}

type sliceWriter struct{ data []byte }

func (s *sliceWriter) Write(p []byte) (int, error) {
	s.data = append(s.data, p...)
	return len(p), nil
}

func (c *client) begin() error {
	id := c.next
	c.next += 2
	if id > 1<<30 {
		return errors.New("stream ids are used up")
	}
	var x *call
	if n := len(c.free); n > 0 {
		x, c.free = c.free[n-1], c.free[:n-1]
		*x = call{body: x.body[:0]}
	} else {
		x = &call{}
	}
	x.began = time.Now()
	c.calls[id] = x
	m := c.messages[rand.IntN(len(c.messages))] //nolint:gosec // a choice of load, not a secret
	c.frame = append(c.frame[:0], 0)
	c.frame = binary.BigEndian.AppendUint32(c.frame, uint32(len(m))) //nolint:gosec // messages are small
	c.frame = append(c.frame, m...)
	if err := c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: c.header, EndHeaders: true}); err != nil {
		return err
	}
	return c.framer.WriteData(id, true, c.frame)
}

func (c *client) field(f hpack.HeaderField) {
	if f.Name == "grpc-status" {
		c.status = f.Value
	}
}

// loop reads frames, and begins a call for each that ends.
func (c *client) loop() error {
	defer func() {
		c.mu.Lock()
		c.result.micros = append(c.result.micros, c.micros...)
		c.mu.Unlock()
	}()
	reading := 0
	for {
		// Write only when all that has arrived is read.
		if reading == 0 {
			if err := c.out.Flush(); err != nil {
				return err
			}
		}
		f, err := c.framer.ReadFrame()
		if err != nil {
			return err
		}
		reading = (reading + 1) % 8
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				err = c.framer.WriteSettingsAck()
			}
			reading = 0
		case *http2.PingFrame:
			if !f.IsAck() {
				err = c.framer.WritePing(true, f.Data)
			}
			reading = 0
		case *http2.DataFrame:
			if x := c.calls[f.StreamID]; x != nil {
				x.body = append(x.body, f.Data()...)
			}
			if f.StreamEnded() { // an answer without trailers is none
				err = c.end(f.StreamID, "absent")
			}
		case *http2.HeadersFrame:
			c.status = ""
			if _, err = c.decoder.Write(f.HeaderBlockFragment()); err == nil && f.StreamEnded() {
				err = c.end(f.StreamID, c.status)
				reading = 0
			}
		case *http2.RSTStreamFrame:
			err = c.end(f.StreamID, f.ErrCode.String())
			reading = 0
		case *http2.GoAwayFrame:
			err = fmt.Errorf("the server closes the connection: %s", f.ErrCode)
		}
		if err != nil {
			return err
		}
	}
}

// end counts a call and begins the next.
func (c *client) end(id uint32, status string) error {
	x := c.calls[id]
	if x == nil {
		return nil
	}
	delete(c.calls, id)
	c.micros = append(c.micros, int32(min(time.Since(x.began).Microseconds(), 1<<30))) //nolint:gosec // bounded
	switch {
	case status != "0" || len(x.body) < 5:
		c.failed.Add(1)
		text := "grpc-status " + status
		c.failure.CompareAndSwap(nil, &text)
	case c.classify(x.body[5:]) == passed:
		c.passed.Add(1)
	default:
		c.refused.Add(1)
	}
	c.free = append(c.free, x)
	return c.begin()
}
