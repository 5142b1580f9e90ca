package revocation

import (
	"fmt"
	"time"
)

const (
	// maxVersion is the largest integer that Redis's Lua holds exactly.
	maxVersion = 1<<53 - 1
	// maxName bounds issuer and ID, in bytes.
	maxName = 1024
	// maxAhead bounds how far a not-before mark may lie in the future: clocks differ, but a mark far ahead would lock out
	// everyone who logs in until then.
	maxAhead = time.Minute
)

// plan turns a revocation into the change that puts it in force at now, or says what is wrong with it.
func (o *Options) plan(r *Revocation, now time.Time) (change, error) {
	if err := r.validate(now); err != nil {
		return change{}, err
	}
	c := change{print: r.print(), isMark: r.Kind.IsMark()}
	if !c.isMark {
		c.entry = o.entryExpiry(r.ExpiresAt, now).Unix()
		return c, nil
	}
	c.mark = mark{tie: tieNone, version: r.Version}
	switch {
	case r.Version > 0:
		c.mark.tie = tieVersion
	case r.Kind == KindUser && r.NotBefore.IsZero():
		c.mark.tie = now.UnixMilli()%1000 + 1
	}
	at := r.NotBefore
	if at.IsZero() {
		at = now
	}
	c.mark.notBefore = at.Unix()
	c.mark.expires = ceil(at.Add(o.MaxLifetime + o.Leeway)).Unix()
	return c, nil
}

// entryExpiry is when an entry may be forgotten: no token that is accepted at now lives longer than the maximum.
func (o *Options) entryExpiry(expiresAt, now time.Time) time.Time {
	last := now.Add(o.MaxLifetime)
	if !expiresAt.IsZero() && expiresAt.Before(last) {
		last = expiresAt
	}
	if last.Before(now) {
		last = now
	}
	return ceil(last.Add(o.Leeway))
}

func ceil(t time.Time) time.Time {
	return t.Add(time.Second - time.Nanosecond).Truncate(time.Second)
}

func (r *Revocation) validate(now time.Time) error {
	fault := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s: %s", ErrInvalid, r.Kind, fmt.Sprintf(format, args...))
	}
	needsID, needsIssuer := true, false
	switch r.Kind {
	case KindToken:
		needsID = false
		if r.Digest == ([32]byte{}) {
			return fault("digest is missing")
		}
	case KindTokenID:
		needsIssuer = true
	case KindSession, KindUser, KindClient:
	case KindIssuer:
		needsID, needsIssuer = false, true
	case KindEverything:
		needsID = false
		if r.Issuer != "" {
			return fault("takes no issuer")
		}
	default:
		return fault("unknown kind")
	}
	switch {
	case r.Kind != KindToken && r.Digest != ([32]byte{}):
		return fault("takes no digest")
	case needsID && r.ID == "":
		return fault("id is missing")
	case !needsID && r.ID != "":
		return fault("takes no id")
	case needsIssuer && r.Issuer == "":
		return fault("issuer is missing")
	case len(r.ID) > maxName || len(r.Issuer) > maxName:
		return fault("id or issuer is longer than %d bytes", maxName)
	case r.Version < 0 || r.Version > maxVersion:
		return fault("version %d: want from 0 to %d", r.Version, int64(maxVersion))
	case r.Version > 0 && r.Kind != KindUser:
		return fault("takes no version")
	case !r.NotBefore.IsZero() && !r.Kind.IsMark():
		return fault("takes no not-before time")
	case r.NotBefore.After(now.Add(maxAhead)):
		return fault("not-before time %s is more than %s ahead", r.NotBefore.UTC().Format(time.RFC3339), maxAhead)
	case !r.NotBefore.IsZero() && r.NotBefore.Unix() < 0:
		return fault("not-before time %s is before 1970", r.NotBefore.UTC().Format(time.RFC3339))
	case !r.ExpiresAt.IsZero() && r.Kind.IsMark():
		return fault("takes no expiry")
	}
	return nil
}
