package anomaly

import (
	"fmt"
	"slices"
	"strings"
)

// Code names a signal. Codes are safe in headers and metric labels.
type Code string

// The signals.
const (
	// ImpossibleTravel: the user cannot have come here from a place where they were.
	ImpossibleTravel Code = "impossible_travel"
	// ConcurrentUse: one token is in use in two places.
	ConcurrentUse Code = "concurrent_use"
	// NewDevice, NewCountry, NewNetwork: the user was never seen with it, or since a short while only.
	NewDevice  Code = "new_device"
	NewCountry Code = "new_country"
	NewNetwork Code = "new_network"
	// ManyAddresses, ManyAgents: a token or a user came from too many of them within the window.
	ManyAddresses Code = "many_addresses"
	ManyAgents    Code = "many_agents"
	// UnusualHour: the user was hardly ever active at this time of day.
	UnusualHour Code = "unusual_hour"
	// FailedVerifications: many bad tokens came from the address just before.
	FailedVerifications Code = "failed_verifications"
	// Anonymiser: the address belongs to a network that hides where its users are.
	Anonymiser Code = "anonymiser"
)

// defaultWeights are in the order in which reasons are given. An anonymiser is none of the user's doing alone: it
// weighs nothing unless configured.
var defaultWeights = []WeightConfig{ //nolint:gochecknoglobals // a constant table
	{string(ImpossibleTravel), 50},
	{string(ConcurrentUse), 40},
	{string(NewCountry), 20},
	{string(NewDevice), 15},
	{string(NewNetwork), 10},
	{string(ManyAddresses), 25},
	{string(ManyAgents), 25},
	{string(UnusualHour), 10},
	{string(FailedVerifications), 20},
	{string(Anonymiser), 0},
}

// Codes lists the signals, in the order in which reasons are given.
func Codes() []Code {
	codes := make([]Code, len(defaultWeights))
	for i, w := range defaultWeights {
		codes[i] = Code(w.Signal)
	}
	return codes
}

// MaxScore is the highest score.
const MaxScore = 100

// Signal is one reason to suspect a request.
type Signal struct {
	Code Code `json:"code"`
	// Weight is the signal's share of the score.
	Weight int `json:"weight"`
	// Evidence is for people: what was compared with what. It names countries, networks and distances, never an address
	// or an agent.
	Evidence string `json:"evidence"`
}

// Action is what to do about a score. A larger one is more severe.
type Action uint8

// The actions.
const (
	None Action = iota
	// Log: an event is stored and logged; the request passes as if nothing was.
	Log
	// Header: the backend is told, too.
	Header
	// StepUp: the request is refused with a challenge to authenticate again.
	StepUp
	// RevokeSession: the request is refused, and its session ended.
	RevokeSession
	// Deny: the request is refused.
	Deny
)

var actionNames = [...]string{"none", "log", "header", "step_up", "revoke_session", "deny"} //nolint:gochecknoglobals // a constant table

// String returns the action's name in the configuration.
func (a Action) String() string {
	if int(a) < len(actionNames) {
		return actionNames[a]
	}
	return fmt.Sprintf("action(%d)", uint8(a))
}

// MarshalText writes the name.
func (a Action) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText reads the name.
func (a *Action) UnmarshalText(text []byte) error {
	i := slices.Index(actionNames[:], string(text))
	if i < 0 {
		return fmt.Errorf("action %q: want one of %s", text, strings.Join(actionNames[1:], ", "))
	}
	*a = Action(i)
	return nil
}

// Refuses says whether the request must not pass.
func (a Action) Refuses() bool { return a >= StepUp }

// Assessment is what a request's gate needs to know. The zero value is no suspicion.
type Assessment struct {
	// Score is 0 to MaxScore.
	Score int
	// Reasons are the signals' codes, joined with commas: the value of a header. Empty where the score is 0.
	Reasons string
	Action  Action
}

// Told says whether the backend is to be told the score and the reasons.
func (a *Assessment) Told() bool { return a.Action >= Header && a.Score > 0 }

// Verdict is an assessment with its evidence.
type Verdict struct {
	Assessment

	Signals []Signal
	// Settled is true where signals were set aside because the user has just proved who they are.
	Settled bool
}

// raised says whether any of the signals was.
func (v *Verdict) raised(codes ...Code) bool {
	return slices.ContainsFunc(v.Signals, func(s Signal) bool { return slices.Contains(codes, s.Code) })
}
