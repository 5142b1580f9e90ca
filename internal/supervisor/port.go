package supervisor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
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

// FreePorts returns n different ports of the loopback that nothing listens on.
// Another program may take one before it is used.
func FreePorts(n int) (ports []int, err error) {
	var open []net.Listener
	defer func() {
		for _, l := range open {
			err = errors.Join(err, l.Close())
		}
	}()
	for range n {
		l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
		open = append(open, l)
		address, err := netip.ParseAddrPort(l.Addr().String())
		if err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
		ports = append(ports, int(address.Port()))
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
