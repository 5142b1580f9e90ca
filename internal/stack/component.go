package stack

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

// runner is a part that was started: a child process or a server within this
// process.
type runner interface {
	// Stop ends the part in good order, within grace, or else by force, which is
	// an error.
	Stop(grace time.Duration) error
	// Kill ends the part at once.
	Kill() error
	// Done is closed when the part has ended.
	Done() <-chan struct{}
	// PID is 0 for a part within this process.
	PID() int
	// Tail returns the last lines of the part's log.
	Tail(n int) []string
	// Err says how the part ended.
	Err() error
}

// component is one part of the stack: how it starts, and how it tells that it is
// ready.
type component struct {
	name      string
	endpoints []Endpoint
	log       string // empty for a part within this process
	after     []string
	start     func(ctx context.Context) (runner, error)
	ready     func(ctx context.Context) error // one attempt

	op      sync.Mutex // held while the part is started or ended
	mu      sync.Mutex // guards the fields below, and is never held for long
	running runner
	wanted  bool // false while somebody stopped or killed it on purpose
}

const (
	tailLines    = 12
	probePause   = 25 * time.Millisecond
	probeTimeout = 2 * time.Second
)

// ExitError says that a part ended although nobody asked it to.
type ExitError struct {
	// Name is the part's; Cause how it ended, nil for exit code 0.
	Name  string
	Cause error
	// Log is the path of its log, Tail its last lines.
	Log  string
	Tail []string
}

// Error tells it in one sentence, followed by the log's last lines.
func (e *ExitError) Error() string {
	how := "exit status 0"
	if e.Cause != nil {
		how = e.Cause.Error()
	}
	return fmt.Sprintf("%s ended by itself (%s)%s", e.Name, how, quoteLog(e.Log, e.Tail))
}

func (e *ExitError) Unwrap() error { return e.Cause }

func quoteLog(log string, tail []string) string {
	if len(tail) == 0 {
		return ""
	}
	return fmt.Sprintf("; the end of %s:\n    %s", log, strings.Join(tail, "\n    "))
}

// launch starts the part and returns once it is ready, or when ctx ends.
func (c *component) launch(ctx context.Context, onExit func(*ExitError)) error {
	c.op.Lock()
	defer c.op.Unlock()
	if _, running := c.state(); running {
		return fmt.Errorf("%s runs already", c.name)
	}
	r, err := c.start(ctx)
	if err != nil {
		return err
	}
	c.set(r, true)
	if err := c.await(ctx, r); err != nil {
		c.set(r, false)
		return errors.Join(err, r.Kill())
	}
	go func() {
		<-r.Done()
		if exit := c.unexpected(r); exit != nil && onExit != nil {
			onExit(exit)
		}
	}()
	return nil
}

// await polls the readiness probe of a part that was just started.
func (c *component) await(ctx context.Context, r runner) error {
	var last error
	tick := time.NewTicker(probePause)
	defer tick.Stop()
	for {
		attempt, cancel := context.WithTimeout(ctx, probeTimeout)
		err := c.ready(attempt)
		cancel()
		if err == nil {
			return nil
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		select {
		case <-r.Done():
			return &ExitError{Name: c.name, Cause: r.Err(), Log: c.log, Tail: r.Tail(tailLines)}
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return fmt.Errorf("%s: start interrupted: %w", c.name, context.Cause(ctx))
			}
			return fmt.Errorf("%s was not ready in time (%w)%s", c.name, last, quoteLog(c.log, r.Tail(tailLines)))
		case <-tick.C:
		}
	}
}

// unexpected returns how r ended if nobody asked it to.
func (c *component) unexpected(r runner) *ExitError {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.wanted || c.running != r {
		return nil
	}
	c.wanted = false
	return &ExitError{Name: c.name, Cause: r.Err(), Log: c.log, Tail: r.Tail(tailLines)}
}

// end stops the part with the given method; a part that does not run is no error.
func (c *component) end(how func(runner) error) error {
	c.op.Lock()
	defer c.op.Unlock()
	if _, running := c.state(); !running {
		return nil
	}
	c.mu.Lock()
	c.wanted = false
	r := c.running
	c.mu.Unlock()
	return how(r)
}

func (c *component) set(r runner, wanted bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running, c.wanted = r, wanted
}

// tail returns the last lines of the part's current or last run.
func (c *component) tail(n int) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running == nil {
		return nil
	}
	return c.running.Tail(n)
}

// state tells whether the part runs, and as which process (0 within this one).
func (c *component) state() (pid int, running bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running == nil {
		return 0, false
	}
	select {
	case <-c.running.Done():
		return 0, false
	default:
		return c.running.PID(), true
	}
}
