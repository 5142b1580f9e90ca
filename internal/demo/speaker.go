package demo

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/stack"
)

// speaker says what happens, a line each, so that it reads well in a log too.
type speaker struct {
	out    io.Writer
	colour bool
}

// Terminal colours.
const (
	bold  = "\x1b[1m"
	faint = "\x1b[2m"
	red   = "\x1b[31m"
	green = "\x1b[32m"
	plain = "\x1b[0m"
)

func (s *speaker) printf(format string, args ...any) {
	_, _ = fmt.Fprintf(s.out, format, args...) // that nobody reads is no failure
}

func (s *speaker) paint(colour, text string) string {
	if !s.colour {
		return text
	}
	return colour + text + plain
}

func (s *speaker) title() {
	s.printf("%s\nStarting all parts at once; each says when it is ready.\n",
		s.paint(bold, "Tollgate demo: Envoy, authz, ratelimit, two pyproxy and five Python services on this machine's loopback"))
}

func (s *speaker) progress(p stack.Progress) {
	switch p.Step {
	case stack.StepReady:
		s.printf("  %s %-11s %s\n", s.paint(green, "ready  "), p.Part, s.paint(faint, seconds(p.Took)))
	case stack.StepStopped:
		s.printf("  stopped %-11s %s\n", p.Part, s.paint(faint, seconds(p.Took)))
	}
}

func (s *speaker) exited(e *stack.ExitError) {
	s.printf("\n%s %v\n", s.paint(red, "!"), e)
}

// purposes are what the parts are for, by name.
func purposes() map[string]string {
	return map[string]string{
		stack.Redis:     "counters, revocations and flags, shared by all",
		stack.Echo:      "your backend's place: shows what reached it",
		stack.Authz:     "who may pass (ext_authz); API for tokens and flags",
		stack.Ratelimit: "how much (rate limit service)",
		stack.Pyproxy1:  "resilient proxy before the Python services",
		stack.Pyproxy2:  "its second replica",
		stack.Envoy:     "the gateway: send requests here",
		"ml":            "price prediction",
		"nlp":           "language detection and translation",
		"fraud":         "payment risk",
		"data":          "validation and aggregation",
		"blockchain":    "contract, sandwich, wallet and flow analysis",
	}
}

func (s *speaker) ready(st *stack.Stack, took time.Duration) {
	s.printf("\n%s\n\n", s.paint(green, "Everything is ready after "+seconds(took)+"."))
	table := tabwriter.NewWriter(s.out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "  PART\tPID\tADDRESS\tMORE PORTS\tWHAT IT IS")
	ports, use := st.Ports(), purposes()
	for _, part := range ordered(st.Status()) {
		pid := "-"
		if part.PID != 0 {
			pid = strconv.Itoa(part.PID)
		}
		first, more := addresses(ports, part)
		_, _ = fmt.Fprintf(table, "  %s\t%s\t%s\t%s\t%s\n", part.Name, pid, first, more, use[part.Name])
	}
	_ = table.Flush()
}

// ordered puts the gateway first and what stands behind it last.
func ordered(parts []stack.Status) []stack.Status {
	order := slices.Concat(
		[]string{stack.Envoy, stack.Authz, stack.Ratelimit, stack.Pyproxy1, stack.Pyproxy2},
		stack.Services(), []string{stack.Echo, stack.Redis})
	rank := func(part stack.Status) int { return slices.Index(order, part.Name) }
	slices.SortStableFunc(parts, func(a, b stack.Status) int { return rank(a) - rank(b) })
	return parts
}

// addresses writes a part's endpoints: the one that people use as a URL, where it
// speaks HTTP, and the others as ports with what they are for.
func addresses(ports stack.Ports, part stack.Status) (first, more string) {
	var others []string
	for _, e := range part.Endpoints {
		use := strings.TrimSpace(strings.TrimPrefix(string(e), part.Name))
		switch {
		case e == stack.RedisServer:
			first = ports.Address(e)
		case first == "" && use != "grpc" && use != "operations":
			first = ports.URL(e)
		default:
			others = append(others, fmt.Sprintf("%d %s", ports[e], use))
		}
	}
	if first == "" {
		first = ports.Address(part.Endpoints[0]) + " (gRPC)"
		others = others[1:]
	}
	return first, strings.Join(others, ", ")
}

// suggestions are commands for people to begin with.
func suggestions(st *stack.Stack) []string {
	return []string{
		`TOKEN=$(bin/tollgate token mint -user ada -tier premium)`,
		`curl -i -H "Authorization: Bearer $TOKEN" ` + st.URL(stack.EnvoyListener) + `/orders`,
		`bin/tollgate flag set advanced-analytics on`,
		`bin/tollgate token revoke "$TOKEN"`,
	}
}

func (s *speaker) staying(st *stack.Stack, pageURL string) {
	s.printf("\nThe system stays up until Ctrl-C. In another terminal, in this folder:\n\n")
	for _, line := range suggestions(st) {
		s.printf("  %s\n", line)
	}
	if pageURL != "" {
		s.printf("\nIn a browser: %s shows what runs, and kills and starts it.\n", s.paint(bold, pageURL))
	}
	s.printf("\nLogs are in %s.\n", nearby(st.LogFolder()))
}

// nearby writes a path from the working directory on, where it is below it.
func nearby(path string) string {
	here, err := os.Getwd()
	if err != nil {
		return path
	}
	relative, err := filepath.Rel(here, path)
	if err != nil || !filepath.IsLocal(relative) {
		return path
	}
	return relative
}

func (s *speaker) stopping() { s.printf("\nStopping.\n") }
func (s *speaker) stopped()  { s.printf("Everything is stopped.\n") }

// seconds writes a duration for people: "12 ms", "3.4 s".
func seconds(d time.Duration) string {
	if d < 100*time.Millisecond {
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}
