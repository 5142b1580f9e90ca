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

// api is what the HTTP API is made of. Every field is required.
type api struct {
	conn        *redisconn.Conn
	gate        *gate.Gate
	reader      account.RequestReader
	watch       *anomaly.Watch
	verifier    *authn.Verifier
	revocations *revocation.Store
	sessions    *session.Manager
	flags       *flag.Store
	watcher     *flag.Watcher
	// experiments are a part of the API once there is a trail to write to.
	experiments func(account.Auditor) account.Part
}

// handler builds the API.
func (a *api) handler(c Config, rt *app.Runtime) (http.Handler, error) {
	auth, err := credential.New(c.Management.Clients)
	if err != nil {
		return nil, err
	}
	tokens, err := newTokenCallers(c, rt, a.revocations)
	if err != nil {
		return nil, err
	}
	if tokens != nil {
		auth = auth.WithTokens(tokens)
	}
	app.OnConfig(rt, "management clients", func(next Config) (func(), error) { return auth.Prepare(next.Management.Clients) })
	statements, err := newStatements(c, rt, a.verifier)
	if err != nil {
		return nil, err
	}
	document, err := account.NewOpenAPI()
	if err != nil {
		return nil, err
	}
	auditor := account.NewTrail(a.conn, c.Management.Audit, account.LogAuditor{Log: rt.Log}, time.Now)
	self := &account.Self{Verifier: a.verifier, Checker: a.revocations, Revoker: a.revocations, Manager: a.sessions, Auditor: auditor, Now: time.Now}
	return account.New(auth,
		&account.Tokens{
			Revoker: a.revocations, Checker: a.revocations, Inspector: inspector{a.verifier, time.Now}, Sessions: a.sessions,
			Auditor: auditor, Now: time.Now,
		},
		&account.Sessions{Manager: a.sessions, Issuers: a.verifier, Auditor: auditor, Now: time.Now},
		self,
		&account.OAuth{
			Revoker: a.revocations, Checker: a.revocations, Inspector: a.verifier, Leeway: a.verifier.Leeway(),
			Auditor: auditor, Now: time.Now,
		},
		&account.Signals{
			Config: c.Signals, Verifier: statements, Replays: account.NewRedisReplays(a.conn),
			Revoker: a.revocations, Manager: a.sessions, Auditor: auditor, Now: time.Now,
		},
		auditor, document,
		&account.Anomaly{Watch: a.watch, Self: self, Auditor: auditor, Now: time.Now},
		&account.Explain{Explainer: a.gate, Reader: a.reader},
		account.NewFlags(a.flags, a.watcher, auditor, time.Now),
		account.NewOFREP(a.watcher, time.Now),
		a.experiments(auditor),
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
