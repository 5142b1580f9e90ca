package session

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/prometheus/client_golang/prometheus"
)

// Killer revokes the tokens of sessions: those of the session's issuer, or of whichever where that is unknown. It must
// not return before that is in force.
type Killer interface {
	Kill(ctx context.Context, sessions []Ref) error
}

// KillerFunc is a function as a Killer.
type KillerFunc func(ctx context.Context, sessions []Ref) error

// Kill implements Killer.
func (f KillerFunc) Kill(ctx context.Context, sessions []Ref) error { return f(ctx, sessions) }

// Places says where addresses are. It is asked behind requests, never on their way.
type Places interface {
	Place(address netip.Addr) Place
}

// Options are what a Manager and a Tracker need from their process. Killer is required.
type Options struct {
	// Tombstone is how long an ended session is remembered: at least the longest lifetime of a token and the verifier's
	// leeway. Default 25 h.
	Tombstone time.Duration
	Killer    Killer
	// Devices reads user agents; nil leaves them unread.
	Devices *Devices
	// Places fills in where a session's address is, as far as its registration does not say; nil leaves it unknown.
	Places  Places
	Now     func() time.Time      // default time.Now
	Log     *slog.Logger          // default discards
	Metrics prometheus.Registerer // default none
}

// Manager registers, lists and ends sessions, and sees to it that what has ended is dead: it revokes the tokens of every
// session that ended, for whatever reason. It is safe for concurrent use.
//
// An error that wraps ErrUnavailable from an operation that ends sessions means that some of their tokens may still be
// accepted. Repeat the operation; every later one for the same user tries again too.
type Manager struct {
	store   Store
	config  Config
	options Options
	ended   *prometheus.CounterVec
}

// Why sessions ended, for metrics.
const (
	causeDemand  = "demand"
	causeEvicted = "evicted"
	causeTimeout = "timeout" // and debts paid late
)

// NewManager returns a manager over a store.
func NewManager(store Store, c Config, o Options) (*Manager, error) {
	if o.Tombstone == 0 {
		o.Tombstone = 25 * time.Hour
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Killer == nil {
		return nil, errors.New("session: a killer is required")
	}
	if err := c.For("", o.Tombstone).Validate(); err != nil {
		return nil, err
	}
	m := &Manager{store: store, config: c, options: o, ended: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "tollgate_session_ended_total",
		Help: "Sessions that this process ended, by cause.",
	}, []string{"cause"})}
	for _, cause := range []string{causeDemand, causeEvicted, causeTimeout} {
		m.ended.WithLabelValues(cause)
	}
	return m, register(o.Metrics, m.ended)
}

func register(r prometheus.Registerer, cs ...prometheus.Collector) error {
	if r == nil {
		return nil
	}
	for _, c := range cs {
		if err := r.Register(c); err != nil {
			return fmt.Errorf("register metrics: %w", err)
		}
	}
	return nil
}

// limits of a tier.
func (m *Manager) limits(tier string) Limits { return m.config.For(tier, m.options.Tombstone) }

// Register registers a session, created now; one that is there already is kept. It returns the session as stored.
// ErrInvalid, ErrTooMany and ErrEnded mean that the login must be refused.
func (m *Manager) Register(ctx context.Context, s Session, tier string) (Session, error) {
	if m.options.Devices != nil {
		s.Device = m.options.Devices.Describe(s.Device)
	}
	s.Place = m.locate(s.Place, s.Address)
	if err := s.Validate(); err != nil {
		return Session{}, err
	}
	o, err := m.store.Register(ctx, s, m.limits(tier), m.options.Now())
	if unpaid := m.pay(ctx, s.User, o, causeEvicted); unpaid != nil && err == nil {
		err = unpaid
	}
	if err != nil {
		return Session{}, fmt.Errorf("register session: %w", err)
	}
	for _, stored := range o.Sessions {
		if stored.ID == s.ID && (s.Issuer == "" || stored.Issuer == s.Issuer) {
			return stored, nil
		}
	}
	return Session{}, fmt.Errorf("register session: %w", ErrEnded)
}

// locate fills in what is known of the address. A country that was told wins, and with it no city of another.
func (m *Manager) locate(p Place, address string) Place {
	if m.options.Places == nil || p.City != "" {
		return p
	}
	a, err := netip.ParseAddr(address)
	if err != nil {
		return p
	}
	found := m.options.Places.Place(a)
	if p.Country == "" || p.Country == found.Country {
		found.Country, found.City = cut(found.Country, maxName), cut(found.City, maxName)
		return found
	}
	return p
}

// List returns the user's sessions, oldest first.
func (m *Manager) List(ctx context.Context, user string) ([]Session, error) {
	o, err := m.store.List(ctx, user, m.limits(""), m.options.Now())
	if err != nil {
		return nil, fmt.Errorf("list sessions: %w", err)
	}
	if err := m.pay(ctx, user, o, causeTimeout); err != nil {
		m.options.Log.Warn("sessions that timed out could not be revoked yet", slog.Any("error", err))
	}
	return o.Sessions, nil
}

// End ends one session: of whichever issuer, where r names none. One that is not registered is killed all the same, and
// ErrNotFound is returned.
func (m *Manager) End(ctx context.Context, user string, r Ref) error {
	if r.ID == "" {
		return fmt.Errorf("%w: id is missing", ErrInvalid)
	}
	n, err := m.end(ctx, user, Which{Issuer: r.Issuer, Only: r.ID})
	if err == nil && n == 0 {
		return ErrNotFound
	}
	return err
}

// EndOthers ends all of the user's sessions with an issuer but one, and tells how many there were. Without an issuer it
// is all of them.
func (m *Manager) EndOthers(ctx context.Context, user string, keep Ref) (int, error) {
	if keep.ID == "" {
		return 0, fmt.Errorf("%w: id of the session to keep is missing", ErrInvalid)
	}
	return m.end(ctx, user, Which{Issuer: keep.Issuer, Except: keep.ID})
}

// EndAll ends all of the user's sessions with an issuer, or with whichever where it is empty, and tells how many there
// were.
func (m *Manager) EndAll(ctx context.Context, user, issuer string) (int, error) {
	return m.end(ctx, user, Which{Issuer: issuer})
}

// EndWhosever ends a session whose user is not known, and tells how many there were. It kills nothing that is not
// registered.
func (m *Manager) EndWhosever(ctx context.Context, r Ref) (int, error) {
	if r.ID == "" || len(r.ID) > maxName || len(r.Issuer) > maxName {
		return 0, fmt.Errorf("%w: id is missing or longer than %d bytes", ErrInvalid, maxName)
	}
	users, err := m.store.Owners(ctx, r)
	if err != nil {
		return 0, fmt.Errorf("end session: %w", err)
	}
	all := 0
	which := Which{Issuer: r.Issuer, Only: r.ID}
	for _, user := range users {
		sessions, err := m.List(ctx, user)
		if err != nil {
			return all, err
		}
		if !slices.ContainsFunc(sessions, func(s Session) bool { return which.covers(s.Ref) }) {
			continue
		}
		n, err := m.end(ctx, user, which)
		if err != nil {
			return all, err
		}
		all += n
	}
	return all, nil
}

func (m *Manager) end(ctx context.Context, user string, which Which) (int, error) {
	for _, name := range []string{user, which.Issuer, which.Only, which.Except} {
		if user == "" || len(name) > maxName {
			return 0, fmt.Errorf("%w: user, issuer or id is missing or longer than %d bytes", ErrInvalid, maxName)
		}
	}
	if strings.ContainsFunc(which.Issuer, unicode.IsControl) {
		return 0, fmt.Errorf("%w: issuer has control characters", ErrInvalid)
	}
	o, err := m.store.End(ctx, user, which, m.limits(""), m.options.Now())
	if err != nil {
		return 0, fmt.Errorf("end sessions: %w", err)
	}
	if err := m.pay(ctx, user, o, causeDemand); err != nil {
		return len(o.Ended), fmt.Errorf("end sessions: %w", err)
	}
	return len(o.Ended), nil
}

// sweep ends sessions that have timed out though nobody asks for them, and pays debts that nobody came back for. It
// reports whether there may be more to do at once.
func (m *Manager) sweep(ctx context.Context) (more bool, err error) {
	now := m.options.Now()
	users, claim, err := m.store.Due(ctx, now)
	if err != nil {
		return false, err
	}
	l := m.limits("")
	for _, user := range users {
		o, err := m.store.List(ctx, user, l, now)
		if err != nil {
			return false, err
		}
		if err := m.pay(ctx, user, o, causeTimeout); err != nil {
			return false, err // the user is due again at the claim
		}
		var next time.Time
		for _, s := range o.Sessions {
			ends := s.LastSeen.Add(l.Idle)
			if oldest := s.Created.Add(l.Absolute); oldest.Before(ends) {
				ends = oldest
			}
			if next.IsZero() || ends.Before(next) {
				next = ends
			}
		}
		if err := m.store.Defer(ctx, user, claim, next); err != nil {
			return false, err
		}
	}
	return len(users) == dueBatch, nil
}

// pay kills what is owed and settles it.
func (m *Manager) pay(ctx context.Context, user string, o Outcome, cause string) error {
	m.ended.WithLabelValues(cause).Add(float64(len(o.Ended)))
	if len(o.Owed) == 0 {
		return nil
	}
	if err := m.kill(ctx, o.Owed); err != nil {
		return err
	}
	m.ended.WithLabelValues(causeTimeout).Add(float64(max(len(o.Owed)-len(o.Ended), 0)))
	return m.store.Settle(ctx, user, o.Owed)
}

func (m *Manager) kill(ctx context.Context, refs []Ref) error {
	if err := m.options.Killer.Kill(ctx, refs); err != nil {
		return fmt.Errorf("%w: revoke %d sessions: %w", ErrUnavailable, len(refs), err)
	}
	return nil
}
