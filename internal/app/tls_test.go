package app

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/config"
	"github.com/tollgate-proxy/tollgate/internal/polltest"
)

// authority signs certificates for tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{}
	a.cert, a.key = a.issue(t, "authority")
	return a
}

// issue makes a certificate, of the authority itself the first time.
func (a *authority) issue(t *testing.T, name string) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (a *authority) writePair(t *testing.T, dir, name string) {
	t.Helper()
	cert, key := a.issue(t, name)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, filepath.Join(dir, "key.pem"), "PRIVATE KEY", der)
	writePEM(t, filepath.Join(dir, "cert.pem"), "CERTIFICATE", cert.Raw)
}

func TestServeHTTPS(t *testing.T) {
	ca, stranger, dir := newAuthority(t), newAuthority(t), t.TempDir()
	ca.writePair(t, dir, "one.test")
	writePEM(t, filepath.Join(dir, "ca.pem"), "CERTIFICATE", ca.cert.Raw)
	path := func(name string) config.Path { return config.Path(filepath.Join(dir, name)) }
	whoCalls := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := "nobody"
		if len(r.TLS.VerifiedChains) > 0 {
			name = r.TLS.PeerCertificates[0].DNSNames[0]
		}
		_, _ = io.WriteString(w, name)
	})
	r := launch(t, "greet: x", func(_ context.Context, _ sample, rt *Runtime) error {
		return rt.ServeHTTPS("http", "127.0.0.1:0", TLSConfig{path("cert.pem"), path("key.pem"), path("ca.pem")}, whoCalls)
	})
	defer func() {
		r.stop()
		<-r.code
	}()
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	call := func(server string, by *authority, client string) (string, error) {
		c := &tls.Config{RootCAs: roots, ServerName: server, MinVersion: tls.VersionTLS12}
		if by != nil {
			cert, key := by.issue(t, client)
			c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				return &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}, nil
			}
		}
		transport := &http.Transport{TLSClientConfig: c}
		defer transport.CloseIdleConnections()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+r.rt.Addr("http"), nil)
		if err != nil {
			return "", err
		}
		res, err := (&http.Client{Transport: transport}).Do(req)
		if err != nil {
			return "", err
		}
		defer func() { _ = res.Body.Close() }()
		body, err := io.ReadAll(res.Body)
		return string(body), err
	}
	if got, err := call("one.test", nil, ""); got != "nobody" || err != nil {
		t.Errorf("without a certificate: %q, %v", got, err)
	}
	if got, err := call("one.test", ca, "login.test"); got != "login.test" || err != nil {
		t.Errorf("with a certificate: %q, %v", got, err)
	}
	if got, err := call("one.test", stranger, "login.test"); err == nil {
		t.Errorf("with a certificate of somebody else: %q", got)
	}
	ca.writePair(t, dir, "two.test")
	polltest.Until(t, "the new certificate", func() bool {
		got, err := call("two.test", nil, "")
		return err == nil && got == "nobody"
	})
}

func TestTLSConfig(t *testing.T) {
	for text, want := range map[string]string{
		"cert_file: c":                          "cert_file",
		"client_ca_file: c":                     "client_ca_file",
		"{}":                                    "",
		"{cert_file: c, key_file: k}":           "",
		"{key_file: k}":                         "cert_file",
		"{cert_file: '', client_ca_file: 'ca'}": "client_ca_file",
	} {
		if _, err := config.Decode("x.yaml", []byte(text), TLSConfig{}); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
	dir := t.TempDir()
	newAuthority(t).writePair(t, dir, "x")
	cert, key := config.Path(filepath.Join(dir, "cert.pem")), config.Path(filepath.Join(dir, "key.pem"))
	for _, c := range []TLSConfig{{cert, cert, ""}, {"none", key, ""}, {cert, key, "none"}, {cert, key, key}} {
		if _, err := c.load(); err == nil {
			t.Errorf("%+v is loaded", c)
		}
	}
}
