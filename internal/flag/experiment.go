package flag

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/cespare/xxhash/v2"
)

// Experiment takes users out of a flag's ordinary decision and deals them to
// variants. Disabled, killed and forced flags, a flag's schedule, its single
// users, its holdout and its layer stay in force; audience, targeting and
// roll-out do not concern users who take part.
type Experiment struct {
	// Name tells experiments apart, in digests and errors.
	Name string
	// Flag is the flag's key. A flag that the set does not have exists for the
	// users who take part and for nobody else, with the variants as its values.
	Flag string
	// Variants are names of the flag's variants.
	Variants []string
	// Assign gives a user's variant as an index of Variants, or false. It is
	// called on the request path, by several goroutines, and must not allocate.
	Assign func(user, tier string, now int64) (int, bool)
	// Visitors lets anonymous visitors take part, beside users.
	Visitors bool
	// Marks are what [Set.AppendAssignments] writes for each of Variants.
	Marks []string
	// Dealt is told of each assignment that was written, by its index; nil for
	// nobody. As Assign, it must be fast.
	Dealt func(arm int)
}

// experimental is a compiled Experiment.
type experimental struct {
	assign func(user, tier string, now int64) (int, bool)
	arms   []*variant
	marks  []string
	dealt  func(arm int)

	visitors bool
}

// With returns the set with experiments laid over it. Those that do not fit
// their flag are left out; the error names them all, and the set is usable all
// the same.
func (s *Set) With(experiments []Experiment) (*Set, error) {
	if len(experiments) == 0 {
		return s, nil
	}
	out := s.clone(len(experiments))
	h := xxhash.New()
	_, _ = fmt.Fprintf(h, "%x", s.digest)
	var errs []error
	for i := range experiments {
		x := &experiments[i]
		if err := out.lay(x); err != nil {
			errs = append(errs, fmt.Errorf("experiment %s: %w", x.Name, err))
			continue
		}
		_, _ = fmt.Fprintf(h, " %q", x.Name)
	}
	out.keys = slices.Sorted(maps.Keys(out.flags))
	out.sorted = make([]*compiled, len(out.keys))
	for i, key := range out.keys {
		out.sorted[i] = out.flags[key]
	}
	for _, f := range out.sorted {
		if f.experiment != nil {
			out.experiments = append(out.experiments, f)
		}
	}
	out.digest = h.Sum64()
	return out, errors.Join(errs...)
}

// clone copies the flags, so that prerequisites lead to the copies.
func (s *Set) clone(more int) *Set {
	out := &Set{version: s.version, flags: make(map[string]*compiled, len(s.flags)+more)}
	for key, f := range s.flags {
		copied := *f
		out.flags[key] = &copied
	}
	for _, f := range out.flags {
		f.prerequisites = slices.Clone(f.prerequisites)
		for i := range f.prerequisites {
			f.prerequisites[i].flag = out.flags[f.prerequisites[i].flag.key]
		}
	}
	return out
}

func (s *Set) lay(x *Experiment) error {
	f, ok := s.flags[x.Flag]
	if !ok {
		if !validKey(x.Flag) {
			return fmt.Errorf("%q cannot be the key of a flag", x.Flag)
		}
		f = experimentFlag(x)
		s.flags[x.Flag] = f
	}
	switch {
	case f.hidden:
		return fmt.Errorf("flag %s is in no header (header: false), so nothing could be measured", x.Flag)
	case f.experiment != nil:
		return fmt.Errorf("flag %s has another experiment", x.Flag)
	case len(f.prerequisites) > 0:
		return fmt.Errorf("flag %s has prerequisites; bind the experiment to a flag without", x.Flag)
	}
	if len(x.Marks) != len(x.Variants) {
		return fmt.Errorf("flag %s: %d marks for %d variants", x.Flag, len(x.Marks), len(x.Variants))
	}
	e := &experimental{assign: x.Assign, marks: x.Marks, dealt: x.Dealt, visitors: x.Visitors}
	headers := map[string]bool{}
	for _, name := range x.Variants {
		v, ok := f.byName[name]
		if !ok {
			return fmt.Errorf("flag %s has no variant %q, only %v", x.Flag, name, slices.Sorted(maps.Keys(f.byName)))
		}
		if headers[v.header] {
			return fmt.Errorf("flag %s: two variants are %q in the header", x.Flag, v.header)
		}
		headers[v.header] = true
		e.arms = append(e.arms, v)
	}
	f.experiment, f.dynamic = e, true
	return nil
}

// experimentFlag makes a flag for an experiment that is bound to none.
func experimentFlag(x *Experiment) *compiled {
	f := &compiled{
		key: x.Flag, from: math.MinInt64, until: math.MaxInt64,
		byName: map[string]*variant{}, variants: make([]variant, len(x.Variants)), audience: audience{everyone: true},
	}
	for i, name := range x.Variants {
		f.variants[i] = newVariant(x.Flag, name, name, i)
		f.byName[name] = &f.variants[i]
		f.longest = max(f.longest, len(f.variants[i].pair))
	}
	return f
}

// takesPart gives the arm of a user who is in the flag's experiment, or -1.
func (f *compiled) takesPart(e *evaluation) int {
	s := e.subject
	if f.experiment == nil || s.Key == "" || s.Anonymous && !(s.Visitor && f.experiment.visitors) {
		return -1
	}
	if _, single := f.users[s.Key]; single {
		return -1
	}
	if f.holdout > 0 || f.layered {
		if in, _ := f.admits(e); !in {
			return -1
		}
	}
	if arm, ok := f.experiment.assign(s.Key, s.Tier, e.now); ok {
		return arm
	}
	return -1
}

// AppendAssignments appends the marks of the variants that experiments deal the
// subject, separated by commas and sorted by flag; nothing where none decides.
// only is AppendHeader's. It tells of each (Experiment.Dealt): ask once a request.
func (s *Set) AppendAssignments(dst []byte, subject *Subject, only []string, now time.Time) []byte {
	if len(s.experiments) == 0 {
		return dst
	}
	e := evaluation{env: env{subject: subject, now: now.Unix()}}
	start := len(dst)
	for _, f := range s.experiments {
		if only != nil && !slices.Contains(only, f.key) {
			continue
		}
		arm := f.dealtBy(&e)
		if arm < 0 {
			continue
		}
		if len(dst) > start {
			dst = append(dst, ',')
		}
		dst = append(dst, f.experiment.marks[arm]...)
		if f.experiment.dealt != nil {
			f.experiment.dealt(arm)
		}
	}
	return dst
}

// dealtBy is takesPart, or -1 where the flag's state keeps the experiment from
// deciding.
func (f *compiled) dealtBy(e *evaluation) int {
	if f.disabled || f.isFixed || e.now < f.from || e.now >= f.until {
		return -1
	}
	return f.takesPart(e)
}
