package flag

import (
	"iter"
	"time"
)

// Set is a compiled set of flags, immutable and safe for concurrent use.
type Set struct {
	version int64
}

// Compile checks the definitions against each other and compiles them. All
// faults are reported at once.
func Compile(defs *Definitions) (*Set, error) { return &Set{}, nil }

// Version is the store's version that the set was compiled from; 0 for a file.
func (s *Set) Version() int64 { return s.version }

// Keys are the flags of the set, sorted. The caller must not change the slice.
func (s *Set) Keys() []string { return nil }

// Evaluate decides one flag.
func (s *Set) Evaluate(key string, subject *Subject, now time.Time) Result {
	return Result{Reason: ReasonError, ErrorCode: ErrorFlagNotFound}
}

// AppendHeader appends the packed header value, such as
// "checkout=blue,ml-v2=on": sorted by key, booleans as on and off, other flags
// by the variant's name; flags without a value are left out. With only, the
// flags named there (sorted) and no others.
func (s *Set) AppendHeader(dst []byte, subject *Subject, only []string, now time.Time) []byte {
	return dst
}

// Each gives the same flags and values one by one, for one header per flag.
func (s *Set) Each(subject *Subject, only []string, now time.Time) iter.Seq2[string, string] {
	return func(func(string, string) bool) {}
}
