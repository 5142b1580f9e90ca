package supervisor

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// PortInUseError says that an address cannot be listened on because something else
// does.
type PortInUseError struct {
	// Address is host:port; Name is the part of the system that wants it.
	Address, Name string
	// PID and Command tell who listens there; 0 and empty where that is unknown.
	PID     int
	Command string
}

// Error is one sentence for people.
func (u *PortInUseError) Error() string {
	_, port, err := net.SplitHostPort(u.Address)
	if err != nil {
		port = u.Address
	}
	if u.PID == 0 {
		return fmt.Sprintf("port %s (%s) is already in use: stop what listens there", port, u.Name)
	}
	return fmt.Sprintf("port %s (%s) is already in use by %s (pid %d): stop it", port, u.Name, u.Command, u.PID)
}

// CheckPort tells whether address (host:port) can be listened on. The error is a
// *PortInUseError where it is taken.
func CheckPort(name, address string) error {
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", address)
	if err == nil {
		return l.Close()
	}
	if !errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("%s cannot listen on %s: %w", name, address, err)
	}
	use := &PortInUseError{Address: address, Name: name}
	if _, port, splitErr := net.SplitHostPort(address); splitErr == nil {
		use.PID, use.Command = listener(port)
	}
	return use
}

// Free ports are looked for below those that systems give to outgoing connections,
// so that none is taken in passing before it is used.
const (
	firstFree = 15000
	lastFree  = 31999
	tries     = 50 // for each port
)

// FreePorts returns n different ports of the loopback, from 15000 to 31999, that
// nothing listens on. Another program may take one before it is used.
func FreePorts(n int) (ports []int, err error) {
	var open []net.Listener
	defer func() {
		for _, l := range open {
			err = errors.Join(err, l.Close())
		}
	}()
	for range n * tries {
		if len(ports) == n {
			break
		}
		offset, err := rand.Int(rand.Reader, big.NewInt(lastFree-firstFree+1))
		if err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
		port := firstFree + int(offset.Int64())
		l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			continue // taken, by another program or by the last turns
		}
		open = append(open, l)
		ports = append(ports, port)
	}
	if len(ports) < n {
		return nil, fmt.Errorf("find %d free ports from %d to %d: only %d after %d tries", n, firstFree, lastFree, len(ports), n*tries)
	}
	return ports, nil
}

// listener finds which process listens on a TCP port, as far as /proc tells.
func listener(port string) (pid int, command string) {
	inodes := listeningInodes(port)
	if len(inodes) == 0 {
		return 0, ""
	}
	links, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return 0, ""
	}
	for _, link := range links {
		target, err := os.Readlink(link)
		if err != nil || !inodes[target] {
			continue
		}
		dir := filepath.Dir(filepath.Dir(link))
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		name, err := os.ReadFile(filepath.Join(dir, "comm"))
		if err != nil {
			return pid, "a process"
		}
		return pid, strings.TrimSpace(string(name))
	}
	return 0, ""
}

// listeningInodes returns the socket links ("socket:[123]") that listen on port.
func listeningInodes(port string) map[string]bool {
	const (
		localAddress = 1
		state        = 3
		inode        = 9
		listening    = "0A"
	)
	wanted, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil
	}
	suffix := fmt.Sprintf(":%04X", wanted)
	found := map[string]bool{}
	for _, file := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		data, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(data)) {
			f := strings.Fields(line)
			if len(f) > inode && f[state] == listening && strings.HasSuffix(f[localAddress], suffix) {
				found["socket:["+f[inode]+"]"] = true
			}
		}
	}
	return found
}
