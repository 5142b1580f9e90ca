package demo

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"html/template"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/stack"
	"github.com/tollgate-proxy/tollgate/internal/tour"
)

//go:embed page.html
var pageSource string

const (
	// PageAddress is where the demo's page is by default.
	PageAddress = "127.0.0.1:8088"

	logLines     = 200
	startTimeout = time.Minute
	pageGrace    = time.Second
)

// page shows the parts and the tour's results in a browser on this machine, and
// kills and starts parts. Only pages of its own may ask it to: other sites can
// make a browser send requests to the loopback.
type page struct {
	stack    *stack.Stack
	template *template.Template
	server   *http.Server
	listener net.Listener

	mu      sync.Mutex
	state   string
	results []tour.Result
}

// servePage serves the page at an address until close.
func servePage(ctx context.Context, address string, s *stack.Stack) (*page, error) {
	parsed, err := template.New("page").Funcs(template.FuncMap{"seconds": seconds}).Parse(pageSource)
	if err != nil {
		return nil, fmt.Errorf("the demo's page: %w", err)
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("the demo's page: %w", err)
	}
	p := &page{stack: s, template: parsed, listener: listener, state: "No tour is taken."}
	p.server = &http.Server{Handler: p.handler(), ReadHeaderTimeout: 5 * time.Second, MaxHeaderBytes: 16 << 10}
	go func() { _ = p.server.Serve(listener) }() // it ends with close; without the page the demo goes on
	return p, nil
}

// url is where the page is.
func (p *page) url() string { return "http://" + p.listener.Addr().String() }

// close stops serving.
func (p *page) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), pageGrace)
	defer cancel()
	if err := p.server.Shutdown(ctx); errors.Is(err, context.DeadlineExceeded) {
		return p.server.Close()
	} else if err != nil {
		return fmt.Errorf("the demo's page: %w", err)
	}
	return nil
}

// touring says that the tour is under way. A nil page hears nothing.
func (p *page) touring() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state = "The tour is under way."
}

// toured shows how the tour went. A nil page hears nothing.
func (p *page) toured(results []tour.Result) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.results = results
}

func (p *page) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", p.show)
	mux.HandleFunc("GET /logs/{part}", p.log)
	mux.HandleFunc("POST /parts/{part}/kill", p.switchPart(func(_ context.Context, part string) error { return p.stack.KillPart(part) }))
	mux.HandleFunc("POST /parts/{part}/start", p.switchPart(p.stack.StartPart))
	ownPagesOnly := http.NewCrossOriginProtection().Handler(mux)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// A name of another site that leads here (DNS rebinding) is not ours.
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil || host != "127.0.0.1" && host != "localhost" {
			http.Error(w, "this page is at "+p.url(), http.StatusMisdirectedRequest)
			return
		}
		header := w.Header()
		header.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'")
		header.Set("X-Content-Type-Options", "nosniff")
		header.Set("Referrer-Policy", "same-origin")
		header.Set("Cache-Control", "no-store")
		ownPagesOnly.ServeHTTP(w, r)
	})
}

// row is a part as the page shows it.
type row struct {
	stack.Status

	Address, More, Purpose string
}

func (p *page) show(w http.ResponseWriter, _ *http.Request) {
	p.mu.Lock()
	state, results := p.state, p.results
	p.mu.Unlock()
	ports, use := p.stack.Ports(), purposes()
	var rows []row
	running := 0
	for _, part := range ordered(p.stack.Status()) {
		first, more := addresses(ports, part)
		rows = append(rows, row{part, first, more, use[part.Name]})
		if part.Running {
			running++
		}
	}
	var text strings.Builder
	err := p.template.Execute(&text, map[string]any{
		"Parts": rows, "Running": running, "Results": results, "TourState": state, "Commands": suggestions(p.stack),
	})
	if err != nil { // the template and its data are of one package
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = w.Write([]byte(text.String()))
}

func (p *page) log(w http.ResponseWriter, r *http.Request) {
	lines, err := p.stack.Tail(r.PathValue("part"), logLines)
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	_, _ = w.Write([]byte(strings.Join(lines, "\n") + "\n")) //nolint:gosec // plain text, and never sniffed for anything else
}

func (p *page) switchPart(do func(ctx context.Context, part string) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		part := r.PathValue("part")
		if !slices.ContainsFunc(p.stack.Status(), func(s stack.Status) bool { return s.Name == part }) {
			http.NotFound(w, r)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), startTimeout)
		defer cancel()
		if err := do(ctx, part); err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
			return
		}
		http.Redirect(w, r, "/", http.StatusSeeOther)
	}
}
