package supervisor

import "syscall"

// processAttributes gives the child a group of its own, so that a terminal's
// Ctrl-C reaches the parent alone, and has the kernel end it with its parent.
func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
