//go:build unix && !linux

package supervisor

import "syscall"

// processAttributes gives the child a group of its own, so that a terminal's
// Ctrl-C reaches the parent alone. Only Linux can tie a child's life to its
// parent's.
func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}
