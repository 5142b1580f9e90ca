package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/account"
	"github.com/tollgate-proxy/tollgate/internal/anomaly"
	"github.com/tollgate-proxy/tollgate/internal/app"
	"github.com/tollgate-proxy/tollgate/internal/authn"
	"github.com/tollgate-proxy/tollgate/internal/credential"
	"github.com/tollgate-proxy/tollgate/internal/flag"
	"github.com/tollgate-proxy/tollgate/internal/gate"
	"github.com/tollgate-proxy/tollgate/internal/redisconn"
	"github.com/tollgate-proxy/tollgate/internal/revocation"
	"github.com/tollgate-proxy/tollgate/internal/session"
)

// newAPI builds the HTTP API.
func newAPI(c Config, rt *app.Runtime, conn *redisconn.Conn, g *gate.Gate, reader account.RequestReader, watch *anomaly.Watch, verifier *authn.Verifier, store *revocation.Store, sessions *session.Manager, flags *flag.Store, watcher *flag.Watcher, experiments func(account.Auditor) account.Part) (http.Handler, error) {
	auth, err := credential.New(c.Management.Clients)
	if err != nil {
		return nil, err
	}
	tokens, err := newTokenCallers(c, rt, store)
	if err != nil {
		return nil, err
	}
	if tokens != nil {
		auth = auth.WithTokens(tokens)
	}
	statements, err := newStatements(c, rt, verifier)
	if err != nil {
		return nil, err
	}
	document, err := account.NewOpenAPI()
	if err != nil {
		return nil, err
	}
	auditor := account.NewTrail(conn, c.Management.Audit, account.LogAuditor{Log: rt.Log}, time.Now)
	self := &account.Self{Verifier: verifier, Checker: store, Revoker: store, Manager: sessions, Auditor: auditor, Now: time.Now}
	return account.New(auth,
		&account.Tokens{Revoker: store, Checker: store, Inspector: inspector{verifier, time.Now}, Sessions: sessions, Auditor: auditor, Now: time.Now},
		&account.Sessions{Manager: sessions, Issuers: verifier, Auditor: auditor, Now: time.Now},
		self,
		&account.OAuth{Revoker: store, Checker: store, Inspector: verifier, Leeway: verifier.Leeway(), Auditor: auditor, Now: time.Now},
		&account.Signals{
			Config: c.Signals, Verifier: statements, Replays: account.NewRedisReplays(conn), Revoker: store, Manager: sessions,
			Auditor: auditor, Now: time.Now,
		},
		auditor, document,
		&account.Anomaly{Watch: watch, Self: self, Auditor: auditor, Now: time.Now},
		&account.Explain{Explainer: g, Reader: reader},
		account.NewFlags(flags, watcher, auditor, time.Now),
		account.NewOFREP(watcher, time.Now),
		experiments(auditor),
	), nil
}

// inspector verifies tokens for the API as the gate does.
type inspector struct {
	verifier *authn.Verifier
	now      func() time.Time
}

// Inspect implements account.TokenInspector.
func (i inspector) Inspect(token string) (revocation.Token, error) {
	ctx, cancel := context.WithTimeout(context.Background(), account.Timeout) // an opaque token may have to be asked about
	defer cancel()
	p, err := i.verifier.Inspect(ctx, token, i.now())
	if err != nil {
		var e *authn.Error
		if errors.As(err, &e) && e.Code == authn.CodeExpired {
			err = fmt.Errorf("%w: %w", account.ErrTokenExpired, err)
		}
		return revocation.Token{}, err
	}
	return gate.RevocationToken(p), nil
}
