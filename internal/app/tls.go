package app

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"sync/atomic"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/metric/noop"

	"github.com/tollgate-proxy/tollgate/internal/config"
)

// TLSConfig is the section "tls" of an HTTP listener. Its zero value is plain
// HTTP.
type TLSConfig struct {
	CertFile     config.Path `yaml:"cert_file" doc:"PEM file of the server's certificate and its intermediates, with key_file; empty serves plain HTTP."`
	KeyFile      config.Path `yaml:"key_file" doc:"PEM file of the certificate's key."`
	ClientCAFile config.Path `yaml:"client_ca_file" doc:"PEM file of the authorities that client certificates are verified by; empty asks for none."`
}

// Validate checks the section. Whether the files can be read is found when the
// listener is made.
func (c TLSConfig) Validate(r *config.Report) {
	if (c.CertFile == "") != (c.KeyFile == "") {
		r.Fault("cert_file", c.CertFile, "set together with key_file")
	}
	if c.ClientCAFile != "" && c.CertFile == "" {
		r.Fault("client_ca_file", c.ClientCAFile, "nothing without cert_file: client certificates need TLS")
	}
}

// load reads the files. A client may come without a certificate; one that it
// brings must verify.
func (c TLSConfig) load() (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(string(c.CertFile), string(c.KeyFile))
	if err != nil {
		return nil, fmt.Errorf("tls.cert_file: %w", err)
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}}
	if c.ClientCAFile == "" {
		return t, nil
	}
	pem, err := os.ReadFile(string(c.ClientCAFile))
	if err != nil {
		return nil, fmt.Errorf("tls.client_ca_file: %w", err)
	}
	t.ClientCAs = x509.NewCertPool()
	if !t.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("tls.client_ca_file: %s holds no certificate", c.ClientCAFile)
	}
	t.ClientAuth = tls.VerifyClientCertIfGiven
	return t, nil
}

// ServeHTTPS is ServeHTTP over TLS (1.2 or later, HTTP/1.1), where the
// configuration names a certificate; plain HTTP where it does not. Certificate,
// key and authorities are read again when a file changes; connections that are
// open keep theirs.
func (rt *Runtime) ServeHTTPS(name, listen string, c TLSConfig, h http.Handler) error {
	if c.CertFile == "" {
		return rt.ServeHTTP(name, listen, h)
	}
	first, err := c.load()
	if err != nil {
		return err
	}
	var current atomic.Pointer[tls.Config]
	current.Store(first)
	rt.OnReload(name+" certificate", func(context.Context) (func(), error) {
		next, err := c.load()
		if err != nil {
			return nil, err
		}
		return func() { current.Store(next) }, nil
	})
	for _, file := range []config.Path{c.CertFile, c.KeyFile, c.ClientCAFile} {
		if file != "" {
			rt.WatchFile(string(file))
		}
	}
	l, err := Listen(listen)
	if err != nil {
		return err
	}
	h = rt.recoverHTTP(name, h)
	if rt.Tracing {
		h = otelhttp.NewHandler(h, name, otelhttp.WithTracerProvider(rt.Tracer), otelhttp.WithPropagators(rt.Propagator), otelhttp.WithMeterProvider(noop.NewMeterProvider()))
	}
	rt.serveHTTP(name, tls.NewListener(l, &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return current.Load(), nil
		},
	}), h)
	return nil
}
