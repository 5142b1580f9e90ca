package ratelimit

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/redisconn"
)

//go:embed lua/join.lua
var joinLua string

// Sharers keeps in Redis who shares a quota, so that all processes that serve
// quotas divide it among the same ones. On a Cluster quotas live all over it: no
// call assumes that two of them are on one server. It may be used by any number
// of goroutines.
type Sharers struct {
	client redis.Cmdable
	script *redisconn.Script
	now    func() time.Time
}

// NewSharers returns sharers kept with client.
func NewSharers(client redis.Cmdable, now func() time.Time) *Sharers {
	return &Sharers{client: client, script: redisconn.NewScript(joinLua), now: now}
}

// sharersPrefix begins the key of the hash of a quota's sharers: name to demand
// and end. The hash expires with the last of them.
const sharersPrefix = "tollgate:quota:"

// Part is what a sharer wants of a quota.
type Part struct {
	Key, Name string
	Demand    float64 // tokens a second
}

// Join notes what sharers want for as long as life, and returns, for each part,
// what the others want of its quota.
func (s *Sharers) Join(ctx context.Context, parts []Part, life time.Duration) ([][]float64, error) {
	others := make([][]float64, 0, len(parts))
	for chunk := range slices.Chunk(parts, MaxBatch) {
		found, err := s.join(ctx, chunk, life)
		if err != nil {
			return nil, fmt.Errorf("sharers of quotas: %w", err)
		}
		others = append(others, found...)
	}
	return others, nil
}

func (s *Sharers) join(ctx context.Context, parts []Part, life time.Duration) ([][]float64, error) {
	now := s.now()
	until := " " + strconv.FormatInt(now.Add(life).UnixMilli(), 10)
	calls := make([]redisconn.Call, len(parts))
	for i, part := range parts {
		wants := strconv.FormatFloat(part.Demand, 'g', 6, 64) + until
		calls[i] = redisconn.Call{Keys: []string{sharersPrefix + part.Key}, Args: []any{part.Name, wants, life.Milliseconds()}}
	}
	all, err := s.script.RunAllIdempotent(ctx, s.client, calls)
	if err != nil {
		return nil, err
	}
	others := make([][]float64, len(parts))
	var ended []Part
	for i, part := range parts {
		fields, err := all[i].StringSlice()
		if err != nil {
			return nil, err
		}
		for pair := range slices.Chunk(fields, 2) {
			if pair[0] == part.Name {
				continue
			}
			wanted, until, err := parseSharer(pair[1])
			if err != nil || until <= now.UnixMilli() {
				ended = append(ended, Part{Key: part.Key, Name: pair[0]})
				continue
			}
			others[i] = append(others[i], wanted)
		}
	}
	return others, s.forget(ctx, ended)
}

func parseSharer(text string) (demand float64, until int64, err error) {
	first, second, _ := strings.Cut(text, " ")
	demand, err1 := strconv.ParseFloat(first, 64)
	until, err2 := strconv.ParseInt(second, 10, 64)
	return demand, until, errors.Join(err1, err2)
}

// Leave gives back sharers' parts of quotas.
func (s *Sharers) Leave(ctx context.Context, parts []Part) error {
	for chunk := range slices.Chunk(parts, leaveBatch) {
		if err := s.forget(ctx, chunk); err != nil {
			return fmt.Errorf("leave quotas: %w", err)
		}
	}
	return nil
}

// leaveBatch is how many parts go back in one call.
const leaveBatch = 1000

// forget removes sharers, all in one call.
func (s *Sharers) forget(ctx context.Context, parts []Part) error {
	if len(parts) == 0 {
		return nil
	}
	_, err := s.client.Pipelined(ctx, func(p redis.Pipeliner) error {
		for _, part := range parts {
			p.HDel(ctx, sharersPrefix+part.Key, part.Name)
		}
		return nil
	})
	return err
}
