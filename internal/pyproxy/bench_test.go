package pyproxy_test

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tollgate-proxy/tollgate/internal/pyproxy"
)

// benchVariable makes the test binary the proxy of a benchmark: its value is the
// kind, and the service's address.
const benchVariable = "PYPROXY_BENCH"

func TestMain(m *testing.M) {
	if v := os.Getenv(benchVariable); v != "" {
		kind, address, _ := strings.Cut(v, " ")
		serveBench(kind, address)
		return
	}
	slog.SetDefault(slog.New(slog.DiscardHandler)) // net/http's, about what broken services send
	os.Exit(m.Run())
}

// serveBench serves a proxy on a free port, which it prints, until its input ends.
func serveBench(kind, address string) {
	debug.SetGCPercent(400) // as every process of ours has it
	var h http.Handler
	switch kind {
	case "bare":
		to := &url.URL{Scheme: "http", Host: address}
		h = &httputil.ReverseProxy{
			Rewrite:    func(pr *httputil.ProxyRequest) { pr.SetURL(to) },
			Transport:  &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true},
			BufferPool: &pool{},
		}
	default:
		c := settings(address)
		if kind == "cached" {
			c.Routes[3].Cache = &pyproxy.RouteCache{TTL: time.Hour}
		}
		h = pyproxy.New(c, pyproxy.Options{Metrics: prometheus.NewRegistry()})
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Fprintln(os.Stdout, l.Addr())
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	panic(http.Serve(l, h))
}

type pool struct{ sync.Pool }

func (p *pool) Get() []byte {
	if b, ok := p.Pool.Get().(*[]byte); ok {
		return *b
	}
	return make([]byte, 32<<10)
}

func (p *pool) Put(b []byte) { p.Pool.Put(&b) }

// BenchmarkProxy compares the CPU that one proxied request costs in a process of
// its own: net/http/httputil's ReverseProxy with pooled buffers, ours with
// everything on, and ours answering from the cache. Compare within one run.
func BenchmarkProxy(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	answer := bytes.Repeat([]byte("x"), 200)
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header()["Content-Type"] = []string{"application/json"}
		w.Write(answer)
	}))
	b.Cleanup(func() { l.Close() })
	for _, kind := range []string{"bare", "full", "cached"} {
		b.Run(kind, func(b *testing.B) {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), benchVariable+"="+kind+" "+l.Addr().String(), "GOMAXPROCS=1")
			cmd.Stderr = os.Stderr
			in, _ := cmd.StdinPipe()
			out, _ := cmd.StdoutPipe()
			if err := cmd.Start(); err != nil {
				b.Fatal(err)
			}
			var address string
			fmt.Fscanln(out, &address)
			took := load(b, "http://"+address+"/pure")
			in.Close()
			cmd.Wait()
			cpu := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
			b.ReportMetric(float64(cpu.Nanoseconds())/1e3/float64(b.N), "cpu-µs/request")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
		})
	}
}

// load makes b.N requests over 16 connections and returns what each took, sorted.
func load(b *testing.B, url string) []time.Duration {
	const connections = 16
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: connections, DisableCompression: true}}
	defer client.CloseIdleConnections()
	took := make([]time.Duration, b.N)
	var wg sync.WaitGroup
	next := make(chan int, connections)
	body := strings.Repeat("y", 100)
	b.ResetTimer()
	for range connections {
		wg.Go(func() {
			for i := range next {
				start := time.Now()
				resp, err := client.Post(url, "application/json", strings.NewReader(body))
				if err != nil {
					b.Error(err)
					return
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if resp.StatusCode != 200 {
					b.Error(resp.Status)
					return
				}
				took[i] = time.Since(start)
			}
		})
	}
	for i := range b.N {
		next <- i
	}
	close(next)
	wg.Wait()
	b.StopTimer()
	slices.Sort(took)
	runtime.KeepAlive(client)
	return took
}
