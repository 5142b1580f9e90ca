package tour

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"
)

// paper writes the tour for people. Write errors are not reported: a visitor who
// closed the terminal does not change what is proved.
type paper struct {
	out    io.Writer
	colour bool
}

// Terminal colours.
const (
	bold   = "\x1b[1m"
	faint  = "\x1b[2m"
	red    = "\x1b[31m"
	green  = "\x1b[32m"
	yellow = "\x1b[33m"
	plain  = "\x1b[0m"
)

func (p *paper) printf(format string, args ...any) {
	_, _ = fmt.Fprintf(p.out, format, args...)
}

func (p *paper) paint(colour, text string) string {
	if !p.colour {
		return text
	}
	return colour + text + plain
}

func (p *paper) heading(number, of int, s Step) {
	p.printf("\n%s %s\n", p.paint(bold, fmt.Sprintf("%d/%d %s", number, of, s.Name)), p.paint(faint, "- "+s.Proves))
}

// exchange shows a request and its answer with some of the answer's headers.
func (p *paper) exchange(a answer, headers ...string) {
	p.printf("    > %s %s%s\n", a.call.method, a.call.path, p.paint(faint, sender(a.call)))
	for _, name := range sortedNames(a.call.header) {
		p.printf("      %s: %s\n", name, strings.Join(a.call.header[name], ", "))
	}
	colour := green
	if a.status >= 400 {
		colour = yellow
	}
	line := p.paint(colour, fmt.Sprintf("%d %s", a.status, http.StatusText(a.status)))
	if code := a.code(); a.status >= 400 && code != "" {
		line += "  " + code
	}
	p.printf("    < %s  %s\n", line, p.paint(faint, short(a.took)))
	for _, name := range headers {
		for _, value := range a.header.Values(name) {
			p.printf("      %s: %s\n", strings.ToLower(name), value)
		}
	}
}

func sender(c call) string {
	switch {
	case c.as != "":
		return "  (" + c.as + ")"
	case c.token == "":
		return "  (no token)"
	}
	return ""
}

// notef adds a line of explanation.
func (p *paper) notef(format string, args ...any) {
	p.printf("    . %s\n", fmt.Sprintf(format, args...))
}

// backend shows what the backend saw of some headers.
func (p *paper) backend(header http.Header, names ...string) {
	p.printf("    = what the backend saw:\n")
	for _, name := range names {
		value, ok := "(nothing)", false
		if values := header.Values(name); len(values) > 0 {
			value, ok = strings.Join(values, " | "), true
		}
		if !ok {
			value = p.paint(faint, value)
		}
		p.printf("      %s: %s\n", name, value)
	}
}

func (p *paper) outcome(r Result) {
	if r.Err != nil {
		p.printf("    %s %v\n", p.paint(red, "FAILED"), r.Err)
		return
	}
	p.printf("    %s %s\n", p.paint(green, "ok"), p.paint(faint, short(r.Took)))
}

func (p *paper) summary(results []Result, of int) {
	good := 0
	for _, r := range results {
		if r.Err == nil {
			good++
		}
	}
	text := fmt.Sprintf("Tour: %d of %d steps as they should be.", good, of)
	if good == of {
		p.printf("\n%s\n", p.paint(green, text))
		return
	}
	p.printf("\n%s\n", p.paint(red, text))
	for i, r := range results {
		if r.Err != nil {
			p.printf("  step %d (%s): %v\n", i+1, r.Name, r.Err)
		}
	}
}

// short writes a duration with three digits or so.
func short(d time.Duration) string {
	switch {
	case d >= time.Second:
		return d.Round(10 * time.Millisecond).String()
	case d >= time.Millisecond:
		return d.Round(100 * time.Microsecond).String()
	}
	return d.Round(time.Microsecond).String()
}

func sortedNames(h http.Header) []string {
	names := make([]string, 0, len(h))
	for name := range h {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
