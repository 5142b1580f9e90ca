package flag

import (
	"encoding/json"
	"time"
)

// Bounds on definitions. What exceeds one is refused at load.
const (
	// MaxFlags is the most flags that one set may hold.
	MaxFlags = 2000
	// MaxDocumentBytes is the largest definitions document.
	MaxDocumentBytes = 4 << 20
	// MaxFlagBytes is the largest single stored definition.
	MaxFlagBytes = 512 << 10
	// MaxVariants is the most variants that one flag may have.
	MaxVariants = 64
	// MaxUsers is the most single users that one flag may name.
	MaxUsers = 10000
	// MaxHeaderBytes is the longest packed header that a set may produce for
	// any subject.
	MaxHeaderBytes = 16 << 10

	maxNameBytes = 64
	maxTextBytes = 1024
	maxMetadata  = 100
)

// State says whether flagd and Tollgate evaluate the flag at all.
type State string

// The states of the flagd schema.
const (
	Enabled  State = "ENABLED"
	Disabled State = "DISABLED"
)

// Hash names a bucketing function. It is part of a flag's definition, so that
// no upgrade moves users between variants.
type Hash string

const (
	// HashTollgate1 is fmix64(xxh64(subject) ^ xxh64(salt)), the default for
	// roll-outs.
	HashTollgate1 Hash = "tollgate-1"
	// HashFlagd1 is flagd's function before 2026: murmur3-32 as a signed
	// number, its magnitude scaled to 0 to 100 in floating point.
	HashFlagd1 Hash = "flagd-1"
	// HashFlagd2 is flagd's present function, murmur3-32 scaled to the total
	// weight in integers; the default for the fractional operator.
	HashFlagd2 Hash = "flagd-2"
)

// Definitions are the flags of one document or store, keyed by flag.
type Definitions struct {
	Flags map[string]Definition
}

// Definition is one flag: the flagd schema's members and the extension.
type Definition struct {
	// Key is the flag's name: [a-z0-9-], at most 64 bytes.
	Key string `json:"-"`
	// State is [Enabled] or [Disabled].
	State State `json:"state"`
	// Variants maps names to values of one type: bool, string, float64 or
	// map[string]any.
	Variants map[string]any `json:"variants"`
	// DefaultVariant is served where nothing else applies; empty leaves the
	// value to the caller's code.
	DefaultVariant string `json:"defaultVariant,omitempty"`
	// Targeting is a JSONLogic rule with flagd's operators, without $ref.
	Targeting json.RawMessage `json:"targeting,omitempty"`
	// Metadata is handed through to evaluations: bool, string or float64.
	Metadata map[string]any `json:"metadata,omitempty"`
	// Extension is what the flagd schema lacks.
	Extension Extension `json:"tollgate,omitzero"`
}

// Extension is the "tollgate" member of a flag.
type Extension struct {
	// Description says in one sentence what the flag is for.
	Description string `json:"description,omitempty"`
	// Owner is the team or person to ask.
	Owner string `json:"owner,omitempty"`
	// Expires is when the flag should be gone; past it the flag still works
	// and is reported as stale.
	Expires time.Time `json:"expires,omitzero"`
	// Header is false for flags that are not sent to backends.
	Header *bool `json:"header,omitempty"`
	// Killed is the kill switch: everyone gets the off variant.
	Killed bool `json:"killed,omitempty"`
	// Force serves one variant to everyone, whatever the rules say.
	Force string `json:"force,omitempty"`
	// On is the variant that "on" means; by default the boolean flag's true.
	On string `json:"on,omitempty"`
	// Off is the variant that "off" means; by default the boolean flag's
	// false, else the default variant.
	Off string `json:"off,omitempty"`
	// Salt separates this flag's roll-out from others'; by default the key.
	Salt string `json:"salt,omitempty"`
	// Hash is the roll-out's bucketing function, by default [HashTollgate1].
	Hash Hash `json:"hash,omitempty"`
	// FlagdHash is what the operator fractional uses: [HashFlagd1] or, by
	// default, [HashFlagd2].
	FlagdHash Hash `json:"flagdHash,omitempty"`
	// FlagdKey is the name under which flagd evaluates the flag: the value of
	// $flagd.flagKey and part of fractional's default bucketing. By default the
	// key.
	FlagdKey string `json:"flagdKey,omitempty"`
	// Schedule limits the time in which the flag is anything but off.
	Schedule Schedule `json:"schedule,omitzero"`
	// Prerequisites must all hold, else the flag is off.
	Prerequisites []Prerequisite `json:"prerequisites,omitempty"`
	// Users get a variant by name, before audience and roll-out.
	Users []UserList `json:"users,omitempty"`
	// Audience limits targeting and roll-out; others get the default variant.
	Audience Audience `json:"audience,omitzero"`
	// Layer makes flags of one layer mutually exclusive.
	Layer *Layer `json:"layer,omitempty"`
	// Holdout keeps a share of users on the default variant of every flag that
	// names it.
	Holdout *Holdout `json:"holdout,omitempty"`
	// Rollout serves a variant to a share of the audience.
	Rollout *Rollout `json:"rollout,omitempty"`
}

// Schedule is a half-open interval; a zero time is no limit.
type Schedule struct {
	From  time.Time `json:"from,omitzero"`
	Until time.Time `json:"until,omitzero"`
}

// Prerequisite holds if the flag evaluates to one of the variants.
type Prerequisite struct {
	Flag     string   `json:"flag"`
	Variants []string `json:"variants"`
}

// UserList gives a variant to subjects by key.
type UserList struct {
	Variant string   `json:"variant"`
	Keys    []string `json:"keys"`
}

// Audience is met if every list that is given contains one of the subject's
// values.
type Audience struct {
	Tiers  []string     `json:"tiers,omitempty"`
	Roles  []string     `json:"roles,omitempty"`
	Claims []ClaimMatch `json:"claims,omitempty"`
}

// IsZero reports whether the audience is everyone.
func (a Audience) IsZero() bool { return len(a.Tiers)+len(a.Roles)+len(a.Claims) == 0 }

// ClaimMatch is met if the claim, or a member of it where it is a list, is one
// of the values.
type ClaimMatch struct {
	Name   string   `json:"name"`
	Values []string `json:"values"`
}

// Layer gives the flag the slice [From, Until) of a space that all flags of
// the layer share. Slices of one layer may not overlap.
type Layer struct {
	Name  string     `json:"name"`
	From  Percentage `json:"from"`
	Until Percentage `json:"until"`
}

// Holdout keeps Percentage of all subjects out. Flags that name the same
// holdout must state the same percentage.
type Holdout struct {
	Name       string     `json:"name"`
	Percentage Percentage `json:"percentage"`
}

// Rollout serves Variant, or one of Variants by weight, to Percentage of the
// audience. Raising the percentage keeps everyone already in, on the same
// variant.
type Rollout struct {
	Percentage Percentage `json:"percentage"`
	// Progressive moves the percentage linearly in time instead.
	Progressive *Progressive `json:"progressive,omitempty"`
	// Variant defaults to the on variant.
	Variant string `json:"variant,omitempty"`
	// Variants splits those in the roll-out; empty for a single variant.
	Variants []Weight `json:"variants,omitempty"`
	// BucketBy names a claim to bucket by instead of the subject's key, such
	// as an organisation. A subject without it gets the default variant.
	BucketBy string `json:"bucketBy,omitempty"`
}

// MarshalJSON leaves the percentage out where the roll-out is progressive.
func (o Rollout) MarshalJSON() ([]byte, error) {
	type plain Rollout
	out := struct {
		Percentage *Percentage `json:"percentage,omitempty"`
		plain
	}{plain: plain(o)}
	if o.Progressive == nil {
		out.Percentage = &o.Percentage
	}
	return json.Marshal(out)
}

// Progressive raises or lowers the roll-out from Start to End between the two
// times.
type Progressive struct {
	From  time.Time  `json:"from"`
	Until time.Time  `json:"until"`
	Start Percentage `json:"start"`
	End   Percentage `json:"end"`
}

// Weight is a share of a split, relative to the sum of the split's weights.
type Weight struct {
	Variant string `json:"variant"`
	Weight  int32  `json:"weight"`
}
