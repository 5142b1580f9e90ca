package authn

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"pgregory.net/rapid"
)

// proving is a verifier with proofs of a configuration, and requests to it.
type proving struct {
	*Verifier
	t     *testing.T
	token string
}

func newProving(t *testing.T, shared Replays, change func(*ProofsConfig)) proving {
	t.Helper()
	cfg := Default()
	cfg.Issuers = []IssuerConfig{issuerConfig(t, "ES256")}
	change(&cfg.Proofs)
	v, err := New(cfg, Options{Replays: shared})
	if err != nil {
		t.Fatal(err)
	}
	return proving{v, t, sign(t, "ES256", p256(), nil, claims(object{"cnf": object{"jkt": thumbprint(t, ed())}}))}
}

// request has a proof of a moment with a nonce.
func (p proving) request(at time.Time, nonce any) *Request {
	p.t.Helper()
	proof := prove(p.t, "EdDSA", ed(), p.token, nil, object{"iat": at.Unix(), "nonce": nonce})
	return &Request{Authorization: "DPoP " + p.token, Proof: proof, Method: "POST", Scheme: "https", Host: "api.test", Path: "/things"}
}

func (p proving) ask(r *Request, now time.Time, code string) {
	p.t.Helper()
	got, err := p.Authenticate(p.t.Context(), r, now)
	wantCode(p.t, "proof", got, err, code)
}

func nonceSecrets(t *testing.T, secrets ...string) NonceConfig {
	t.Helper()
	return NonceConfig{SecretFile: writeFile(t, []byte(strings.Join(secrets, "\n")+"\n")), MaxAge: 5 * time.Minute}
}

// Who asks what would become of a request takes nothing from who sends it.
func TestDryRequests(t *testing.T) {
	v := newProving(t, nil, func(*ProofsConfig) {})
	r := v.request(testNow, nil)
	dry := *r
	dry.Dry = true
	for range 2 {
		v.ask(&dry, testNow, "")
	}
	v.ask(r, testNow, "")
	v.ask(r, testNow, CodeInvalid)
	dry.Method = "GET"
	v.ask(&dry, testNow, CodeInvalid)
	if n := testutil.ToFloat64(v.metrics.accepted); n != 1 {
		t.Errorf("%v requests counted as accepted, want 1", n)
	}
}

func TestNonces(t *testing.T) {
	one, two := strings.Repeat("1", 32), strings.Repeat("2", 32)
	v := newProving(t, nil, func(c *ProofsConfig) { c.Nonce = nonceSecrets(t, one) })

	first := v.request(testNow, nil)
	v.ask(first, testNow, CodeNonce)
	nonce := first.FreshNonce
	if nonce == "" {
		t.Fatal("no nonce to try again with")
	}
	again := v.request(testNow, nonce)
	v.ask(again, testNow, "")
	if again.FreshNonce != "" {
		t.Error("a nonce is handed out with every answer")
	}
	again.FreshNonce = ""
	v.ask(again, testNow, CodeInvalid) // a nonce makes no proof good twice

	for _, c := range []struct {
		name  string
		nonce any
		after time.Duration
		code  string
		fresh bool
	}{
		{"young", nonce, 150 * time.Second, "", false},
		{"past half its time", nonce, 151 * time.Second, "", true},
		{"at its end", nonce, 5 * time.Minute, "", true},
		{"old", nonce, 5*time.Minute + time.Second, CodeNonce, true},
		{"of a clock that is ahead", nonce, -proofAhead, "", false},
		{"of the future", nonce, -proofAhead - time.Second, CodeNonce, true},
		{"absent", nil, 0, CodeNonce, true},
		{"empty", "", 0, CodeNonce, true},
		{"a number", 1, 0, CodeNonce, true},
		{"short", nonce[:len(nonce)-2], 0, CodeNonce, true},
		{"padded", nonce + "=", 0, CodeNonce, true},
		{"invented", base64.RawURLEncoding.EncodeToString(make([]byte, 24)), 0, CodeNonce, true},
	} {
		now := testNow.Add(c.after)
		r := v.request(now, c.nonce)
		got, err := v.Authenticate(t.Context(), r, now)
		wantCode(t, c.name, got, err, c.code)
		if (r.FreshNonce != "") != c.fresh {
			t.Errorf("%s: fresh nonce %q", c.name, r.FreshNonce)
		}
		if c.fresh {
			v.ask(v.request(now, r.FreshNonce), now, "")
		}
	}
	// What fails otherwise is told nothing of nonces.
	wrong := v.request(testNow, nil)
	wrong.Method = "GET"
	v.ask(wrong, testNow, CodeInvalid)
	if wrong.FreshNonce != "" {
		t.Error("a nonce for a proof that is wrong")
	}

	// Another process with the secret takes it; one with another does not, until it
	// has both, and makes nonces by the first.
	peer := newProving(t, nil, func(c *ProofsConfig) { c.Nonce = nonceSecrets(t, one) })
	peer.ask(peer.request(testNow, nonce), testNow, "")
	stranger := newProving(t, nil, func(c *ProofsConfig) { c.Nonce = nonceSecrets(t, two) })
	stranger.ask(stranger.request(testNow, nonce), testNow, CodeNonce)
	file := stranger.Files()
	if err := os.WriteFile(file[len(file)-1], []byte(two+"\r\n\n"+one), 0o600); err != nil {
		t.Fatal(err)
	}
	reload(t, stranger.Verifier)
	stranger.ask(stranger.request(testNow, nonce), testNow, "")
	rotated := stranger.request(testNow, nil)
	stranger.ask(rotated, testNow, CodeNonce)
	peer.ask(peer.request(testNow, rotated.FreshNonce), testNow, CodeNonce)

	// Secrets that are none are refused, and change nothing.
	for _, text := range []string{"", "\n\n", "short\n", one + "\nshort"} {
		c := Default()
		c.Proofs.Nonce.SecretFile = writeFile(t, []byte(text))
		if _, err := New(c, Options{}); err == nil {
			t.Errorf("%q: accepted", text)
		}
	}
	if err := os.Remove(file[len(file)-1]); err != nil {
		t.Fatal(err)
	}
	if _, err := stranger.PrepareReload(t.Context()); err == nil {
		t.Error("reloaded without the file")
	}
	stranger.ask(stranger.request(testNow, nonce), testNow, "")
}

func reload(t *testing.T, v *Verifier) {
	t.Helper()
	commit, err := v.PrepareReload(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	commit()
}

// Nothing but what fresh made is a nonce.
func TestNoncesAreNotForged(t *testing.T) {
	n := must(newNonces(nonceSecrets(t, strings.Repeat("x", 32))))
	good := must(base64.RawURLEncoding.DecodeString(n.fresh(testNow)))
	rapid.Check(t, func(t *rapid.T) {
		raw := append([]byte(nil), good...)
		at := rapid.IntRange(0, len(raw)-1).Draw(t, "byte")
		raw[at] ^= rapid.ByteRange(1, 255).Draw(t, "change")
		if _, ok := n.made(base64.RawURLEncoding.EncodeToString(raw)); ok {
			t.Fatalf("%x is taken", raw)
		}
	})
}

// board is a Replays in memory, which can be away.
type board struct {
	mu   sync.Mutex
	seen map[string]bool
	told int
	err  error
}

func (b *board) First(_ context.Context, keep time.Duration, id string) (bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.told++
	if keep < time.Minute {
		return false, errors.New("forgotten while the proof is good")
	}
	if b.err != nil {
		return false, b.err
	}
	if b.seen == nil {
		b.seen = map[string]bool{}
	}
	first := !b.seen[id]
	b.seen[id] = true
	return first, nil
}

// Where proofs are shared, one is good once for all processes, however many are
// asked at once.
func TestProofsAreShared(t *testing.T) {
	b := &board{}
	share := func(c *ProofsConfig) { c.Shared = true }
	v := []proving{newProving(t, b, share), newProving(t, b, share), newProving(t, b, share)}
	r := v[0].request(testNow, nil)
	var good sync.Map
	var wg sync.WaitGroup
	for i := range 30 {
		wg.Go(func() {
			request := *r
			if _, err := v[i%3].Authenticate(context.Background(), &request, testNow); err == nil {
				good.Store(i, true)
			}
		})
	}
	wg.Wait()
	n := 0
	good.Range(func(any, any) bool { n++; return true })
	if n != 1 || b.told != 3 {
		t.Errorf("the proof was good %d times; shared memory was asked %d times, want once for each process", n, b.told)
	}
	b.err = errors.New("away")
	v[0].ask(v[0].request(testNow, nil), testNow, CodeUnavailable)
	c := Default()
	c.Proofs.Shared = true
	if _, err := New(c, Options{}); err == nil {
		t.Error("shared with nobody")
	}
}

// Opaque tokens may be bound too: the introspection server says to what.
func TestBoundOpaqueTokens(t *testing.T) {
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der := must(x509.CreateCertificate(rand.Reader, template, template, p256().Public(), p256()))
	sum := sha256.Sum256(der)
	certificate := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	x5t, jkt := base64.RawURLEncoding.EncodeToString(sum[:]), thumbprint(t, ed())
	synctest.Test(t, func(t *testing.T) {
		v, s, _ := introspecting(t, nil)
		proof := func(token string) string {
			return prove(t, "EdDSA", ed(), token, nil, object{"iat": time.Now().Unix()})
		}
		request := func(scheme, token string) *Request {
			return &Request{Authorization: scheme + " " + token, Method: "POST", Scheme: "https", Host: "api.test", Path: "/things"}
		}
		try := func(name string, r *Request, code string) *Principal {
			t.Helper()
			p, err := v.Authenticate(t.Context(), r, time.Now())
			wantCode(t, name, p, err, code)
			return p
		}
		s.set(active(object{"cnf": object{"jkt": jkt}, "token_type": "DPoP"}))
		try("as plain bearer", request("Bearer", "key"), CodeInvalid)
		try("without a proof", request("DPoP", "key"), CodeInvalid)
		r := request("DPoP", "key")
		r.Proof = proof("another")
		try("with a proof for another token", r, CodeInvalid)
		r.Proof = proof("key")
		if p := try("with its proof", r, ""); p.KeyThumbprint != jkt || p.CertificateThumbprint != "" {
			t.Errorf("%+v", p)
		}
		if p, err := v.Inspect(t.Context(), "key", time.Now()); err != nil || p.KeyThumbprint != jkt {
			t.Errorf("inspected: %+v, %v", p, err)
		}

		if p, err := v.VerifyBearer(t.Context(), "key", time.Now()); err == nil {
			t.Errorf("as plain bearer: %+v", p)
		}
		s.set(active())
		if p, err := v.VerifyBearer(t.Context(), "unbound", time.Now()); err != nil || p.Subject != "alice" {
			t.Errorf("unbound: %+v, %v", p, err)
		}

		s.set(active(object{"cnf": object{"x5t#S256": x5t}}))
		try("without the certificate", request("Bearer", "certificate"), CodeInvalid)
		r = request("Bearer", "certificate")
		r.Certificate = certificate
		if p := try("with the certificate", r, ""); p.CertificateThumbprint != x5t {
			t.Errorf("%+v", p)
		}

		s.set(active(object{"token_type": "dpop"}))
		try("of type DPoP, bound to nothing", request("Bearer", "type"), CodeInvalid)
		s.set(active(object{"cnf": object{"kid": "x"}}))
		try("bound in another way", request("Bearer", "other"), CodeInvalid)
	})
}
