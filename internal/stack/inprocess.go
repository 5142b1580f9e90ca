package stack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/tollgate-proxy/tollgate/internal/echo"
)

// inProcess is a server within this process that ends once.
type inProcess struct {
	once sync.Once
	done chan struct{}
	stop func(grace time.Duration) error
	err  error
}

func newInProcess(stop func(grace time.Duration) error) *inProcess {
	return &inProcess{done: make(chan struct{}), stop: stop}
}

func (s *inProcess) Stop(grace time.Duration) error {
	s.once.Do(func() {
		s.err = s.stop(grace)
		close(s.done)
	})
	return s.err
}

func (s *inProcess) Kill() error           { return s.Stop(0) }
func (s *inProcess) Done() <-chan struct{} { return s.done }
func (s *inProcess) PID() int              { return 0 }
func (s *inProcess) Tail(int) []string     { return nil }
func (s *inProcess) Err() error            { return nil }

// startEcho serves the echo backend, HTTP/1.1 and h2c.
func startEcho(ctx context.Context, address string) (runner, error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("echo backend: %w", err)
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{
		Handler:           echo.Handler(),
		Protocols:         protocols,
		ReadHeaderTimeout: 10 * time.Second,
		MaxHeaderBytes:    1 << 20,
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	return newInProcess(func(grace time.Duration) error {
		// Envoy keeps its connections open: those that are idle when the grace ends
		// are closed under it.
		drain, cancel := context.WithTimeout(context.Background(), min(grace, time.Second))
		defer cancel()
		err := server.Shutdown(drain)
		if errors.Is(err, context.DeadlineExceeded) {
			err = server.Close()
		}
		if serveErr := <-served; !errors.Is(serveErr, http.ErrServerClosed) {
			err = errors.Join(err, serveErr)
		}
		return err
	}), nil
}

// redisClock is how often the embedded Redis is told that time has passed; keys
// expire at most this much late.
const redisClock = 50 * time.Millisecond

// startEmbeddedRedis serves an empty Redis-compatible store. Its keys do not
// expire by themselves, so its clock is driven by this process's.
func startEmbeddedRedis(address string) (runner, error) {
	server := miniredis.NewMiniRedis()
	if err := server.StartAddr(address); err != nil {
		return nil, fmt.Errorf("embedded redis: %w", err)
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(redisClock)
		defer tick.Stop()
		last := time.Now()
		for {
			select {
			case <-stop:
				return
			case now := <-tick.C:
				server.FastForward(now.Sub(last))
				last = now
			}
		}
	}()
	return newInProcess(func(time.Duration) error {
		close(stop)
		<-stopped
		server.Close()
		return nil
	}), nil
}
