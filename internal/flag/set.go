package flag

import (
	"iter"
	"slices"
	"time"
)

// Set is a compiled set of flags, immutable and safe for concurrent use.
type Set struct {
	version int64
	digest  uint64
	keys    []string
	sorted  []*compiled // by key
	flags   map[string]*compiled
	// experiments are the flags that one is laid over, by key.
	experiments []*compiled
}

// Version is the store's version that the set was compiled from; 0 for a file.
func (s *Set) Version() int64 { return s.version }

// Digest is a hash over the set's definitions: equal sets have equal digests.
func (s *Set) Digest() uint64 { return s.digest }

// Keys are the flags of the set, sorted. The caller must not change the slice.
func (s *Set) Keys() []string { return s.keys }

// Evaluate decides one flag. It does not allocate, unless a targeting rule
// builds strings or lists (cat outside fractional, substr, merge, map, filter, missing).
func (s *Set) Evaluate(key string, subject *Subject, now time.Time) Result {
	f, ok := s.flags[key]
	if !ok {
		return Result{Reason: ReasonError, ErrorCode: ErrorFlagNotFound}
	}
	e := evaluation{env: env{subject: subject, now: now.Unix()}}
	v, reason, code := f.decide(&e)
	if v == nil {
		return Result{Reason: reason, ErrorCode: code}
	}
	return Result{Variant: v.name, Value: v.value, Reason: reason, ErrorCode: code}
}

// Metadata is what the flag's definition hands through, nil if nothing. The
// caller must not change it.
func (s *Set) Metadata(key string) map[string]any {
	if f, ok := s.flags[key]; ok {
		return f.metadata
	}
	return nil
}

// Fractional reports whether the flag is of numbers and one of them is not
// whole: then its whole ones are meant as floating-point numbers too.
func (s *Set) Fractional(key string) bool {
	f, ok := s.flags[key]
	return ok && f.fractional
}

// AppendHeader appends the packed header value, such as
// "checkout=blue,ml-v2=on": sorted by key, booleans as on and off, other flags
// by the variant's name; flags without a value are left out, and so are flags
// defined with header: false. With only not nil, the flags named there and no
// others; naming them in sorted order is faster.
func (s *Set) AppendHeader(dst []byte, subject *Subject, only []string, now time.Time) []byte {
	e := evaluation{env: env{subject: subject, now: now.Unix()}}
	start := len(dst)
	if only != nil && slices.IsSorted(only) {
		last := ""
		for _, key := range only {
			if f, ok := s.flags[key]; ok && key != last {
				dst = f.appendPair(dst, start, &e)
			}
			last = key
		}
		return dst
	}
	for _, f := range s.sorted {
		if only == nil || slices.Contains(only, f.key) {
			dst = f.appendPair(dst, start, &e)
		}
	}
	return dst
}

func (f *compiled) appendPair(dst []byte, start int, e *evaluation) []byte {
	if f.hidden {
		return dst
	}
	v, _, _ := f.decide(e)
	if v == nil {
		return dst
	}
	if len(dst) > start {
		dst = append(dst, ',')
	}
	return append(dst, v.pair...)
}

// Each gives the same flags and values one by one, for one header per flag.
func (s *Set) Each(subject *Subject, only []string, now time.Time) iter.Seq2[string, string] {
	return func(yield func(key, value string) bool) {
		e := evaluation{env: env{subject: subject, now: now.Unix()}}
		for _, f := range s.sorted {
			if f.hidden || only != nil && !slices.Contains(only, f.key) {
				continue
			}
			if v, _, _ := f.decide(&e); v != nil && !yield(f.key, v.header) {
				return
			}
		}
	}
}

// compiled is one flag, ready to decide.
type compiled struct {
	key      string
	disabled bool
	hidden   bool // not in headers
	dynamic  bool // has anything to decide by
	// fractional: a number among the values is not whole.
	fractional bool
	variants   []variant
	byName     map[string]*variant
	longest    int // bytes of the longest pair
	metadata   map[string]any

	byDefault *variant // nil leaves the value to the caller
	off       *variant

	// isFixed: killed or forced.
	isFixed     bool
	fixed       *variant
	fixedReason Reason

	from, until   int64 // seconds since the epoch
	prerequisites []prerequisite
	users         map[string]*variant

	holdout     Percentage
	holdoutSalt uint64

	layered               bool
	layerSalt             uint64
	layerFrom, layerUntil Percentage

	audience  audience
	targeting *rule
	rollout   *rollout

	experiment *experimental // nil where none is laid over the flag
}

// variant is one of a flag's values.
type variant struct {
	name   string
	value  any
	header string // the header's value
	pair   string // key=value
	bit    uint64 // its place in a set of the flag's variants
}

type prerequisite struct {
	flag    *compiled
	allowed uint64
}

type audience struct {
	everyone bool
	tiers    []string
	roles    []string
	claims   []claim
}

type claim struct {
	name   string
	path   []string
	values []string
}

// rollout is a compiled Rollout.
type rollout struct {
	percentage  Percentage // at the start, if progressive
	progressive bool
	end         Percentage
	from, until int64

	hash       Hash
	salt       uint64
	splitSalt  uint64
	flagdSalt  murmur3 // the salt under flagd's hashes
	bucketBy   string
	bucketPath []string

	variants []*variant
	ends     []uint32 // cumulative weights
	total    uint32
}

// evaluation is the state of deciding one or more flags for one subject.
type evaluation struct {
	env
	hashed bool
	hash   uint64
}

func (e *evaluation) subjectHash() uint64 {
	if !e.hashed {
		e.hash, e.hashed = subjectHash(e.subject.Key), true
	}
	return e.hash
}

// decide is the whole decision for one flag, in the order that the guide
// documents: disabled, killed or forced, schedule, experiment, prerequisites,
// single users, holdout, layer, audience, targeting, roll-out, default. A nil variant
// leaves the value to the caller.
func (f *compiled) decide(e *evaluation) (*variant, Reason, ErrorCode) {
	switch {
	case f.disabled:
		return nil, ReasonDisabled, ErrorNone
	case f.isFixed:
		return f.fixed, f.fixedReason, ErrorNone
	case !f.dynamic:
		return f.byDefault, ReasonStatic, ErrorNone
	case e.now < f.from || e.now >= f.until:
		return f.off, ReasonDefault, ErrorNone
	}
	if f.experiment != nil {
		if arm := f.takesPart(e); arm >= 0 {
			return f.experiment.arms[arm], ReasonSplit, ErrorNone
		}
	}
	for i := range f.prerequisites {
		p := &f.prerequisites[i]
		if v, _, _ := p.flag.decide(e); v == nil || v.bit&p.allowed == 0 {
			return f.off, ReasonDefault, ErrorNone
		}
	}
	if f.users != nil {
		if v, ok := f.users[e.subject.Key]; ok && e.subject.Key != "" {
			return v, ReasonTargetingMatch, ErrorNone
		}
	}
	if f.holdout > 0 || f.layered {
		if in, code := f.admits(e); !in {
			if code != ErrorNone {
				return nil, ReasonError, code
			}
			return f.byDefault, ReasonSplit, ErrorNone
		}
	}
	if !f.audience.everyone && !f.audience.has(e.subject) {
		return f.byDefault, ReasonDefault, ErrorNone
	}
	if f.targeting != nil {
		if r := f.targeting.choose(&e.env); r != nil {
			if r.variant != nil {
				return r.variant, ReasonTargetingMatch, ErrorNone
			}
			if v := r.eval(&e.env); v.kind != kindNull {
				return f.named(v)
			}
		}
	}
	if f.rollout != nil {
		return f.rollout.decide(f, e)
	}
	return f.byDefault, ReasonDefault, ErrorNone
}

// named is the variant whose name a targeting rule has computed.
func (f *compiled) named(v value) (*variant, Reason, ErrorCode) {
	var buf [32]byte
	if found, ok := f.byName[string(v.appendText(buf[:0]))]; ok && v.scalar() {
		return found, ReasonTargetingMatch, ErrorNone
	}
	return nil, ReasonError, ErrorParse
}

// admits applies holdout and layer.
func (f *compiled) admits(e *evaluation) (bool, ErrorCode) {
	if e.subject.Key == "" {
		return false, ErrorTargetingKeyMissing
	}
	subject := e.subjectHash()
	if f.holdout > 0 && f.holdout.within(bucket64(subject, f.holdoutSalt)) {
		return false, ErrorNone
	}
	if !f.layered {
		return true, ErrorNone
	}
	at := bucket64(subject, f.layerSalt)
	return f.layerUntil.within(at) && !f.layerFrom.within(at), ErrorNone
}

func (a *audience) has(s *Subject) bool {
	if len(a.tiers) > 0 && !slices.Contains(a.tiers, s.Tier) {
		return false
	}
	if len(a.roles) > 0 && !slices.ContainsFunc(s.Roles, func(role string) bool { return slices.Contains(a.roles, role) }) {
		return false
	}
	for i := range a.claims {
		if !a.claims[i].has(s) {
			return false
		}
	}
	return true
}

// has reports whether the claim, or a member of it, is one of the values.
// Booleans and numbers are compared by their JSON text.
func (c *claim) has(s *Subject) bool {
	v := claimValue(s, c.name, c.path)
	if v.kind == kindList {
		for i := range v.len() {
			if c.matches(v.at(i)) {
				return true
			}
		}
		return false
	}
	return c.matches(v)
}

func (c *claim) matches(v value) bool {
	switch v.kind {
	case kindString:
		return slices.Contains(c.values, v.str)
	case kindBool, kindNumber:
		var buf [32]byte
		text := v.appendText(buf[:0])
		return slices.ContainsFunc(c.values, func(s string) bool { return s == string(text) })
	default:
		return false
	}
}

// claimValue reads a claim by its whole name, else by its path.
func claimValue(s *Subject, name string, path []string) value {
	if a, ok := s.Claims[name]; ok || len(path) < 2 {
		return valueOf(a)
	}
	return follow(valueOf(s.Claims[path[0]]), path[1:])
}

// decide applies the roll-out. Whether a subject is in, and which variant it
// gets, depend on two independent hashes: so raising the percentage changes
// nobody's variant.
func (r *rollout) decide(f *compiled, e *evaluation) (*variant, Reason, ErrorCode) {
	p := r.percentage
	if r.progressive {
		p = r.at(e.now)
	}
	switch {
	case p <= 0:
		return f.byDefault, ReasonDefault, ErrorNone
	case p >= Everyone && len(r.variants) == 1:
		// Nothing to draw; a subject without a key is as good as any.
		if f.audience.everyone && !r.progressive {
			return r.variants[0], ReasonStatic, ErrorNone
		}
		return r.variants[0], ReasonTargetingMatch, ErrorNone
	}
	key := e.subject.Key
	if r.bucketBy != "" {
		v := claimValue(e.subject, r.bucketBy, r.bucketPath)
		if v.kind != kindString || v.str == "" {
			return f.byDefault, ReasonDefault, ErrorNone
		}
		key = v.str
	} else if key == "" {
		return nil, ReasonError, ErrorTargetingKeyMissing
	}
	in, at := r.draw(key, p, e)
	if !in {
		return f.byDefault, ReasonSplit, ErrorNone
	}
	i := 0
	for at >= r.ends[i] {
		i++
	}
	return r.variants[i], ReasonSplit, ErrorNone
}

// draw says whether the key is in the first p and where in the split it is.
func (r *rollout) draw(key string, p Percentage, e *evaluation) (in bool, at uint32) {
	if r.hash == HashTollgate1 {
		var subject uint64
		if r.bucketBy == "" {
			subject = e.subjectHash()
		} else {
			subject = subjectHash(key)
		}
		if !p.within(bucket64(subject, r.salt)) {
			return false, 0
		}
		if len(r.ends) == 1 {
			return true, 0
		}
		return true, share(bucket64(subject, r.splitSalt), r.total)
	}
	m := r.flagdSalt
	m.add(key)
	hash := m.sum()
	if r.hash == HashFlagd1 {
		in = p >= Everyone || flagd1Place(hash) < float64(p)/float64(Percent)
	} else {
		in = flagd2Place(hash, uint32(Everyone)) < uint32(p)
	}
	// flagd has no second draw: the split takes the hash's own mixture.
	return in, flagd2Place(uint32(mix64(uint64(hash))>>32), r.total)
}

// at is the progressive roll-out's percentage.
func (r *rollout) at(now int64) Percentage {
	switch {
	case now <= r.from:
		return r.percentage
	case now >= r.until:
		return r.end
	}
	// Seconds until the year 9999 times 100,000 fit well into 63 bits.
	return r.percentage + Percentage(int64(r.end-r.percentage)*(now-r.from)/(r.until-r.from))
}
