package authn

import (
	"context"
	"fmt"
	"slices"
)

// Files returns the files of keys and secrets, sorted, whose change asks for a reload.
func (v *Verifier) Files() []string {
	var files []string
	for _, is := range v.issuers {
		if name := is.cfg.Keys.file(); name != "" {
			files = append(files, name)
		}
	}
	if v.opaque != nil {
		files = append(files, string(v.opaque.cfg.SecretFile))
	}
	if v.proofs.nonces != nil {
		files = append(files, v.proofs.nonces.file)
	}
	slices.Sort(files)
	return files
}

// PrepareReload reads those files again. commit puts all that was read into
// use: keys that are no longer there are refused at once, also for tokens seen
// before, and the signatures of the others stay remembered. With an error
// nothing changes.
func (v *Verifier) PrepareReload(context.Context) (commit func(), err error) {
	next := map[*issuer][]*key{}
	for _, is := range v.issuers {
		if is.cfg.Keys.file() == "" {
			continue
		}
		keys, err := loadKeys(is.cfg, is.algorithms)
		if err != nil {
			return nil, fmt.Errorf("issuer %q: %w", is.name, err)
		}
		next[is] = keys
	}
	useSecret, useNonces := func() {}, func() {}
	if v.opaque != nil {
		if useSecret, err = v.opaque.readSecret(); err != nil {
			return nil, fmt.Errorf("introspection: %w", err)
		}
	}
	if n := v.proofs.nonces; n != nil {
		if useNonces, err = n.read(); err != nil {
			return nil, fmt.Errorf("proofs.nonce: %w", err)
		}
	}
	return func() {
		useSecret()
		useNonces()
		for is, keys := range next {
			is.use(keys)
		}
	}, nil
}

// use replaces the issuer's keys, and reports whether that changed anything.
// Only one goroutine may replace an issuer's keys at a time.
func (is *issuer) use(keys []*key) (changed bool) {
	old := is.keys.Load()
	if old == nil {
		is.keys.Store(&keySet{keys: keys})
		return true
	}
	next := old.replace(keys)
	if next == old {
		return false
	}
	is.keys.Store(next)
	old.retire(next)
	return true
}
