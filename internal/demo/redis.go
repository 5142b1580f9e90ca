package demo

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/redis/go-redis/v9"
)

const redisTimeout = 2 * time.Second

// checkRedis makes sure that somebody listens where a Redis URL points to, so that
// a wrong one is told at once. The error does not repeat the URL, which may hold a
// password.
func checkRedis(ctx context.Context, url string) error {
	options, err := redis.ParseURL(url)
	if err != nil {
		return errors.New("the Redis URL is not one: it must be redis://[user:password@]host:port/db, rediss://… or unix:///path")
	}
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, options.Network, options.Addr)
	if err != nil {
		return fmt.Errorf("no Redis answers at %s: start it, or leave the URL out to have one embedded: %w", options.Addr, err)
	}
	return conn.Close()
}
