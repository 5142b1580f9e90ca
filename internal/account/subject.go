package account

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/revocation"
	"github.com/tollgate-proxy/tollgate/internal/session"
)

// subjectID is a subject identifier of RFC 9493, or a complex subject of the
// Shared Signals Framework.
type subjectID struct {
	Format string `json:"format"`
	// Type is how drafts called Format, with dashes.
	Type string `json:"subject_type"`

	Issuer      string      `json:"iss"`
	Subject     string      `json:"sub"`
	ID          string      `json:"id"`
	Email       string      `json:"email"`
	TokenID     string      `json:"jti"`
	Identifiers []subjectID `json:"identifiers"`
	User        *subjectID  `json:"user"`
	Session     *subjectID  `json:"session"`
}

// target is whom or what a signal is about. Issuers narrow it; none means
// whichever issuer.
type target struct {
	user, session, tokenID string
	issuers                []string
}

// Errors of subjects.
var (
	// errSubject: the identifier is of a format that we do not know, or lacks its
	// members.
	errSubject = errors.New("unsupported or incomplete subject identifier")
	// errForeign: the subject is another issuer's.
	errForeign = errors.New("not an issuer that the sender speaks for")
)

func (s *subjectID) format() string {
	if s.Format != "" {
		return s.Format
	}
	return strings.ReplaceAll(s.Type, "-", "_")
}

// resolver turns subject identifiers into targets.
type resolver struct {
	// issuers are those that the sender speaks for; nil for all.
	issuers []string
	// alias is an issuer that stands for all of issuers: the sender itself, where
	// it issues no access tokens.
	alias string
	// emailIsUser takes e-mail addresses for users.
	emailIsUser bool
}

// resolve finds out whom an identifier means. depth bounds nesting.
func (r resolver) resolve(s *subjectID, depth int) (target, error) {
	if s == nil || depth > 2 {
		return target{}, errSubject
	}
	switch s.format() {
	case "iss_sub":
		return r.of(s.Issuer, target{user: s.Subject}, s.Subject)
	case "jwt_id":
		return r.of(s.Issuer, target{tokenID: s.TokenID}, s.TokenID)
	case "opaque":
		return r.narrowed(target{user: s.ID}, s.ID)
	case "email":
		if !r.emailIsUser {
			return target{}, fmt.Errorf("%w: an e-mail address is no user here", errSubject)
		}
		return r.narrowed(target{user: s.Email}, s.Email)
	case "aliases":
		for i := range s.Identifiers {
			if t, err := r.resolve(&s.Identifiers[i], depth+1); err == nil {
				return t, nil
			}
		}
		return target{}, errSubject
	case "complex", "":
		return r.complex(s, depth)
	}
	return target{}, errSubject
}

func (r resolver) of(issuer string, t target, name string) (target, error) {
	if issuer == "" || name == "" {
		return target{}, errSubject
	}
	if issuer == r.alias {
		return r.narrowed(t, name)
	}
	if r.issuers != nil && !slices.Contains(r.issuers, issuer) {
		return target{}, errForeign
	}
	t.issuers = []string{issuer}
	return t, nil
}

func (r resolver) narrowed(t target, name string) (target, error) {
	if name == "" {
		return target{}, errSubject
	}
	t.issuers = r.issuers
	return t, nil
}

// complex is a session of a user, either of which may be left out.
func (r resolver) complex(s *subjectID, depth int) (target, error) {
	if s.User == nil && s.Session == nil {
		return target{}, errSubject
	}
	t := target{issuers: r.issuers}
	if s.User != nil {
		user, err := r.resolve(s.User, depth+1)
		if err != nil {
			return target{}, err
		}
		t = user
	}
	if s.Session == nil {
		return t, nil
	}
	of, err := r.resolve(s.Session, depth+1)
	if err != nil {
		return target{}, err
	}
	t.session = of.user // an opaque identifier of a session reads like one of a user
	return t, nil
}

func (t target) String() string {
	of := t.user
	switch {
	case t.session != "" && t.user != "":
		of = sessionOf(t.session, t.user)
	case t.session != "":
		of = "session " + t.session
	case t.tokenID != "":
		of = "token " + t.tokenID
	}
	return describe(of, strings.Join(t.issuers, ", "))
}

// killer ends what signals name.
type killer struct {
	revoker Revoker
	manager SessionManager
	now     func() time.Time
}

// settled is how old the time of an event must be to be taken for the not-before
// mark. With a younger one, or none, the mark is now, and lets in a login of the
// same second that carries a new version.
const settled = 2 * time.Second

// kill ends the target as of a time: what began later stays. Sessions are
// registered ones; keepSessions leaves them, and kills tokens alone.
func (k *killer) kill(ctx context.Context, t target, at time.Time, keepSessions bool) error {
	if !at.Before(k.now().Add(-settled)) {
		at = time.Time{}
	}
	for _, r := range k.revocations(t, at) {
		if _, err := k.revoker.Revoke(ctx, r); err != nil {
			return err
		}
	}
	switch {
	case keepSessions || t.tokenID != "":
		return nil
	case t.user == "":
		return k.endWhosever(ctx, t)
	}
	all, err := k.manager.List(ctx, t.user)
	if err != nil {
		return err
	}
	for _, s := range all {
		// A session that names no issuer may be any one's.
		ours := t.issuers == nil || s.Issuer == "" || slices.Contains(t.issuers, s.Issuer)
		named := t.session == s.ID || t.session == "" && (at.IsZero() || !s.Created.After(at))
		if !ours || !named {
			continue
		}
		if err := k.manager.End(ctx, t.user, s.Ref); err != nil && !errors.Is(err, session.ErrNotFound) {
			return err
		}
	}
	return nil
}

// endWhosever ends the session in the registry where only its id was told.
func (k *killer) endWhosever(ctx context.Context, t target) error {
	issuers := t.issuers
	if issuers == nil {
		issuers = []string{""}
	}
	for _, issuer := range issuers {
		if _, err := k.manager.EndWhosever(ctx, session.Ref{Issuer: issuer, ID: t.session}); err != nil {
			return err
		}
	}
	return nil
}

func (k *killer) revocations(t target, at time.Time) []revocation.Revocation {
	r := revocation.Revocation{Kind: revocation.KindUser, ID: t.user}
	switch {
	case t.tokenID != "":
		r = revocation.Revocation{Kind: revocation.KindTokenID, ID: t.tokenID}
	case t.session != "":
		r = revocation.Revocation{Kind: revocation.KindSession, ID: t.session}
	default:
		r.NotBefore = at
	}
	if t.issuers == nil {
		return []revocation.Revocation{r}
	}
	all := make([]revocation.Revocation, len(t.issuers))
	for i, issuer := range t.issuers {
		all[i] = r
		all[i].Issuer = issuer
	}
	return all
}
