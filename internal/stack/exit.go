package stack

// ExitOf says how a part ended: nil for exit code 0, and while it has not been
// started or still runs.
func (s *Stack) ExitOf(name string) error {
	c, err := s.component(name)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running == nil {
		return nil
	}
	return c.running.Err()
}
