package redistest

import (
	"bytes"
	"context"
	"io"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/polltest"
)

// Cluster starts that many masters that share the slots of a Redis Cluster, and
// returns their addresses.
func Cluster(t testing.TB, nodes int) []string {
	t.Helper()
	addrs := make([]string, nodes)
	for i := range addrs {
		addrs[i] = Server(t, "--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--cluster-node-timeout", "30000")
	}
	host, port, err := net.SplitHostPort(addrs[0])
	if err != nil {
		t.Fatal(err)
	}
	const slots = 16384
	for i, a := range addrs {
		c := Client(t, a)
		if err := c.ClusterAddSlotsRange(t.Context(), i*slots/nodes, (i+1)*slots/nodes-1).Err(); err != nil {
			t.Fatal(err)
		}
		if i > 0 {
			if err := c.ClusterMeet(t.Context(), host, port).Err(); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, a := range addrs {
		c := Client(t, a)
		polltest.Until(t, "the cluster is whole", func() bool {
			info := c.ClusterInfo(t.Context()).Val()
			return strings.Contains(info, "cluster_state:ok") && strings.Contains(info, "cluster_known_nodes:"+strconv.Itoa(nodes))
		})
	}
	return addrs
}

// LostAnswers makes connections that may lose the answer to a command that the
// server has run, and break then. It is safe for concurrent use.
type LostAnswers struct {
	// Of is a text that stands in the commands in question.
	Of   string
	lose atomic.Bool
	sent atomic.Int32
}

// LoseNext loses the answer to the next of the commands.
func (l *LostAnswers) LoseNext() { l.lose.Store(true) }

// Sent is how many writes had such a command.
func (l *LostAnswers) Sent() int { return int(l.sent.Load()) }

// Cluster returns a client of a Cluster over such connections, with retries as
// go-redis has them by itself. It is closed with the test.
func (l *LostAnswers) Cluster(t testing.TB, addrs []string) *redis.ClusterClient {
	t.Helper()
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		var d net.Dialer
		c, err := d.DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &losing{Conn: c, answers: l}, nil
	}
	c := redis.NewClusterClient(&redis.ClusterOptions{Addrs: addrs, MaxRetries: -1, Dialer: dial})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

type losing struct {
	net.Conn
	answers *LostAnswers
	asked   bool // for what will not be answered
	broken  bool
}

func (c *losing) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte(c.answers.Of)) {
		c.answers.sent.Add(1)
		c.asked = c.answers.lose.CompareAndSwap(true, false) || c.asked
	}
	return c.Conn.Write(b)
}

func (c *losing) Read(b []byte) (int, error) {
	if c.broken {
		return 0, io.EOF
	}
	n, err := c.Conn.Read(b)
	if c.broken = c.asked; c.broken {
		return 0, io.EOF
	}
	return n, err
}
