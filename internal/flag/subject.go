package flag

import "strings"

// VisitorPrefix begins the keys of anonymous visitors, so that none is a user's.
const VisitorPrefix = "visitor:"

// IsVisitor is what [Subject.Visitor] is for a key.
func IsVisitor(anonymous bool, key string) bool {
	return anonymous && strings.HasPrefix(key, VisitorPrefix)
}

// Subject is who a flag is evaluated for. It is read only.
type Subject struct {
	// Key is the user's id, or a stable anonymous key. Without it, roll-outs
	// that need one answer TARGETING_KEY_MISSING.
	Key string
	// Anonymous is true where Key is not an authenticated user.
	Anonymous bool
	// Visitor is true where Anonymous is and Key is one that the client brings
	// along, behind [VisitorPrefix].
	Visitor bool
	// Tier is the subject's tier.
	Tier string
	// Roles are the subject's roles, in any order.
	Roles []string
	// Claims are further attributes as encoding/json decodes them: string,
	// float64, bool, []any, map[string]any. Members named targetingKey, tier,
	// roles or anonymous are not seen; the fields above are.
	Claims map[string]any
}

// Reason says why an evaluation gave its value, as OpenFeature names it.
type Reason string

// OpenFeature's reasons.
const (
	ReasonStatic         Reason = "STATIC"
	ReasonDefault        Reason = "DEFAULT"
	ReasonTargetingMatch Reason = "TARGETING_MATCH"
	ReasonSplit          Reason = "SPLIT"
	ReasonDisabled       Reason = "DISABLED"
	ReasonError          Reason = "ERROR"
)

// ErrorCode says why an evaluation failed, as OpenFeature names it.
type ErrorCode string

// OpenFeature's error codes.
const (
	ErrorNone                ErrorCode = ""
	ErrorFlagNotFound        ErrorCode = "FLAG_NOT_FOUND"
	ErrorParse               ErrorCode = "PARSE_ERROR"
	ErrorTargetingKeyMissing ErrorCode = "TARGETING_KEY_MISSING"
	ErrorInvalidContext      ErrorCode = "INVALID_CONTEXT"
	ErrorGeneral             ErrorCode = "GENERAL"
)

// Result is one evaluation. Variant is empty, and Value nil, where the caller
// should use its own default: on errors, on disabled flags and where the flag
// has no default variant.
type Result struct {
	Variant   string
	Value     any
	Reason    Reason
	ErrorCode ErrorCode
}
