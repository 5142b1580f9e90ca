package anomaly

import (
	"context"
	"errors"
	"strings"
)

// judge judges one sighting and notes the outcome.
func (w *Watch) judge(ctx context.Context, j *job) {
	defer j.entry.once.Do(func() { close(j.entry.first) })
	defer j.entry.judging.Store(false)
	rules := w.rules.Load()
	bounded, cancel := context.WithTimeout(ctx, rules.config.Timeout)
	defer cancel()
	v, err := w.assess(bounded, rules, &j.sighting, j.entry)
	if v != nil {
		w.metrics.judged(v)
		j.entry.assessment.Store(&assessed{v.Assessment, rules})
	} else if old := j.entry.assessment.Load(); old != nil { // which stays, and is not asked for again before it is due
		j.entry.assessment.Store(&assessed{old.under(rules), rules})
	}
	if ctx.Err() != nil {
		return // the process ends
	}
	w.noteStore(err)
	next := rules.config.Refresh
	if err != nil {
		w.metrics.evaluations[failed].Inc()
	}
	if err != nil || j.entry.pooled {
		next = retry
	}
	j.entry.due.Store(j.sighting.At.Add(next).UnixNano())
}

// noteStore tells once that the store went away, and once that it is back.
func (w *Watch) noteStore(err error) {
	switch {
	case errors.Is(err, ErrUnavailable):
		w.away.Store(true)
		if w.outage.Failed(w.options.Now()) {
			w.options.Log.Error("suspicious activity cannot be judged: there are no new signals until the store is back", "error", err)
		}
	case err == nil:
		w.away.Store(false)
		if w.outage.Answered(w.options.Now()) {
			w.options.Log.Info("suspicious activity is judged again")
		}
	}
}

// assess records what was seen, judges it by what was known before, and acts. Where there is an error beside a verdict,
// the verdict holds, but not all was done.
func (w *Watch) assess(ctx context.Context, r *Rules, s *Sighting, e *entry) (*Verdict, error) {
	o := w.observation(r, s)
	facts := o.facts()
	before, err := w.options.Store.Record(ctx, s.User, facts, r.config.Retention)
	if err != nil {
		return nil, err
	}
	v := r.Judge(&before, &o)
	errs := []error{w.options.Store.Amend(ctx, s.User, r.amendment(&v, facts))}
	if v.Action == RevokeSession && s.Session != "" { // without one it is refused all the same
		errs = append(errs, w.endSession(ctx, s))
	}
	if v.Action != None || v.Settled {
		errs = append(errs, w.tell(ctx, r, s, &o, &v, e))
	}
	return &v, errors.Join(errs...)
}

// amendment is what a verdict corrects: a refused request teaches nothing about the user, and a proof of who the user
// is makes what came with it the user's own.
func (r *Rules) amendment(v *Verdict, facts []Fact) Amendment {
	a := Amendment{At: facts[0].First}
	a.Since = a.At.Add(-r.config.Familiar)
	for _, f := range facts {
		switch {
		case v.Action.Refuses():
			a.Withdraw = append(a.Withdraw, f)
		case v.Settled && (f.Kind == KindDevice || f.Kind == KindCountry || f.Kind == KindNetwork):
			a.Vouch = append(a.Vouch, f)
		}
	}
	return a
}

// endSession ends the session of a request.
func (w *Watch) endSession(ctx context.Context, s *Sighting) error {
	err := w.options.EndSession(ctx, s.User, s.Session, s.Issuer)
	if err != nil {
		w.metrics.endFailures.Inc()
		w.options.Log.Error("a suspicious session could not be ended; its requests are refused, and it is tried again",
			"user", s.User, "session", s.Session, "error", err)
	}
	return err
}

// tell stores an event, and logs it, unless the same was told a short while ago.
func (w *Watch) tell(ctx context.Context, r *Rules, s *Sighting, o *Observation, v *Verdict, e *entry) error {
	event := Event{
		At: o.At, Session: s.Session, Issuer: s.Issuer, Score: v.Score, Action: v.Action, Signals: v.Signals, Settled: v.Settled,
		Country: o.Place.Country, ASN: o.Place.Network, Range: neighbourhood(s.Address),
	}
	codes := make([]string, len(v.Signals))
	for i, signal := range v.Signals {
		codes[i] = string(signal.Code)
	}
	// It is the same again where what its signals are about is: hopping from network to network is told once.
	var where, device string
	if v.raised(ImpossibleTravel, ConcurrentUse, NewCountry, NewNetwork, FailedVerifications, Anonymiser) {
		where = event.Range
	}
	if v.raised(NewDevice) {
		device = o.Device
	}
	event.key = digest(s.User, 'e', s.Session, strings.Join(codes, ","), where, device, v.Action.String())
	if event.key == e.key {
		return nil
	}
	added, err := w.options.Store.Append(ctx, s.User, event, r.config.Familiar, r.config.Retention)
	if err != nil {
		return err
	}
	e.key = event.key
	if added {
		w.options.Log.Warn("suspicious activity", "user", s.User, "session", s.Session, "score", v.Score,
			"signals", strings.Join(codes, ","), "action", v.Action.String(), "settled", v.Settled)
	}
	return nil
}

// observation is a sighting as it is judged.
func (w *Watch) observation(r *Rules, s *Sighting) Observation {
	o := Observation{At: millis(s.At), Authenticated: s.Authenticated, Token: digest(s.User, 't', string(s.Token[:]))}
	if s.Token == [32]byte{} {
		o.Token = digest(s.User, 's', s.Session)
	}
	if s.Agent != "" {
		o.Agent = digest(s.User, KindAgent, family(s.Agent))
	}
	if s.Agent != "" || s.Device != "" {
		o.Device = digest(s.User, KindDevice, s.Device, family(s.Agent))
	}
	if !s.Address.IsValid() {
		return o
	}
	place := s.Place.Parse()
	if w.options.Places != nil {
		place = place.or(w.options.Places.Place(s.Address))
	}
	o.Trusted = r.trusted.has(s.Address, place.Network)
	o.Anonymiser = r.anonymisers.has(s.Address, place.Network)
	o.Place = place.Coarse()
	address := endpoint(s.Address)
	o.Address = digest(s.User, KindAddress, address.String())
	o.Failures = w.failures.Load().count(address, s.At)
	return o
}

// or fills in what is not known.
func (p Place) or(other Place) Place {
	if p.Country == "" {
		p.Country = other.Country
	}
	if p.Network == 0 {
		p.Network = other.Network
	}
	if !p.Located {
		p.Located, p.Latitude, p.Longitude, p.Radius = other.Located, other.Latitude, other.Longitude, other.Radius
	}
	return p
}

// Detect judges a request as Observe would, without remembering or doing anything. A past one is judged by what was
// known at its time, as far as that can be told. The error wraps ErrUnavailable.
func (w *Watch) Detect(ctx context.Context, s *Sighting) (Verdict, error) {
	r := w.rules.Load()
	h, err := w.options.Store.History(ctx, s.User, s.At.Add(-r.config.Retention))
	if err != nil {
		return Verdict{}, err
	}
	o := w.observation(r, s)
	if w.options.Now().Sub(s.At) > r.config.Failures.Window {
		o.Failures = 0 // what is counted is of now
	}
	past := h.AsOf(o.At)
	return r.Judge(&past, &o), nil
}

// Events returns what was suspicious about a user, newest first. The error wraps ErrUnavailable.
func (w *Watch) Events(ctx context.Context, user string) ([]Event, error) {
	return w.options.Store.Events(ctx, user, w.options.Now().Add(-w.rules.Load().config.Retention))
}

// Erase forgets everything about a user: what was learned, and the events. The error wraps ErrUnavailable.
func (w *Watch) Erase(ctx context.Context, user string) error {
	return w.options.Store.Erase(ctx, user)
}
