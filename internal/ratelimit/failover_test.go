package ratelimit

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/config"
	"github.com/tollgate-proxy/tollgate/internal/logtest"
	"github.com/tollgate-proxy/tollgate/internal/polltest"
	"github.com/tollgate-proxy/tollgate/internal/redisconn"
	"github.com/tollgate-proxy/tollgate/internal/redistest"
)

// onRedis is a limiter over a connection as a process has it, that runs until
// the test ends.
func onRedis(t *testing.T, cfg redisconn.Config, log *logtest.Buffer) (*lab, *redisconn.Conn) {
	t.Helper()
	conn, err := redisconn.Open(cfg, redisconn.Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	l := newLab(t, mustLoad(t, shipped), func(o *Options) {
		o.Store, o.Now = NewRedis(conn.UniversalClient, cfg.Mode == redisconn.Cluster), time.Now
		o.Timeout, o.ProbeEvery, o.BeatEvery = time.Second, 50*time.Millisecond, 50*time.Millisecond
		if log != nil {
			o.Log = log.Logger()
		}
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = l.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done; _ = conn.Close() })
	return l, conn
}

// startSentinel watches a master, and returns the sentinel's address.
func startSentinel(t *testing.T, master string) string {
	t.Helper()
	folder, address := t.TempDir(), redistest.FreeAddr(t)
	_, port, _ := net.SplitHostPort(address)
	host, masterPort, _ := net.SplitHostPort(master)
	file := filepath.Join(folder, "sentinel.conf") // The sentinel rewrites it.
	text := fmt.Sprintf("port %s\nbind 127.0.0.1\ndir %s\nsentinel monitor limits %s %s 1\n"+
		"sentinel down-after-milliseconds limits 300\nsentinel failover-timeout limits 3000\n", port, folder, host, masterPort)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "redis-server", file, "--sentinel")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	client := redistest.Client(t, address)
	polltest.Until(t, "the sentinel knows the replica", func() bool {
		text, err := client.Do(t.Context(), "info", "sentinel").Text()
		return err == nil && strings.Contains(text, "status=ok") && strings.Contains(text, "slaves=1")
	})
	return address
}

// TestSentinelFailover kills the master: meanwhile requests are decided here,
// and the replica that the sentinel promotes knows what was used.
func TestSentinelFailover(t *testing.T) {
	master := redistest.NewProcess(t)
	host, port, _ := net.SplitHostPort(master.Addr())
	replica := redistest.NewProcess(t, "--replicaof", host+" "+port)
	polltest.Until(t, "the replica follows", func() bool {
		text, err := redistest.Client(t, replica.Addr()).Info(t.Context(), "replication").Result()
		return err == nil && strings.Contains(text, "master_link_status:up")
	})
	cfg := redisconn.Default()
	cfg.Mode, cfg.MasterName, cfg.Addresses = redisconn.Sentinel, "limits", []string{startSentinel(t, master.Addr())}
	log := &logtest.Buffer{}
	l, conn := onRedis(t, cfg, log)

	ask := func(hits uint64) *Decision { return l.decide(request(of("free", "u", "x").with(hits))) }
	if dec := ask(8); dec.Path != PathExact || !dec.Allowed {
		t.Fatalf("%+v", dec)
	}
	polltest.Until(t, "the replica has it", func() bool {
		n, err := conn.Do(t.Context(), "wait", 1, 100).Int()
		return err == nil && n == 1
	})
	master.Kill()
	polltest.Until(t, "decided here", func() bool { return ask(0).Path == PathLocal && !l.guard.allows() })
	polltest.Until(t, "decided by the promoted replica", func() bool { return ask(0).Path == PathExact })
	// 2 were left in the minute; every 6 seconds brings one more.
	dec := ask(10)
	if dec.Path != PathExact || dec.Allowed || dec.Statuses[0].Remaining > 9 {
		t.Errorf("after the failover: %+v", dec)
	}
	polltest.Until(t, "each outage is told, and its end", func() bool {
		gone := log.Count("rate limit store is gone")
		return gone > 0 && gone <= 3 && log.Count("rate limit store is back") == gone
	})
}

// aclUser is what the guide says that a process may do in Redis.
func aclUser(t *testing.T) []string {
	t.Helper()
	guide, err := os.ReadFile("../../docs/guide/rate-limiting.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rules, _ := strings.Cut(string(guide), "\nuser tollgate ")
	rules, _, found := strings.Cut(rules, "```")
	if !found {
		t.Fatal("the guide has no user")
	}
	return strings.Fields(strings.ReplaceAll(rules, ">SECRET", ">s3cret"))
}

// TestTLSAndACL decides over TLS with a client certificate, as a user that may
// do no more than is needed.
func TestTLSAndACL(t *testing.T) {
	ca, cert, key := certificates(t)
	address := redistest.FreeAddr(t)
	_, port, _ := net.SplitHostPort(address)
	redistest.NewProcess(t, append([]string{
		"--tls-port", port, "--tls-ca-cert-file", ca, "--tls-cert-file", cert, "--tls-key-file", key, "--tls-auth-clients", "yes",
		"--user", "tollgate",
	}, aclUser(t)...)...)
	secure := func(user string) redisconn.Config {
		cfg := redisconn.Default()
		cfg.URL = config.NewSecret("rediss://" + user + "@" + address + "/0")
		cfg.TLSCAFile, cfg.TLSCertFile, cfg.TLSKeyFile = config.Path(ca), config.Path(cert), config.Path(key)
		return cfg
	}
	l, conn := onRedis(t, secure("tollgate:s3cret"), nil)
	for i := range 11 {
		dec := l.decide(request(of("free", "u", "x")))
		if dec.Path != PathExact || dec.Allowed != (i < 10) {
			t.Fatalf("request %d: %+v", i, dec)
		}
	}
	polltest.Until(t, "the replica is counted", func() bool { return l.replicas.seen.Load() == 1 })
	overrides := NewOverrides(conn.UniversalClient, time.Second, time.Now, slog.New(slog.DiscardHandler))
	alice := Entry{"user", "alice"}
	if err := overrides.Set(t.Context(), TierOverride{Domain: "tollgate", Subject: alice, Tier: "admin", Until: time.Now().Add(time.Hour)}); err != nil {
		t.Error(err)
	}
	if err := overrides.Clear(t.Context(), "tollgate", alice); err != nil {
		t.Error(err)
	}
	if err := l.Reset(t.Context(), "tollgate", []Entry{{"user", "u"}}); err != nil {
		t.Error(err)
	}
	for _, forbidden := range [][]any{{"set", "other", "x"}, {"flushall"}, {"keys", "*"}, {"get", "tollgate:x"}} {
		if err := conn.Do(t.Context(), forbidden...).Err(); err == nil || !strings.HasPrefix(err.Error(), "NOPERM") {
			t.Errorf("%v: %v", forbidden, err)
		}
	}

	stranger := secure("tollgate:s3cret")
	stranger.TLSCertFile, stranger.TLSKeyFile = "", ""
	for name, cfg := range map[string]redisconn.Config{"a wrong password": secure("tollgate:guess"), "no certificate": stranger} {
		l, _ := onRedis(t, cfg, nil)
		if dec := l.decide(request(of("free", "v", "x"))); dec.Path != PathLocal {
			t.Errorf("%s: %+v", name, dec)
		}
	}
}

// certificates makes an authority and a certificate of the loopback for servers
// and clients, and returns their files.
func certificates(t *testing.T) (ca, cert, key string) {
	t.Helper()
	folder := t.TempDir()
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	must := func(der []byte, err error) []byte {
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	newKey := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	authority := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "tests"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "redis"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		NotBefore:   authority.NotBefore, NotAfter: authority.NotAfter,
	}
	authorityKey, leafKey := newKey(), newKey()
	ca = write("ca.pem", "CERTIFICATE", must(x509.CreateCertificate(rand.Reader, authority, authority, authorityKey.Public(), authorityKey)))
	cert = write("cert.pem", "CERTIFICATE", must(x509.CreateCertificate(rand.Reader, leaf, authority, leafKey.Public(), authorityKey)))
	key = write("key.pem", "EC PRIVATE KEY", must(x509.MarshalECPrivateKey(leafKey)))
	return ca, cert, key
}
