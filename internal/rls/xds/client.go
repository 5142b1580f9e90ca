package xds

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"

	"github.com/tollgate-proxy/tollgate/internal/ratelimit"
)

// Options are what a [Client] is made of. All but Retry are required.
type Options struct {
	Config Config
	// Files are the rules that the server's are added to.
	Files *ratelimit.Rules
	// Apply puts rules in force; Refused counts an answer that was not taken.
	Apply   func(*ratelimit.Rules)
	Refused func()
	// Retry is the first pause after a lost stream; it doubles up to thirty
	// times as much. One second where it is not set.
	Retry time.Duration
	Log   *slog.Logger
}

// Client follows the rules of a management server. Use [New].
type Client struct {
	o    Options
	conn *grpc.ClientConn

	mu     sync.Mutex
	files  *ratelimit.Rules
	remote []ratelimit.RuleFile
	// version is that of the answer in force, told to the server on a new stream.
	version string
}

// The longest silence of a connection until it is probed, the longest wait for
// that, and the largest answer.
const (
	probeAfter   = 30 * time.Second
	probeTimeout = 10 * time.Second
	maxAnswer    = 64 << 20
	maxBackoff   = 30
)

// New returns a client. It does not connect; the error names files of the
// configuration that cannot be read.
func New(o Options) (*Client, error) {
	if o.Retry <= 0 {
		o.Retry = time.Second
	}
	creds, err := o.Config.credentials()
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient(o.Config.Server, grpc.WithTransportCredentials(creds),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: probeAfter, Timeout: probeTimeout}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)))
	if err != nil {
		return nil, fmt.Errorf("xds server %q: %w", o.Config.Server, err)
	}
	return &Client{o: o, conn: conn, files: o.Files}, nil
}

// Reload checks other rule files beside what the server said last, and returns
// what puts both in force.
func (c *Client) Reload(files *ratelimit.Rules) (commit func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, err := files.With(c.remote...); err != nil {
		return nil, err
	}
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		rules, err := files.With(c.remote...)
		if err != nil {
			// The server said something else meanwhile that does not go with the files.
			c.o.Refused()
			c.o.Log.Warn("rate limit rules refused; those in force stay", slog.Any("error", err))
			return
		}
		c.files = files
		c.o.Apply(rules)
	}, nil
}

// Run follows the server until ctx ends.
func (c *Client) Run(ctx context.Context) error {
	pause := c.o.Retry
	var gone atomic.Bool
	for {
		answered, err := c.follow(ctx, func() {
			if gone.Swap(false) {
				c.o.Log.Info("xds server is back")
			}
		})
		if ctx.Err() != nil {
			return c.conn.Close()
		}
		if answered {
			pause = c.o.Retry
		}
		if !gone.Swap(true) {
			c.o.Log.Warn("xds server is gone; the rate limit rules known stay in force", slog.Any("error", err))
		}
		timer := time.NewTimer(pause/2 + rand.N(pause)) //nolint:gosec // Jitter is no secret.
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
		pause = min(2*pause, maxBackoff*c.o.Retry)
	}
}

// follow reads one stream until it ends, and says whether the server answered.
func (c *Client) follow(ctx context.Context, heard func()) (answered bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(c.conn).StreamAggregatedResources(ctx)
	if err != nil {
		return false, err
	}
	// A server whose rules are known already has nothing to answer.
	silent := time.AfterFunc(c.o.Retry, heard)
	defer silent.Stop()
	request := &discoveryv3.DiscoveryRequest{
		Node: &corev3.Node{Id: c.o.Config.Node}, TypeUrl: typeURL, VersionInfo: c.version,
	}
	for {
		if err := stream.Send(request); err != nil {
			_, err = stream.Recv() // It knows why.
			return answered, err
		}
		answer, err := stream.Recv()
		if err != nil {
			return answered, err
		}
		answered = true
		heard()
		request = &discoveryv3.DiscoveryRequest{Node: request.GetNode(), TypeUrl: typeURL, ResponseNonce: answer.GetNonce()}
		if err := c.take(answer); err != nil {
			c.o.Refused()
			c.o.Log.Warn("rate limit rules of the xds server refused; those in force stay",
				slog.String("version", answer.GetVersionInfo()), slog.Any("error", err))
			request.ErrorDetail = &rpcstatus.Status{Code: int32(codes.InvalidArgument), Message: err.Error()}
		}
		request.VersionInfo = c.version
	}
}

// take puts an answer in force, or says every fault of it.
func (c *Client) take(answer *discoveryv3.DiscoveryResponse) error {
	if answer.GetTypeUrl() != typeURL {
		return fmt.Errorf("answer of type %q, not %q", answer.GetTypeUrl(), typeURL)
	}
	var files []ratelimit.RuleFile
	var faults []error
	for _, resource := range answer.GetResources() {
		file, err := ruleFile(resource)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		files = append(files, file)
	}
	if len(faults) > 0 {
		return errors.Join(faults...)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	rules, err := c.files.With(files...)
	if err != nil {
		return err
	}
	c.remote, c.version = files, answer.GetVersionInfo()
	c.o.Apply(rules)
	c.o.Log.Info("rate limit rules of the xds server are in force", slog.String("version", c.version), slog.Int("resources", len(files)))
	return nil
}
