// Package redisconn connects a process to Redis: one server, Sentinel, Cluster,
// with or without TLS, or a Redis inside the process.
//
// Opening never dials: Redis may be away when a process starts, and what the
// process does then is the caller's answer, call by call. Monitor keeps the health
// component "redis" and the metric tollgate_redis_up true without traffic.
// Calls are not retried by the client: a retry on a request's way would be paid
// by the request's deadline, and a script that charges must not run twice. A
// client of a Cluster does not hold to that: as it follows redirects, it sends again
// what got no answer. What must not run twice goes through Once or [Script.Run].
package redisconn

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/extra/redisotel/v9"
	"github.com/redis/go-redis/v9"
	"go.opentelemetry.io/otel/trace"

	"github.com/tollgate-proxy/tollgate/internal/health"
)

// Prefix begins every key.
const Prefix = "tollgate:"

// Key joins parts to a key under Prefix, separated by colons. Colons, percent
// signs and braces inside a part are escaped, so that no two lists of parts make
// the same key and no value chosen by a user moves a key to another hash slot.
func Key(parts ...string) string {
	var b strings.Builder
	b.WriteString(Prefix)
	for i, p := range parts {
		if i > 0 {
			b.WriteByte(':')
		}
		writeEscaped(&b, p)
	}
	return b.String()
}

// Escape escapes one part as Key does, for callers that build keys themselves.
func Escape(part string) string {
	if !strings.ContainsAny(part, special) {
		return part
	}
	var b strings.Builder
	writeEscaped(&b, part)
	return b.String()
}

const special = ":%{}"

func writeEscaped(b *strings.Builder, part string) {
	for i := range len(part) {
		c := part[i]
		if strings.IndexByte(special, c) >= 0 {
			fmt.Fprintf(b, "%%%02X", c)
			continue
		}
		b.WriteByte(c)
	}
}

// Options are what a connection reports to. All but Log may be nil.
type Options struct {
	// Name tells several connections of one process apart in metrics, logs and
	// health; "redis" where empty.
	Name    string
	Log     *slog.Logger
	Metrics prometheus.Registerer
	Tracer  trace.TracerProvider
	Health  *health.Registry
	// Critical makes the process not ready while Redis is away.
	Critical bool
}

// Conn is a connection pool. It is safe for concurrent use.
type Conn struct {
	redis.UniversalClient
	name      string
	interval  time.Duration
	timeout   time.Duration
	log       *slog.Logger
	component *health.Component
	up        prometheus.Gauge
	embedded  *embedded
}

// Open makes the connection of a validated configuration. The client library's
// own log, which has one destination in a process, goes to o.Log as debug: what
// matters is said by Monitor, once a change.
func Open(cfg Config, o Options) (*Conn, error) {
	redis.SetLogger(libraryLog{o.Log})
	if o.Name == "" {
		o.Name = "redis"
	}
	c := &Conn{name: o.Name, interval: cfg.PingInterval, timeout: cfg.Timeout, log: o.Log, up: prometheus.NewGauge(prometheus.GaugeOpts{})}
	options := &redis.UniversalOptions{
		Username: cfg.Username, Password: cfg.Password.Reveal(),
		Addrs: cfg.Addresses, MasterName: cfg.MasterName,
		IsClusterMode:   cfg.Mode == Cluster,
		PoolSize:        cfg.PoolSize,
		DialTimeout:     cfg.DialTimeout,
		ReadTimeout:     cfg.Timeout,
		WriteTimeout:    cfg.Timeout,
		PoolTimeout:     cfg.Timeout,
		MaxRetries:      -1,
		DialerRetries:   1,
		DisableIdentity: true,
		// Callers' deadlines hold on the socket too.
		ContextTimeoutEnabled: true,
	}
	if cfg.Mode == Sentinel {
		options.SentinelUsername, options.SentinelPassword = cfg.Username, cfg.Password.Reveal()
	}
	if cfg.usesTLS() {
		t, err := tlsConfig(cfg)
		if err != nil {
			return nil, err
		}
		options.TLSConfig = t
	}
	switch cfg.Mode {
	case Standalone:
		single, err := redis.ParseURL(cfg.URL.Reveal())
		if err != nil {
			return nil, errors.New("redis.url is not a Redis URL") // the cause may hold the password
		}
		if options.TLSConfig != nil && single.TLSConfig != nil {
			options.TLSConfig.ServerName = single.TLSConfig.ServerName
			single.TLSConfig = options.TLSConfig
		}
		single.PoolSize, single.MaxRetries, single.DialerRetries = options.PoolSize, -1, 1
		single.DialTimeout, single.ReadTimeout, single.WriteTimeout, single.PoolTimeout = options.DialTimeout, options.ReadTimeout, options.WriteTimeout, options.PoolTimeout
		single.ContextTimeoutEnabled, single.DisableIdentity = true, true
		c.UniversalClient = redis.NewClient(single)
	case Embedded:
		e, err := startEmbedded()
		if err != nil {
			return nil, err
		}
		c.embedded = e
		options.Addrs = []string{e.Addr()}
		c.UniversalClient = redis.NewUniversalClient(options)
		o.Log.Warn("redis is embedded: nothing is kept when this process ends, and no other process shares it")
	default:
		c.UniversalClient = redis.NewUniversalClient(options)
	}
	return c, c.instrument(o)
}

type libraryLog struct{ log *slog.Logger }

// Printf implements the library's logger.
func (l libraryLog) Printf(ctx context.Context, format string, v ...any) {
	l.log.DebugContext(ctx, "redis client", "message", fmt.Sprintf(format, v...))
}

func (c *Conn) instrument(o Options) error {
	if o.Tracer != nil {
		// Statements hold keys, and keys hold user ids: they stay out of traces.
		if err := redisotel.InstrumentTracing(c.UniversalClient, redisotel.WithTracerProvider(o.Tracer), redisotel.WithDBStatement(false)); err != nil {
			return fmt.Errorf("instrument redis: %w", err)
		}
	}
	if o.Health != nil {
		c.component = o.Health.Component(c.name, o.Critical)
	}
	if o.Metrics != nil {
		label := prometheus.Labels{"connection": c.name}
		c.up = prometheus.NewGauge(prometheus.GaugeOpts{Name: "tollgate_redis_up", Help: "1 while Redis answers pings.", ConstLabels: label})
		o.Metrics.MustRegister(c.up, newPoolCollector(c.UniversalClient, label))
	}
	return nil
}

func tlsConfig(cfg Config) (*tls.Config, error) {
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if cfg.TLSCAFile != "" {
		pem, err := os.ReadFile(string(cfg.TLSCAFile))
		if err != nil {
			return nil, fmt.Errorf("redis.tls_ca_file: %w", err)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("redis.tls_ca_file: %s holds no certificate", cfg.TLSCAFile)
		}
	}
	if cfg.TLSCertFile != "" {
		cert, err := tls.LoadX509KeyPair(string(cfg.TLSCertFile), string(cfg.TLSKeyFile))
		if err != nil {
			return nil, fmt.Errorf("redis.tls_cert_file: %w", err)
		}
		t.Certificates = []tls.Certificate{cert}
	}
	return t, nil
}

// Monitor pings Redis until ctx ends, sets the health component and the metric,
// and logs each change once.
func (c *Conn) Monitor(ctx context.Context) error {
	tick := time.NewTicker(c.interval)
	defer tick.Stop()
	known, was := false, false
	for {
		pingCtx, cancel := context.WithTimeout(ctx, c.timeout)
		err := c.Ping(pingCtx).Err()
		cancel()
		if ctx.Err() != nil {
			return nil
		}
		if up := err == nil; !known || up != was {
			known, was = true, up
			if up {
				c.up.Set(1)
				c.log.Info("redis answers", "connection", c.name)
			} else {
				c.up.Set(0)
				c.log.Error("redis does not answer", "connection", c.name, "error", err)
			}
			if c.component != nil {
				reason := ""
				if err != nil {
					reason = Cause(err)
				}
				c.component.Set(up, reason)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Cause sorts an error of a call into one of a few words, for metrics and health:
// timeout, refused, canceled, readonly, auth or error.
func Cause(err error) string {
	var netErr net.Error
	switch text := err.Error(); {
	case errors.Is(err, context.Canceled):
		return "canceled"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, redis.ErrPoolTimeout), errors.As(err, &netErr) && netErr.Timeout():
		return "timeout"
	case strings.Contains(text, "connection refused"):
		return "refused"
	case strings.HasPrefix(text, "READONLY"):
		return "readonly"
	case strings.HasPrefix(text, "NOAUTH"), strings.HasPrefix(text, "WRONGPASS"), strings.HasPrefix(text, "NOPERM"):
		return "auth"
	default:
		return "error"
	}
}

// Close closes the pool, and stops the embedded server.
func (c *Conn) Close() error {
	err := c.UniversalClient.Close()
	if c.embedded != nil {
		c.embedded.Close()
	}
	return err
}

// poolCollector exports the pool's counters.
type poolCollector struct {
	client redis.UniversalClient
	conns  *prometheus.Desc
	waits  *prometheus.Desc
}

func newPoolCollector(client redis.UniversalClient, label prometheus.Labels) prometheus.Collector {
	return &poolCollector{
		client: client,
		conns:  prometheus.NewDesc("tollgate_redis_connections", "Connections of the pool, by state.", []string{"state"}, label),
		waits:  prometheus.NewDesc("tollgate_redis_pool_timeouts_total", "Calls that found no free connection in time.", nil, label),
	}
}

func (p *poolCollector) Describe(ch chan<- *prometheus.Desc) { ch <- p.conns; ch <- p.waits }

func (p *poolCollector) Collect(ch chan<- prometheus.Metric) {
	s := p.client.PoolStats()
	ch <- prometheus.MustNewConstMetric(p.conns, prometheus.GaugeValue, float64(s.IdleConns), "idle")
	ch <- prometheus.MustNewConstMetric(p.conns, prometheus.GaugeValue, float64(s.TotalConns)-float64(s.IdleConns), "used")
	ch <- prometheus.MustNewConstMetric(p.waits, prometheus.CounterValue, float64(s.Timeouts))
}

// embedded is a Redis inside the process. Its keys do not expire by themselves:
// a ticker moves its clock.
type embedded struct {
	*miniredis.Miniredis
	stop chan struct{}
	done chan struct{}
}

// StartEmbedded starts an embedded Redis on a loopback address ("" chooses a free
// port) for processes to share on one machine, and returns its address and the
// function that stops it. It speaks to everyone on the machine, and keeps nothing.
func StartEmbedded(addr string) (string, func(), error) {
	e, err := start(addr)
	if err != nil {
		return "", nil, err
	}
	return e.Addr(), e.Close, nil
}

func startEmbedded() (*embedded, error) { return start("127.0.0.1:0") }

func start(addr string) (*embedded, error) {
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	e := &embedded{Miniredis: miniredis.NewMiniRedis(), stop: make(chan struct{}), done: make(chan struct{})}
	if err := e.StartAddr(addr); err != nil {
		return nil, fmt.Errorf("embedded redis at %s: %w", addr, err)
	}
	go e.run(time.Now)
	return e, nil
}

// run lets the keys' time to live pass as the clock does.
func (e *embedded) run(now func() time.Time) {
	defer close(e.done)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	last := now()
	for {
		select {
		case <-e.stop:
			return
		case <-tick.C:
			t := now()
			if d := t.Sub(last); d > 0 {
				e.FastForward(d)
			}
			last = t
		}
	}
}

// Close stops the server.
func (e *embedded) Close() {
	close(e.stop)
	<-e.done
	e.Miniredis.Close()
}
