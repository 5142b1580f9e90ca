package main

import (
	"net/http"

	"github.com/tollgate-proxy/tollgate/internal/account"
	"github.com/tollgate-proxy/tollgate/internal/app"
	"github.com/tollgate-proxy/tollgate/internal/authn"
	"github.com/tollgate-proxy/tollgate/internal/credential"
	"github.com/tollgate-proxy/tollgate/internal/flag"
	"github.com/tollgate-proxy/tollgate/internal/revocation"
)

// newAPI builds the HTTP API.
func newAPI(c Config, rt *app.Runtime, verifier *authn.Verifier, store *revocation.Store, flags *flag.Store, watcher *flag.Watcher) (http.Handler, error) {
	auth, err := credential.New(c.Management.Clients)
	if err != nil {
		return nil, err
	}
	_, _, _, _, _ = rt, verifier, store, flags, watcher
	return account.New(auth), nil
}
