package policy

import (
	"math"
	"slices"
	"strings"
)

// index finds the first rule that matches without looking at the others: for
// each host a tree of path segments. A rule with several hosts is in several
// trees.
type index struct {
	all    *node            // rules for every host
	exact  map[string]*node // by host
	below  map[string]*node // by the name that a host must end with after a dot
	routes int
}

// node is a place in a path.
type node struct {
	literal  map[string]*node
	variable *node
	// here are the rules for exactly this path, open those for it and all below,
	// both in the order of the rules.
	here, open []terminal
	// first is the lowest number of a rule at this node or below.
	first int
}

// terminal is a rule at the end of its path.
type terminal struct {
	route   *Route
	methods methodSet
}

func newIndex() *index {
	return &index{exact: map[string]*node{}, below: map[string]*node{}}
}

// add enters a rule. Rules are entered in their order.
func (x *index) add(r *Route, hosts []hostPattern, methods methodSet, p pattern) {
	x.routes++
	if len(hosts) == 0 {
		if x.all == nil {
			x.all = newNode()
		}
		x.all.add(r, methods, p)
	}
	for _, h := range hosts {
		trees := x.exact
		if h.below {
			trees = x.below
		}
		if trees[h.name] == nil {
			trees[h.name] = newNode()
		}
		trees[h.name].add(r, methods, p)
	}
}

func newNode() *node { return &node{first: math.MaxInt} }

func (n *node) add(r *Route, methods methodSet, p pattern) {
	for _, s := range p.segments {
		n.first = min(n.first, r.index)
		next := n.variable
		if !s.variable {
			next = n.literal[s.text]
		}
		if next == nil {
			next = newNode()
			if s.variable {
				n.variable = next
			} else {
				if n.literal == nil {
					n.literal = map[string]*node{}
				}
				n.literal[s.text] = next
			}
		}
		n = next
	}
	n.first = min(n.first, r.index)
	if p.open {
		n.open = append(n.open, terminal{r, methods})
	} else {
		n.here = append(n.here, terminal{r, methods})
	}
}

// find returns the first rule for the request, or nil.
func (x *index) find(host, method string, bit methodBit, path string) *Route {
	if x.routes == 0 {
		return nil
	}
	q := query{method: method, bit: bit}
	more := path != ""
	if x.all != nil {
		q.walk(x.all, path, more)
	}
	if n := x.exact[host]; n != nil {
		q.walk(n, path, more)
	}
	if len(x.below) > 0 {
		for rest := host; ; {
			at := strings.IndexByte(rest, '.')
			if at < 0 {
				break
			}
			rest = rest[at+1:]
			if n := x.below[rest]; n != nil && at > 0 {
				q.walk(n, path, more)
			}
		}
	}
	return q.best
}

// byHost reports whether any rule asks for a host.
func (x *index) byHost() bool { return len(x.exact)+len(x.below) > 0 }

// query is a search under way.
type query struct {
	method string
	bit    methodBit
	best   *Route
}

// walk looks for a better rule at n and below it.
func (q *query) walk(n *node, path string, more bool) {
	if q.best != nil && n.first > q.best.index {
		return
	}
	q.take(n.open)
	if !more {
		q.take(n.here)
		return
	}
	part, rest, more := cutSegment(path)
	if next := n.literal[part]; next != nil {
		q.walk(next, rest, more)
	}
	if n.variable != nil && part != "" {
		q.walk(n.variable, rest, more)
	}
}

func (q *query) take(list []terminal) {
	for i := range list {
		t := &list[i]
		if q.best != nil && t.route.index >= q.best.index {
			return
		}
		if t.methods.has(q.method, q.bit) {
			q.best = t.route
			return
		}
	}
}

// methodBit is a bit for each usual method, 0 for others.
type methodBit uint16

func bitOf(method string) methodBit {
	switch method {
	case "GET":
		return 1
	case "HEAD":
		return 1 << 1
	case "POST":
		return 1 << 2
	case "PUT":
		return 1 << 3
	case "PATCH":
		return 1 << 4
	case "DELETE":
		return 1 << 5
	case "OPTIONS":
		return 1 << 6
	case "TRACE":
		return 1 << 7
	case "CONNECT":
		return 1 << 8
	}
	return 0
}

// methodSet is a set of methods; the zero value is all of them.
type methodSet struct {
	bits  methodBit
	other []string
}

func newMethodSet(names []string) methodSet {
	var s methodSet
	for _, name := range names {
		if bit := bitOf(name); bit != 0 {
			s.bits |= bit
		} else {
			s.other = append(s.other, name)
		}
		if name == "GET" {
			s.bits |= bitOf("HEAD") // Backends answer HEAD with what GET does.
		}
	}
	return s
}

func (s methodSet) has(method string, bit methodBit) bool {
	if s.bits == 0 && s.other == nil {
		return true
	}
	if bit != 0 {
		return s.bits&bit != 0
	}
	return slices.Contains(s.other, method)
}

func (s methodSet) covers(o methodSet) bool {
	if s.bits == 0 && s.other == nil {
		return true
	}
	if o.bits == 0 && o.other == nil {
		return false
	}
	return o.bits&^s.bits == 0 && !slices.ContainsFunc(o.other, func(m string) bool { return !slices.Contains(s.other, m) })
}
