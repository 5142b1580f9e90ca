package replica

import (
	"context"
	"crypto/rand"
	"log/slog"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/redisconn"
)

// Hints tells the replicas of each other's opened circuits through Redis. A
// replica that hears of one checks the upstream's health at once: it never opens
// a circuit on another's word, and loses nothing but time where Redis is away.
type Hints struct {
	client redis.UniversalClient
	log    *slog.Logger
	self   string
	send   chan string
}

// NewHints returns hints on a connection that its caller closes.
func NewHints(client redis.UniversalClient, log *slog.Logger) *Hints {
	return &Hints{client: client, log: log, self: rand.Text(), send: make(chan string, 64)}
}

func hintChannel() string { return redisconn.Key("pyproxy", "opened") }

// Opened tells the others, without waiting; it may be dropped.
func (h *Hints) Opened(upstream string) {
	select {
	case h.send <- upstream:
	default:
	}
}

// Run sends and receives until ctx ends. heard is called with an upstream's name.
func (h *Hints) Run(ctx context.Context, heard func(upstream string)) error {
	sub := h.client.Subscribe(ctx, hintChannel())
	defer sub.Close() //nolint:errcheck // nothing is kept
	messages := sub.Channel()
	for {
		select {
		case <-ctx.Done():
			return nil
		case upstream := <-h.send:
			if err := h.client.Publish(ctx, hintChannel(), h.self+" "+upstream).Err(); err != nil {
				h.log.Debug("hint not sent", "upstream", upstream, "error", err)
			}
		case m, ok := <-messages:
			if !ok {
				<-ctx.Done()
				return nil
			}
			if from, upstream, ok := strings.Cut(m.Payload, " "); ok && from != h.self {
				heard(upstream)
			}
		}
	}
}
