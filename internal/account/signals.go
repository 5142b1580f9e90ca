package account

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/authn"
	"github.com/tollgate-proxy/tollgate/internal/config"
	"github.com/tollgate-proxy/tollgate/internal/credential"
)

// SignalsConfig is the section "signals": how identity providers tell of the end
// of sessions and users.
type SignalsConfig struct {
	Audiences           []string            `yaml:"audiences" doc:"Values of aud that mean us in security event tokens and logout tokens; empty refuses both."`
	RevocationURL       string              `yaml:"revocation_url" doc:"Public URL of /global-token-revocation, the aud of a provider's own assertion there; empty takes management callers alone."`
	EmailIsUser         bool                `yaml:"email_is_user" doc:"Take a subject's e-mail address for the user; only where the tokens' users are e-mail addresses."`
	SpeaksFor           []SpeaksForConfig   `yaml:"speaks_for" doc:"Issuers whose users another issuer may end; each may end its own."`
	Transmitters        []TransmitterConfig `yaml:"transmitters" doc:"Issuers of security event tokens and logout tokens that issue no access tokens, with keys of their own."`
	UnknownEventsRefuse bool                `yaml:"refuse_unknown_events" doc:"Refuse a security event of an unknown kind rather than accept and ignore it."`
}

// SpeaksForConfig lets one issuer speak for others.
type SpeaksForConfig struct {
	Issuer  string   `yaml:"issuer" doc:"Issuer that signs the events, one of tokens.issuers."`
	Issuers []string `yaml:"issuers" doc:"Issuers of the tokens that it may end, its own where it is to end those too."`
}

// Validate checks the section.
func (c SignalsConfig) Validate(r *config.Report) {
	aud := func(key string, audiences []string) {
		for _, a := range audiences {
			if a == "" || a == c.RevocationURL {
				// An assertion with the audience of a client would be any ID token.
				r.Fault(key, a, "values of aud other than revocation_url")
			}
		}
	}
	aud("audiences", c.Audiences)
	if c.RevocationURL != "" && !strings.HasPrefix(c.RevocationURL, "https://") {
		r.Fault("revocation_url", c.RevocationURL, "an https URL")
	}
	var seen []string
	once := func(key, issuer string) {
		if slices.Contains(seen, issuer) {
			r.Fault(key, issuer, "each issuer once")
		}
		seen = append(seen, issuer)
	}
	for _, s := range c.SpeaksFor {
		once("speaks_for", s.Issuer)
	}
	for i, t := range c.Transmitters {
		once(fmt.Sprintf("transmitters[%d].issuer", i), t.Issuer)
		aud(fmt.Sprintf("transmitters[%d].audiences", i), t.Audiences)
		if len(t.Audiences) == 0 && len(c.Audiences) == 0 {
			r.Fault(fmt.Sprintf("transmitters[%d].audiences", i), nil, "at least one value of aud, here or in signals.audiences")
		}
	}
}

// Validate checks the element.
func (c SpeaksForConfig) Validate(r *config.Report) {
	if c.Issuer == "" {
		r.Fault("issuer", c.Issuer, "an issuer")
	}
	if len(c.Issuers) == 0 {
		r.Fault("issuers", nil, "at least one issuer")
	}
}

// TransmitterConfig is an issuer of signals that issues no access tokens.
type TransmitterConfig struct {
	Name       string           `yaml:"name" doc:"Name in logs; lower-case letters, digits and dashes."`
	Issuer     string           `yaml:"issuer" doc:"The iss of its tokens, compared exactly; none of tokens.issuers."`
	Algorithms []string         `yaml:"algorithms" doc:"Accepted algorithms, as for tokens.issuers."`
	Audiences  []string         `yaml:"audiences" doc:"Values of aud that mean us in its tokens; signals.audiences where empty."`
	Keys       authn.KeysConfig `yaml:"keys"`
	Issuers    []string         `yaml:"issuers" doc:"Issuers of access tokens whose users it may end. A subject of the transmitter itself means the same subject of each of them."`
}

// IssuerConfig is the transmitter as authn verifies it.
func (c TransmitterConfig) IssuerConfig() authn.IssuerConfig {
	// The audiences are those of access tokens there, and there are none.
	return authn.IssuerConfig{Name: c.Name, Issuer: c.Issuer, Algorithms: c.Algorithms, Audiences: []string{c.Issuer}, Keys: c.Keys}
}

// Validate checks the element.
func (c TransmitterConfig) Validate(r *config.Report) {
	c.IssuerConfig().Validate(r)
	if c.Keys.Envoy {
		r.Fault("keys.envoy", c.Keys.Envoy, "keys that are here, since signals do not pass Envoy's jwt_authn")
	}
	if len(c.Issuers) == 0 {
		r.Fault("issuers", nil, "at least one issuer of access tokens")
	}
}

func (c SignalsConfig) transmitter(sender string) *TransmitterConfig {
	i := slices.IndexFunc(c.Transmitters, func(t TransmitterConfig) bool { return t.Issuer == sender })
	if i < 0 {
		return nil
	}
	return &c.Transmitters[i]
}

// audiencesOf are the values of aud that mean us in what the sender says.
func (c SignalsConfig) audiencesOf(sender string) []string {
	if t := c.transmitter(sender); t != nil && len(t.Audiences) > 0 {
		return t.Audiences
	}
	return c.Audiences
}

// resolver is for the subjects that the sender names.
func (c SignalsConfig) resolver(sender string) resolver {
	r := resolver{issuers: c.issuersOf(sender), emailIsUser: c.EmailIsUser}
	if c.transmitter(sender) != nil {
		r.alias = sender
	}
	return r
}

// issuersOf are those whose users the sender may end.
func (c SignalsConfig) issuersOf(sender string) []string {
	if t := c.transmitter(sender); t != nil {
		return t.Issuers
	}
	for _, s := range c.SpeaksFor {
		if s.Issuer == sender {
			return s.Issuers
		}
	}
	return []string{sender}
}

// StatementVerifier verifies what issuers say; *authn.Verifier is one. Its
// errors are *authn.Error.
type StatementVerifier interface {
	VerifyStatement(token string, rules authn.StatementRules, now time.Time) (*authn.Statement, error)
}

// Replays remembers the identifiers of statements that were acted upon. Safe for
// concurrent use; *RedisReplays is one.
type Replays interface {
	// Seen tells whether the issuer's identifier was noted before.
	Seen(ctx context.Context, issuer, id string) (bool, error)
	// Note notes it for a time.
	Note(ctx context.Context, issuer, id string, keep time.Duration) error
	// First reports whether nobody asked for the id before, and notes it for a
	// time, at once.
	First(ctx context.Context, keep time.Duration, id string) (bool, error)
}

// Signals is the part of the API where identity providers, and tools that watch
// over them, end sessions and users: OpenID Connect Back-Channel Logout 1.0, the
// Shared Signals Framework's push delivery (RFC 8935) of CAEP and RISC events,
// and Global Token Revocation. All fields are required.
//
// An issuer is believed by its signature alone, and ends its own users' tokens
// and sessions, or those of issuers that the configuration lets it speak for.
type Signals struct {
	Config   SignalsConfig
	Verifier StatementVerifier
	Replays  Replays
	Revoker  Revoker
	Manager  SessionManager
	Auditor  Auditor
	Now      func() time.Time
}

// Register implements Part. Who pushes a signed statement needs no other
// credential.
func (s *Signals) Register(mux Routes, auth *credential.Authenticator) {
	mux.HandleFunc("POST /oidc/backchannel-logout", s.logout)
	mux.HandleFunc("POST /ssf/events", s.receive)
	managed := auth.Require(credential.Operator, http.HandlerFunc(s.revokeGlobally))
	mux.HandleFunc("POST /global-token-revocation", func(w http.ResponseWriter, r *http.Request) {
		if ctx, ok := s.asserted(r); ok {
			s.revokeGlobally(w, r.WithContext(ctx))
			return
		}
		managed.ServeHTTP(w, r)
	})
}

// maxStatement bounds how long a statement that expires may live, and how long
// after its expiry it is remembered.
const maxStatement = time.Hour

// longestReplay is how long a statement without an expiry is remembered. Acting
// twice on one is harmless after that: it ends what began before its time.
const longestReplay = 24 * time.Hour

func (s *Signals) killer() *killer { return &killer{s.Revoker, s.Manager, s.Now} }

// once does what a statement asks for, unless that was done before. The note is
// taken afterwards: what failed can be sent again.
func (s *Signals) once(ctx context.Context, st *authn.Statement, do func() error) (again bool, err error) {
	if seen, err := s.Replays.Seen(ctx, st.Issuer, st.ID); seen || err != nil {
		return seen, err
	}
	if err := do(); err != nil {
		return false, err
	}
	keep := longestReplay
	if !st.ExpiresAt.IsZero() {
		keep = min(keep, max(st.ExpiresAt.Sub(s.Now()), 0)+maxStatement)
	}
	return false, s.Replays.Note(ctx, st.Issuer, st.ID, keep)
}

const logoutEvent = "http://schemas.openid.net/event/backchannel-logout"

// logoutToken are the claims of a logout token that are not checked already.
type logoutToken struct {
	Subject string         `json:"sub"`
	Session string         `json:"sid"`
	Events  map[string]any `json:"events"`
}

// logout is OpenID Connect Back-Channel Logout 1.0. Any failure is answered with
// 400, as its section 2.8 says.
func (s *Signals) logout(w http.ResponseWriter, r *http.Request) {
	token, err := readForm(w, r, "logout_token")
	if err != nil {
		writeOAuthError(w, http.StatusBadRequest, oauthInvalidRequest, err.Error())
		return
	}
	event := Event{Actor: "unknown issuer", Action: "signal.backchannel_logout", Outcome: "done", At: s.Now()}
	st, t, err := s.readLogout(token)
	if st != nil {
		event.Actor, event.Target = st.Issuer, t.String()
	}
	again := false
	if err == nil {
		again, err = s.once(r.Context(), st, func() error { return s.killer().kill(r.Context(), t, st.IssuedAt, false) })
	}
	if again {
		err = errors.New("the logout token was used before")
	}
	code := oauthInvalidRequest
	switch {
	case err == nil:
	case again:
		event.Outcome = "replayed"
	case st == nil || t.user+t.session == "":
		event.Outcome = "token_invalid"
	default:
		event.Outcome, code = "dependency_unavailable", oauthUnavailable
		err = errors.New("the logout could not be carried out, send it again")
	}
	s.Auditor.Audit(r.Context(), event)
	if err != nil {
		writeOAuthError(w, http.StatusBadRequest, code, publicText(err))
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
}

// readLogout verifies a logout token (section 2.6). The statement is nil where
// the token is not the issuer's.
func (s *Signals) readLogout(token string) (*authn.Statement, target, error) {
	st, err := s.Verifier.VerifyStatement(token, authn.StatementRules{
		Types: []string{"logout+jwt", "jwt", "absent"}, Audiences: s.Config.audiencesOf, MaxLifetime: maxStatement, Expires: true,
	}, s.Now())
	if err != nil {
		return nil, target{}, err
	}
	var c logoutToken
	if err := st.Decode(&c); err != nil {
		return st, target{}, errors.New("sub, sid or events is of the wrong type")
	}
	_, isObject := c.Events[logoutEvent].(map[string]any)
	switch {
	case st.Has("nonce"):
		return st, target{}, errors.New("a logout token has no nonce")
	case !isObject:
		return st, target{}, errors.New("events does not name a logout")
	case c.Subject == "" && c.Session == "":
		return st, target{}, errors.New("neither sub nor sid")
	}
	return st, target{user: c.Subject, session: c.Session, issuers: s.Config.issuersOf(st.Issuer)}, nil
}

// publicText is what a sender may be told.
func publicText(err error) string {
	var e *authn.Error
	if !errors.As(err, &e) {
		return err.Error()
	}
	for _, known := range []error{authn.ErrIssuer, authn.ErrAudience, authn.ErrSignature} {
		if errors.Is(err, known) {
			return known.Error()
		}
	}
	return e.Public
}

// revocationBody is the body of POST /global-token-revocation.
type revocationBody struct {
	Subject *subjectID `json:"sub_id"`
}

// asserted authenticates an identity provider by a JWT of its own, made for our
// URL (private_key_jwt). Each serves once.
func (s *Signals) asserted(r *http.Request) (context.Context, bool) {
	values := r.Header.Values("Authorization")
	if s.Config.RevocationURL == "" || len(values) != 1 {
		return nil, false
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	if !strings.EqualFold(scheme, "bearer") || strings.Count(token, ".") != 2 {
		return nil, false
	}
	st, err := s.Verifier.VerifyStatement(token, authn.StatementRules{
		Types: []string{"jwt", "absent"}, Audiences: func(string) []string { return []string{s.Config.RevocationURL} },
		MaxLifetime: maxStatement, Expires: true,
	}, s.Now())
	if err != nil {
		return nil, false
	}
	first, err := s.Replays.First(r.Context(), max(st.ExpiresAt.Sub(s.Now()), 0)+maxStatement, "assertion:"+st.Issuer+" "+st.ID)
	if !first || err != nil {
		return nil, false
	}
	ctx := credential.With(r.Context(), credential.Caller{Name: st.Issuer})
	return context.WithValue(ctx, senderKey{}, s.Config.resolver(st.Issuer)), true
}

// senderKey holds the resolver of a provider; a management caller has none and
// speaks for all issuers.
type senderKey struct{}

// revokeGlobally is Global Token Revocation (draft-parecki-oauth-global-token-revocation).
func (s *Signals) revokeGlobally(w http.ResponseWriter, r *http.Request) {
	var body revocationBody
	if err := decodeJSON(w, r, maxTokenBody, &body); err != nil {
		writeError(w, r, err)
		return
	}
	subjects, asserted := r.Context().Value(senderKey{}).(resolver)
	if !asserted {
		subjects = resolver{emailIsUser: s.Config.EmailIsUser}
	}
	event := Event{Actor: actor(r.Context()), Action: "user.revoke", Reason: "global token revocation", At: s.Now()}
	t, err := subjects.resolve(body.Subject, 0)
	switch {
	case errors.Is(err, errForeign):
		err = forbidden("The subject is of " + errForeign.Error() + ".")
	case err != nil:
		err = badRequest("sub_id is an " + err.Error() + ".")
	case t.user == "" || t.session != "":
		err = badRequest("sub_id names no user.")
	default:
		event.Target = t.String()
		err = s.killer().kill(r.Context(), t, time.Time{}, false)
	}
	if audited(w, r, s.Auditor, event, err) {
		w.WriteHeader(http.StatusNoContent)
	}
}
