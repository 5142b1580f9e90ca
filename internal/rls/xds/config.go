package xds

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/tollgate-proxy/tollgate/internal/config"
)

// Config is the section "xds": a management server that rules come from.
type Config struct {
	Server   string      `yaml:"server" doc:"host:port of an xDS management server whose RateLimitConfig resources are added to the rule files; empty asks none."`
	Node     string      `yaml:"node" doc:"Node id that the server knows this process by."`
	TLS      bool        `yaml:"tls" doc:"Use TLS."`
	CAFile   config.Path `yaml:"ca_file" doc:"PEM file of the authorities to trust instead of the system's."`
	CertFile config.Path `yaml:"cert_file" doc:"PEM file of the client certificate, with key_file."`
	KeyFile  config.Path `yaml:"key_file" doc:"PEM file of the client certificate's key."`
}

// Default is the section where nothing is set.
func Default() Config { return Config{Node: "tollgate-ratelimit"} }

// Validate checks the section. Whether the files can be read is found when the
// client is made.
func (c Config) Validate(r *config.Report) {
	if c.Server != "" {
		if _, port, err := net.SplitHostPort(c.Server); err != nil || port == "" {
			r.Fault("server", c.Server, "host:port, or empty")
		}
		if c.Node == "" {
			r.Fault("node", nil, "the id that the server knows this process by")
		}
	}
	if !c.TLS && (c.CAFile != "" || c.CertFile != "" || c.KeyFile != "") {
		r.Fault("tls", c.TLS, "true where ca_file, cert_file or key_file is set")
	}
	if (c.CertFile == "") != (c.KeyFile == "") {
		r.Fault("cert_file", c.CertFile, "set together with key_file")
	}
}

// credentials reads the files.
func (c Config) credentials() (credentials.TransportCredentials, error) {
	if !c.TLS {
		return insecure.NewCredentials(), nil
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CAFile != "" {
		pem, err := os.ReadFile(string(c.CAFile))
		if err != nil {
			return nil, fmt.Errorf("xds authorities: %w", err)
		}
		if t.RootCAs = x509.NewCertPool(); !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("xds authorities: %s holds no certificate", c.CAFile)
		}
	}
	if c.CertFile != "" {
		cert, err := tls.LoadX509KeyPair(string(c.CertFile), string(c.KeyFile))
		if err != nil {
			return nil, fmt.Errorf("xds client certificate: %w", err)
		}
		t.Certificates = []tls.Certificate{cert}
	}
	return credentials.NewTLS(t), nil
}
