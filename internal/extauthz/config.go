package extauthz

import (
	"fmt"

	"github.com/tollgate-proxy/tollgate/internal/config"
)

// HeadersConfig is the section "headers": the names of what backends are told.
// Envoy's configuration strips and admits the same names: change both.
type HeadersConfig struct {
	UserID      string `yaml:"user_id" doc:"Header for the subject of the verified token."`
	UserTier    string `yaml:"user_tier" doc:"Header for the tier."`
	UserRoles   string `yaml:"user_roles" doc:"Header for the roles, comma-separated and sorted."`
	SessionID   string `yaml:"session_id" doc:"Header for the session."`
	Flags       string `yaml:"flags" doc:"Header for the packed feature flags."`
	FlagPrefix  string `yaml:"flag_prefix" doc:"Begins the name of one more header for each flag, such as x-feature-; empty sends the packed header only."`
	RiskScore   string `yaml:"risk_score" doc:"Header for the score of suspicious activity, 1 to 100; absent where it is 0."`
	RiskReasons string `yaml:"risk_reasons" doc:"Header for the codes of what is suspicious, comma-separated; absent with the score."`
	Consent     string `yaml:"consent" doc:"Header for the purposes the user consents to, comma-separated and sorted."`
	// Baggage and Visitor are sections.
	Baggage BaggageConfig `yaml:"baggage" doc:"What is handed on in the W3C baggage header beside the headers."`
	Visitor VisitorConfig `yaml:"visitor" doc:"Where anonymous clients bring a stable key of their own."`
}

// DefaultHeaders are the names of the contract.
func DefaultHeaders() HeadersConfig {
	return HeadersConfig{
		UserID: "x-user-id", UserTier: "x-user-tier", UserRoles: "x-user-roles", SessionID: "x-session-id",
		Flags: "x-feature-flags", Consent: "x-consent",
		RiskScore: "x-risk-score", RiskReasons: "x-risk-reasons",
	}
}

// Validate checks the section.
func (c HeadersConfig) Validate(r *config.Report) {
	seen := map[string]string{}
	for _, f := range []struct{ key, name string }{
		{"user_id", c.UserID}, {"user_tier", c.UserTier}, {"user_roles", c.UserRoles},
		{"session_id", c.SessionID}, {"flags", c.Flags}, {"consent", c.Consent},
		{"risk_score", c.RiskScore}, {"risk_reasons", c.RiskReasons},
	} {
		if !headerName(f.name) {
			r.Fault(f.key, f.name, "a header name of lower-case letters, digits and dashes that begins with x-")
			continue
		}
		if other, ok := seen[f.name]; ok {
			r.Fault(f.key, f.name, fmt.Sprintf("a name other than that of %s", other))
		}
		seen[f.name] = f.key
	}
	if c.FlagPrefix != "" && (!headerName(c.FlagPrefix+"a") || c.FlagPrefix[len(c.FlagPrefix)-1] != '-') {
		r.Fault("flag_prefix", c.FlagPrefix, "empty, or lower-case letters, digits and dashes that begin with x- and end with a dash")
	}
}

// headerName says whether a name is one that no backend can confuse with
// another: no underscores and no dots, which some servers fold into dashes.
func headerName(name string) bool {
	if len(name) < 3 || len(name) > 64 || name[:2] != "x-" {
		return false
	}
	for i := range len(name) {
		c := name[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}
