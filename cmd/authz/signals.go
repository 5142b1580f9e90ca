package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/account"
	"github.com/tollgate-proxy/tollgate/internal/app"
	"github.com/tollgate-proxy/tollgate/internal/authn"
	"github.com/tollgate-proxy/tollgate/internal/config"
)

// checkSignals checks that the issuers which signals name are those of tokens,
// letter by letter: one that is not would end nothing, and nobody would notice.
func checkSignals(c Config, r *config.Report) {
	known := map[string]bool{c.Tokens.Introspection.Issuer: true, authn.DevelopmentIssuerURL: c.Mode == development}
	for _, ic := range c.Tokens.Issuers {
		known[ic.Issuer] = true
	}
	delete(known, "")
	of := func(key string, issuers []string) {
		for i, issuer := range issuers {
			if !known[issuer] {
				r.Fault(fmt.Sprintf("%s.issuers[%d]", key, i), issuer, "the issuer of one of tokens.issuers, or of tokens.introspection")
			}
		}
	}
	for i, s := range c.Signals.SpeaksFor {
		key := fmt.Sprintf("signals.speaks_for[%d]", i)
		if !known[s.Issuer] {
			r.Fault(key+".issuer", s.Issuer, "the issuer of one of tokens.issuers; one that issues no access tokens belongs under transmitters")
		}
		of(key, s.Issuers)
	}
	for i, t := range c.Signals.Transmitters {
		key := fmt.Sprintf("signals.transmitters[%d]", i)
		if known[t.Issuer] {
			r.Fault(key+".issuer", t.Issuer, "an issuer of no access tokens; one of tokens.issuers needs no entry, or one under speaks_for")
		}
		of(key, t.Issuers)
	}
}

// newStatements makes what verifies the statements of the issuers of tokens, and
// of the transmitters by keys of their own.
func newStatements(c Config, rt *app.Runtime, tokens *authn.Verifier) (account.StatementVerifier, error) {
	if len(c.Signals.Transmitters) == 0 {
		return tokens, nil
	}
	own := authn.Default()
	own.Leeway, own.MaxTokenSize, own.JWKS, own.SignatureCache = c.Tokens.Leeway, c.Tokens.MaxTokenSize, c.Tokens.JWKS, 0
	for _, t := range c.Signals.Transmitters {
		own.Issuers = append(own.Issuers, t.IssuerConfig())
	}
	transmitters, err := authn.New(own, authn.Options{Log: rt.Log, Now: time.Now})
	if err != nil {
		return nil, fmt.Errorf("signals.transmitters: %w", err)
	}
	rt.Background("transmitter keys", transmitters.Run)
	rt.OnReload("transmitter keys", transmitters.PrepareReload)
	for _, file := range transmitters.Files() {
		rt.WatchFile(file)
	}
	return statements{transmitters, tokens}, nil
}

// statements are verified by the first that knows their issuer.
type statements []*authn.Verifier

// VerifyStatement implements account.StatementVerifier.
func (s statements) VerifyStatement(token string, rules authn.StatementRules, now time.Time) (*authn.Statement, error) {
	err := authn.ErrIssuer
	for _, v := range s {
		var st *authn.Statement
		if st, err = v.VerifyStatement(token, rules, now); err == nil || !errors.Is(err, authn.ErrIssuer) {
			return st, err
		}
	}
	return nil, err
}
