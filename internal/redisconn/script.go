package redisconn

import (
	"context"

	"github.com/redis/go-redis/v9"
)

// Processor sends a command, or queues it: a client or a pipeline.
type Processor interface {
	Process(ctx context.Context, cmd redis.Cmder) error
}

// Once sends, or queues, a command that the client never sends again by itself
// where its answer got lost: the server may have run it. A client of a Cluster
// would, whatever its number of retries, and so add, or charge, twice. A pipeline
// with such a command is not sent again either. Redirects are followed, for
// who redirects has not run it. The command holds its answer and its error.
func Once(ctx context.Context, p Processor, cmd redis.Cmder) error {
	return p.Process(ctx, once{cmd})
}

type once struct{ redis.Cmder }

// NoRetry is what the client asks a command.
func (once) NoRetry() bool { return true }

// Script is a Lua script. Every script of every package is one, so that each
// call says whether it may run twice; a test holds that. It is safe for
// concurrent use.
type Script struct {
	source string
	cached *redis.Script
}

// NewScript returns the script of that source.
func NewScript(source string) *Script { return &Script{source, redis.NewScript(source)} }

// Hash is what a server calls the script that it knows.
func (s *Script) Hash() string { return s.cached.Hash() }

// Load makes the servers know the script.
func (s *Script) Load(ctx context.Context, c redis.Scripter) error {
	return s.cached.Load(ctx, c).Err()
}

// Run runs the script on a client at most once: where the answer got lost, that
// is the error, and the script may have run or not. A server that does not know
// the script gets it.
func (s *Script) Run(ctx context.Context, c Processor, keys []string, args ...any) *redis.Cmd {
	cmd := s.once(ctx, c, "evalsha", s.Hash(), keys, args)
	if redis.HasErrorPrefix(cmd.Err(), "NOSCRIPT") {
		cmd = s.once(ctx, c, "eval", s.source, keys, args)
	}
	return cmd
}

func (s *Script) once(ctx context.Context, c Processor, name, what string, keys []string, args []any) *redis.Cmd {
	all := make([]any, 0, 3+len(keys)+len(args))
	all = append(all, name, what, len(keys))
	for _, key := range keys {
		all = append(all, key)
	}
	cmd := redis.NewCmd(ctx, append(all, args...)...)
	_ = Once(ctx, c, cmd) // The command holds its error.
	return cmd
}

// RunIdempotent runs a script that does no harm when it runs twice, and whose
// second answer is as good as the first: the client of a Cluster sends it again
// where its answer got lost.
func (s *Script) RunIdempotent(ctx context.Context, c redis.Scripter, keys []string, args ...any) *redis.Cmd {
	return s.cached.Run(ctx, c, keys, args...)
}

// Call is one call of several.
type Call struct {
	Keys []string
	Args []any
}

// RunAllIdempotent is RunIdempotent for several calls, in one round trip. The
// error is the first of any.
func (s *Script) RunAllIdempotent(ctx context.Context, c redis.Cmdable, calls []Call) ([]*redis.Cmd, error) {
	answers, err := s.runAll(ctx, c, calls)
	if redis.HasErrorPrefix(err, "NOSCRIPT") { // nobody has run it since Redis started
		if err = s.Load(ctx, c); err == nil {
			answers, err = s.runAll(ctx, c, calls)
		}
	}
	return answers, err
}

func (s *Script) runAll(ctx context.Context, c redis.Cmdable, calls []Call) ([]*redis.Cmd, error) {
	answers := make([]*redis.Cmd, len(calls))
	_, err := c.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for i, call := range calls {
			answers[i] = pipe.EvalSha(ctx, s.Hash(), call.Keys, call.Args...)
		}
		return nil
	})
	return answers, err
}
