package experiment

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Definition is one experiment.
type Definition struct {
	// Key names the experiment: [a-z0-9-], 1 to 64 bytes.
	Key string `json:"key"`
	// Version counts changes that make earlier measurements incomparable. It
	// is part of the assignment: a new version deals anew.
	Version int `json:"version"`
	// Description is for people.
	Description string `json:"description,omitempty"`
	// Flag is the key of the feature flag whose value the experiment decides for
	// users who take part; the experiment's own key if empty.
	Flag string `json:"flag,omitempty"`
	// State is what was last asked for; empty is running. What time makes of it
	// is [Definition.StateAt]'s.
	State State `json:"state,omitempty"`
	// Tiers who may take part; empty for all. Anonymous callers do not, unless
	// Anonymous lets in those who bring a stable key of their own.
	Tiers     []string `json:"tiers,omitempty"`
	Anonymous bool     `json:"anonymous,omitempty"`
	// Variants are two to 16; the first is the control.
	Variants []Variant `json:"variants"`
	// Traffic is the share of users who take part, from above 0 to 1.
	Traffic float64 `json:"traffic"`
	// Layer makes experiments of one layer mutually exclusive; nil for none.
	Layer *Layer `json:"layer,omitempty"`
	// Start and Stop bound the assignment in time; a zero time does not.
	Start time.Time `json:"start,omitzero"`
	Stop  time.Time `json:"stop,omitzero"`
	// Primary is the metric that the experiment is about.
	Primary Metric `json:"primary"`
	// Guardrails must not get worse.
	Guardrails []Metric `json:"guardrails,omitempty"`
	// MinimumUsers is how many users each variant needs before a verdict.
	MinimumUsers int64 `json:"minimum_users"`
	// Alpha is the accepted rate of false alarms; 0.05 if 0.
	Alpha float64 `json:"alpha,omitempty"`
	// MaximumUsers bounds what is kept: once as many have met a variant, no more
	// users are measured. 200,000 if 0.
	MaximumUsers int64 `json:"maximum_users,omitempty"`
	// MeasureBefore measures the users who would take part before the experiment
	// starts, while it is a draft or its start is still to come, so that what
	// they are used to can be taken out of the comparison (CUPED).
	MeasureBefore bool `json:"measure_before,omitempty"`
	// AutoStop stops the experiment by itself when a guardrail is breached.
	AutoStop bool `json:"auto_stop,omitempty"`
}

// State is where a stored experiment is in its life.
type State string

const (
	// Draft: not started yet.
	Draft State = "draft"
	// Started: users are assigned, within Start and Stop.
	Started State = "running"
	// Stopped: users are not assigned any more; the results stay.
	Stopped State = "stopped"
	// Scheduled is [Definition.StateAt]'s alone: started, and Start is still to come.
	Scheduled State = "scheduled"
)

// Variant is one arm with its weight, relative to the sum of all weights.
type Variant struct {
	Name   string `json:"name"`
	Weight uint32 `json:"weight"`
}

// Layer is the slice [From, Until) of a space that experiments share, both
// from 0 to 1.
type Layer struct {
	Name  string  `json:"name"`
	From  float64 `json:"from"`
	Until float64 `json:"until"`
}

// Kind says how observations of a user become the user's value.
type Kind string

const (
	// Mean is the average of the user's observations, such as latency.
	Mean Kind = "mean"
	// Sum is the total of the user's observations, such as bytes.
	Sum Kind = "sum"
	// Rate is 1 for a user with any observation that is not 0, else 0, such as
	// conversion.
	Rate Kind = "rate"
)

// Source says who measures a metric.
type Source string

// The sources. All but Reported are measured by the gateway, one observation a
// request that carried the variant.
const (
	// Reported values come through the API.
	Reported Source = ""
	// Latency is the time until the last byte of the answer, in seconds.
	Latency Source = "latency"
	// Failures is 1 for an answer of 500 and above, else 0.
	Failures Source = "errors"
	// Abandoned is 1 where the client left before there was an answer, else 0.
	Abandoned Source = "abandoned"
	// Requests is 1.
	Requests Source = "requests"
	// RequestBytes and ResponseBytes are the sizes of the bodies.
	RequestBytes  Source = "request_bytes"
	ResponseBytes Source = "response_bytes"
)

// Metric is something measured.
type Metric struct {
	Name string `json:"name"`
	Kind Kind   `json:"kind"`
	// Source is who measures it.
	Source Source `json:"source,omitempty"`
	// LowerIsBetter is true for latency and errors.
	LowerIsBetter bool `json:"lower_is_better,omitempty"`
}

const (
	defaultAlpha = 0.05
	// Users that are measured at most.
	defaultMaximumUsers = 200_000
	maxUsers            = 10_000_000
	maxVariants         = 16
	maxMetrics          = 32
	maxName             = 64
	maxTiers            = 32
	// maxDescription is in bytes.
	maxDescription = 2000
	// space is the resolution of traffic and layers.
	space = 1 << 32
)

// Validate reports everything that is wrong with the definition, joined.
func (d *Definition) Validate() error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !validName(d.Key) {
		fail("key %q is not 1 to %d of a-z, 0-9 and hyphen", d.Key, maxName)
	}
	if len(d.Variants) < 2 || len(d.Variants) > maxVariants {
		fail("an experiment has 2 to %d variants, not %d", maxVariants, len(d.Variants))
	}
	if d.Flag != "" && !validName(d.Flag) {
		fail("flag %q is not 1 to %d of a-z, 0-9 and hyphen", d.Flag, maxName)
	}
	if d.State != "" && d.State != Draft && d.State != Started && d.State != Stopped {
		fail("state %q is not %s, %s or %s", d.State, Draft, Started, Stopped)
	}
	if len(d.Description) > maxDescription {
		fail("description of %d bytes is longer than %d", len(d.Description), maxDescription)
	}
	if len(d.Tiers) > maxTiers || slices.ContainsFunc(d.Tiers, func(t string) bool { return t == "" || len(t) > maxName }) {
		fail("tiers %q are more than %d, or one is not 1 to %d bytes", d.Tiers, maxTiers, maxName)
	}
	seen, total := map[string]bool{}, uint64(0)
	for i, v := range d.Variants {
		if !validName(v.Name) || seen[v.Name] {
			fail("variants[%d]: name %q is not unique and 1 to %d of a-z, 0-9 and hyphen", i, v.Name, maxName)
		}
		if v.Weight == 0 {
			fail("variants[%d]: weight of %q is 0", i, v.Name)
		}
		seen[v.Name] = true
		total += uint64(v.Weight)
	}
	if total >= space {
		fail("weights add up to %d, more than 2^32-1", total)
	}
	if !(d.Traffic > 0 && d.Traffic <= 1) {
		fail("traffic %v is not above 0 and at most 1", d.Traffic)
	}
	if l := d.Layer; l != nil && !(l.Name != "" && l.From >= 0 && l.From < l.Until && l.Until <= 1) {
		fail("layer %q from %v until %v is not a slice between 0 and 1", l.Name, l.From, l.Until)
	}
	if !d.Start.IsZero() && !d.Stop.IsZero() && !d.Start.Before(d.Stop) {
		fail("the experiment stops at %s, before it starts", d.Stop.Format(time.RFC3339))
	}
	if d.MinimumUsers < 2 || d.MinimumUsers > maxUsers/maxVariants {
		fail("minimum_users %d is not between 2 and %d", d.MinimumUsers, maxUsers/maxVariants)
	}
	if d.MaximumUsers != 0 && (d.MaximumUsers < d.plannedUsers() || d.MaximumUsers > maxUsers) {
		fail("maximum_users %d is not between %d, minimum_users for each variant, and %d", d.MaximumUsers, d.plannedUsers(), maxUsers)
	}
	if !(d.Alpha >= 0 && d.Alpha < 0.5) {
		fail("alpha %v is not between 0 and 0.5", d.Alpha)
	}
	d.validateMetrics(fail)
	return errors.Join(errs...)
}

func (d *Definition) validateMetrics(fail func(format string, args ...any)) {
	if len(d.Guardrails) >= maxMetrics {
		fail("%d guardrails are more than %d", len(d.Guardrails), maxMetrics-1)
	}
	metrics := map[string]bool{}
	for _, m := range d.Metrics() {
		if m.Name == "" || len(m.Name) > maxName || metrics[m.Name] || strings.ContainsFunc(m.Name, func(r rune) bool { return r <= ' ' || r > '~' }) {
			fail("metric %q needs a unique name of at most %d printable ASCII characters without spaces", m.Name, maxName)
		}
		if !slices.Contains([]Source{Reported, Latency, Failures, Abandoned, Requests, RequestBytes, ResponseBytes}, m.Source) {
			fail("metric %q: source %q is none of latency, errors, abandoned, requests, request_bytes and response_bytes", m.Name, m.Source)
		}
		if m.Kind != Mean && m.Kind != Sum && m.Kind != Rate {
			fail("metric %q: kind %q is not mean, sum or rate", m.Name, m.Kind)
		}
		metrics[m.Name] = true
	}
}

func validName(s string) bool {
	if s == "" || len(s) > maxName {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c != '-' && (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}

// alpha is the accepted rate of false alarms.
func (d *Definition) alpha() float64 {
	if d.Alpha == 0 {
		return defaultAlpha
	}
	return d.Alpha
}

// FlagKey is the key of the flag that the experiment decides.
func (d *Definition) FlagKey() string {
	if d.Flag == "" {
		return d.Key
	}
	return d.Flag
}

// ID names what the assignment depends on: the same ID assigns the same users.
func (d *Definition) ID() string {
	return fmt.Sprintf("%s:%d traffic %v, %s from %d until %d", d.Key, d.Version, d.Traffic, d.State, d.Start.Unix(), d.Stop.Unix())
}

// Metrics are the primary one and the guardrails.
func (d *Definition) Metrics() []Metric { return append([]Metric{d.Primary}, d.Guardrails...) }

// maximumUsers bounds the users that are measured.
func (d *Definition) maximumUsers() int64 {
	if d.MaximumUsers == 0 {
		return max(defaultMaximumUsers, 2*d.plannedUsers())
	}
	return d.MaximumUsers
}

// plannedUsers are those that all variants need together.
func (d *Definition) plannedUsers() int64 { return int64(len(d.Variants)) * d.MinimumUsers }

// StateAt is where the experiment is in its life at that time: what was asked
// for, and what Start and Stop make of it.
func (d *Definition) StateAt(now time.Time) State {
	switch {
	case d.State == Draft:
		return Draft
	case d.State == Stopped, !d.Stop.IsZero() && !now.Before(d.Stop):
		return Stopped
	case !d.Start.IsZero() && now.Before(d.Start):
		return Scheduled
	default:
		return Started
	}
}

// Running reports whether users are assigned at that time.
func (d *Definition) Running(now time.Time) bool { return d.StateAt(now) == Started }

// MeasuresBefore reports whether the time is the one before the experiment, and
// measured.
func (d *Definition) MeasuresBefore(now time.Time) bool {
	state := d.StateAt(now)
	return d.MeasureBefore && (state == Draft || state == Scheduled)
}

// Assign gives the index of the user's variant, or false if the user does not
// take part: see [Assigner].
func (d *Definition) Assign(user string) (int, bool) { return NewAssigner(d).Assign(user) }

// Comparable reports whether what was measured under d goes on counting under
// next: the same users see the same variants, and the same things are measured.
// More or less traffic changes nobody's variant.
func (d *Definition) Comparable(next *Definition) bool {
	return d.FlagKey() == next.FlagKey() && slices.Equal(d.Variants, next.Variants) && slices.Equal(d.Tiers, next.Tiers) && d.Anonymous == next.Anonymous &&
		slices.Equal(d.Metrics(), next.Metrics()) &&
		(d.Layer == nil && next.Layer == nil || d.Layer != nil && next.Layer != nil && *d.Layer == *next.Layer)
}
