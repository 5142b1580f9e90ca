package anomaly

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Observation is a request as it is judged.
type Observation struct {
	At time.Time
	// Device, Agent and Address are digests; empty where the request had none.
	Device, Agent, Address string
	// Token is a digest of the token.
	Token string
	// Place is where the address is, coarse.
	Place Place
	// Trusted is set for the users' own egress, such as an office or a VPN: the address says nothing then. So it is
	// for an Anonymiser.
	Trusted, Anonymiser bool
	// Failures is how many verifications failed for the address within the window.
	Failures int
	// Authenticated is when the user last proved who they are; the zero value where that is not known.
	Authenticated time.Time
}

// placed says whether the address says anything about where the user is.
func (o *Observation) placed() bool { return !o.Trusted && !o.Anonymiser }

func (o *Observation) network() string { return strconv.FormatUint(uint64(o.Place.Network), 10) }

func (o *Observation) hour() int { return o.At.UTC().Hour() }

// facts are what the observation adds to what is known.
func (o *Observation) facts() []Fact {
	var facts []Fact
	add := func(kind Kind, value string) {
		facts = append(facts, Fact{Kind: kind, Value: value, First: o.At, Last: o.At, Count: 1})
	}
	add(KindHour, strconv.Itoa(o.hour()))
	if o.Device != "" {
		add(KindDevice, o.Device)
	}
	if o.Agent != "" {
		add(KindAgent, o.Agent)
		add(KindTokenAgent, o.tokenAgent())
	}
	if !o.placed() {
		return facts
	}
	if o.Place.Country != "" {
		add(KindCountry, o.Place.Country)
	}
	if o.Place.Network != 0 {
		add(KindNetwork, o.network())
	}
	if o.Place.Known() {
		add(KindPlace, o.Place.text())
	}
	if o.Address != "" {
		add(KindAddress, o.Address)
		add(KindTokenPlace, o.tokenPlace())
	}
	return facts
}

func (o *Observation) tokenAgent() string { return o.Token + " " + o.Agent }

func (o *Observation) tokenPlace() string { return o.Token + " " + o.Address + " " + o.Place.text() }

// Judge compares an observation with what was known before it. It depends on its arguments alone.
func (r *Rules) Judge(h *History, o *Observation) Verdict {
	j := judgement{rules: r, h: h, o: o}
	j.travel()
	j.concurrent()
	j.novelty()
	j.windows()
	j.hour()
	j.address()
	return j.verdict()
}

// judgement collects the signals of one observation.
type judgement struct {
	rules   *Rules
	h       *History
	o       *Observation
	signals []Signal
}

// raise adds a signal, unless the configuration gives it no weight. Signals are raised in the order of their codes'
// table.
func (j *judgement) raise(code Code, format string, args ...any) {
	if w := j.rules.weights[code]; w > 0 {
		j.signals = append(j.signals, Signal{Code: code, Weight: w, Evidence: fmt.Sprintf(format, args...)})
	}
}

// travel compares with every place where the user was: they cannot have come here from any of them. A device that is
// the user's own on a network that is, too, travels nowhere: that is who stays at home while somebody else is away.
func (j *judgement) travel() {
	o, c := j.o, &j.rules.config
	if !o.placed() || !o.Place.Located {
		return
	}
	atHome := j.established(KindNetwork, o.network()) || j.established(KindPlace, o.Place.text())
	if atHome && j.established(KindDevice, o.Device) {
		return
	}
	var from Place
	var distance, worst float64
	var took time.Duration
	for i := range j.h.Facts {
		f := &j.h.Facts[i]
		if f.Kind != KindPlace {
			continue
		}
		p, err := readPlace(f.Value)
		if err != nil || sameNetwork(p, o.Place) {
			continue
		}
		gap, told := f.gap(o.At)
		apart := p.Apart(o.Place)
		if !told || apart <= float64(c.Travel.Distance) || !outruns(apart, gap, float64(c.Travel.Speed)) {
			continue
		}
		// How much too fast, with a floor under the gap so that the worst is the farthest among those at once.
		if excess := apart / max(gap, time.Second).Hours(); excess > worst {
			worst, from, distance, took = excess, p, apart, gap
		}
	}
	if worst > 0 {
		j.raise(ImpossibleTravel, "at least %.0f km from %s to %s within %s: %s", distance, from.label(), o.Place.label(),
			took.Round(time.Second), speed(distance, took))
	}
}

func speed(distance float64, took time.Duration) string {
	if took < time.Second {
		return "at once"
	}
	return fmt.Sprintf("%.0f km/h", math.Round(distance/took.Hours()))
}

// sameNetwork: one provider hands out addresses of one city in another, and moves them.
func sameNetwork(a, b Place) bool { return a.Network != 0 && a.Network == b.Network }

func (j *judgement) established(kind Kind, value string) bool {
	return j.h.established(kind, value, j.o.At, j.rules.config.Familiar)
}

// concurrent looks for another place where the same token is in use.
func (j *judgement) concurrent() {
	o, c := j.o, &j.rules.config
	if !o.placed() || o.Token == "" || o.Address == "" {
		return
	}
	for i := range j.h.Facts {
		f := &j.h.Facts[i]
		rest, ours := strings.CutPrefix(f.Value, o.Token+" ")
		if f.Kind != KindTokenPlace || !ours || f.Value == o.tokenPlace() {
			continue
		}
		_, where, _ := strings.Cut(rest, " ")
		p, err := readPlace(where)
		if err != nil || sameNetwork(p, o.Place) {
			continue
		}
		// Between two sightings of the fact, the token was there before and after.
		gap, told := f.gap(o.At)
		if told && gap > c.Concurrent {
			continue
		}
		if apart := p.Apart(o.Place); apart > float64(c.Travel.Distance) {
			j.raise(ConcurrentUse, "the token was used %s apart in %s and %s, at least %.0f km", gap.Round(time.Second), p.label(), o.Place.label(), apart)
			return
		}
		if (!p.Located || !o.Place.Located) && p.Country != "" && o.Place.Country != "" && p.Country != o.Place.Country {
			j.raise(ConcurrentUse, "the token was used %s apart in %s and %s", gap.Round(time.Second), p.label(), o.Place.label())
			return
		}
	}
}

func (j *judgement) novelty() {
	o := j.o
	if o.placed() && o.Place.Country != "" {
		j.fresh(NewCountry, KindCountry, o.Place.Country, o.Place.Country)
	}
	if o.Device != "" {
		j.fresh(NewDevice, KindDevice, o.Device, "device "+o.Device[:min(len(o.Device), 6)])
	}
	if o.placed() && o.Place.Network != 0 {
		j.fresh(NewNetwork, KindNetwork, o.network(), "AS"+o.network())
	}
}

// fresh raises a signal for a value that is new, or was new a short while ago.
func (j *judgement) fresh(code Code, kind Kind, value, name string) {
	others := j.h.others(kind, value)
	if others == 0 || j.established(kind, value) {
		return
	}
	since := "now"
	if f := j.h.find(kind, value); f != nil {
		since = f.First.UTC().Format(time.RFC3339)
	}
	j.raise(code, "%s, seen since %s; %d known before it", name, since, others)
}

func (j *judgement) windows() {
	o, c := j.o, &j.rules.config.Many
	since := o.At.Add(-c.Window)
	if o.placed() && o.Address != "" {
		j.tooMany(ManyAddresses, "addresses",
			j.tokenAddresses(since), c.TokenAddresses,
			j.h.seen(KindAddress, "", o.Address, since), c.UserAddresses)
	}
	if o.Agent != "" {
		j.tooMany(ManyAgents, "agents",
			j.h.seen(KindTokenAgent, o.Token+" ", o.tokenAgent(), since), c.TokenAgents,
			j.h.seen(KindAgent, "", o.Agent, since), c.UserAgents)
	}
}

// tokenAddresses counts the token's addresses, this one included. One address may have been in several places.
func (j *judgement) tokenAddresses(since time.Time) int {
	addresses := map[string]bool{j.o.Address: true}
	for i := range j.h.Facts {
		f := &j.h.Facts[i]
		rest, ours := strings.CutPrefix(f.Value, j.o.Token+" ")
		if f.Kind == KindTokenPlace && ours && !f.Last.Before(since) {
			address, _, _ := strings.Cut(rest, " ")
			addresses[address] = true
		}
	}
	return len(addresses)
}

func (j *judgement) tooMany(code Code, what string, token, tokenMost, user, userMost int) {
	window := j.rules.config.Many.Window
	switch {
	case token > tokenMost:
		j.raise(code, "%d %s of one token within %s, more than %d", token, what, window, tokenMost)
	case user > userMost:
		j.raise(code, "%d %s of the user within %s, more than %d", user, what, window, userMost)
	}
}

func (j *judgement) hour() {
	c := &j.rules.config.Hours
	hours, since := j.h.hours()
	if hours.total() < c.Active || since.After(j.o.At.Add(-c.Learn)) || !hours.unusual(j.o.hour(), c.Rare) {
		return
	}
	d := hours.direction()
	j.raise(UnusualHour, "%02d h UTC; %.1f %% of %d active hours are near it, most around %.0f h (deviation %.1f h)",
		j.o.hour(), 100*hours.near(j.o.hour()), d.n, d.mean/radiansAnHour, d.deviation()/radiansAnHour)
}

func (j *judgement) address() {
	o, c := j.o, &j.rules.config.Failures
	if !o.Trusted && o.Failures >= c.Count {
		j.raise(FailedVerifications, "%d tokens from the address failed verification within %s", o.Failures, c.Window)
	}
	if o.Anonymiser && !o.Trusted {
		j.raise(Anonymiser, "the address belongs to a network that hides its users (AS%d)", o.Place.Network)
	}
}

// verdict sums up. A token that was issued for a fresh proof of who the user is, and has been nowhere else, settles
// what is suspicious: that is how a challenge is answered.
func (j *judgement) verdict() Verdict {
	var v Verdict
	if len(j.signals) == 0 {
		return v
	}
	v.Signals = j.signals
	if j.proved() {
		v.Settled = true
		return v
	}
	codes := make([]string, len(j.signals))
	for i, s := range j.signals {
		codes[i] = string(s.Code)
		v.Score += s.Weight
	}
	v.Score = min(v.Score, MaxScore)
	v.Reasons = strings.Join(codes, ",")
	v.Action = j.rules.action(v.Score)
	return v
}

func (j *judgement) proved() bool {
	o := j.o
	ago := o.At.Sub(o.Authenticated)
	if o.Authenticated.IsZero() || ago < -clockSkew || ago > j.rules.config.Proof {
		return false
	}
	for i := range j.h.Facts {
		f := &j.h.Facts[i]
		rest, ours := strings.CutPrefix(f.Value, o.Token+" ")
		elsewhere := f.Kind == KindTokenPlace && !strings.HasPrefix(rest, o.Address+" ") ||
			f.Kind == KindTokenAgent && rest != o.Agent
		if ours && elsewhere {
			return false
		}
	}
	return true
}

// clockSkew is how far apart clocks may be.
const clockSkew = time.Minute
