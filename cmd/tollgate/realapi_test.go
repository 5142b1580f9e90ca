package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/account"
	"github.com/tollgate-proxy/tollgate/internal/credential"
	"github.com/tollgate-proxy/tollgate/internal/experiment"
	featureflag "github.com/tollgate-proxy/tollgate/internal/flag"
	"github.com/tollgate-proxy/tollgate/internal/redistest"
)

type noAudit struct{}

func (noAudit) Audit(context.Context, account.Event) {}

// decided is the flag that can be evaluated: nothing follows the store, so that
// is what it starts from.
const decided = `flags: {decided: {variants: {"on": true, "off": false}, defaultVariant: "off",
  targeting: {if: [{"==": [{var: plan}, 7]}, "on", null]}, tollgate: {users: [{variant: "on", keys: [ada]}], audience: {tiers: [premium]}}}}`

// realAPI serves authz's own API of flags and experiments over an embedded
// Redis, which holds nothing, and returns its address. The caller is desk.
func realAPI(t *testing.T) string {
	t.Helper()
	sum := sha256.Sum256([]byte(secret))
	auth, err := credential.New([]credential.Client{{Name: "desk", SecretSHA256: hex.EncodeToString(sum[:]), Roles: []string{credential.Operator}}})
	if err != nil {
		t.Fatal(err)
	}
	client, log := redistest.Client(t, redistest.Embedded(t)), slog.New(slog.DiscardHandler)
	now := func() time.Time { return time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC) }
	bootstrap, err := featureflag.Parse("decided", []byte(decided))
	if err != nil {
		t.Fatal(err)
	}
	flags := featureflag.NewStore(client, now)
	flagWatcher, err := featureflag.NewWatcher(featureflag.WatcherOptions{Store: flags, Bootstrap: bootstrap, Log: log, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	catalog := experiment.NewCatalog(client, now)
	watcher, err := experiment.NewWatcher(experiment.WatcherOptions{Catalog: catalog, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	api := httptest.NewServer(account.New(auth,
		account.NewFlags(flags, flagWatcher, noAudit{}, now),
		account.NewExperiments(account.ExperimentsOptions{
			Catalog: catalog, Store: experiment.NewStore(client), Watcher: watcher, Audit: noAudit{}, Now: now,
			Fits: func(*experiment.Definition) error { return nil },
		}),
	))
	t.Cleanup(api.Close)
	return api.URL
}
