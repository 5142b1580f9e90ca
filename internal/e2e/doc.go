// Package e2e holds the end-to-end tests: the real Envoy, a real redis-server,
// the real Python services and the programs built from the present sources, all
// together as a user would run them. It has tests only.
//
// TestMain builds the programs, so a test never meets a stale one. TestSystem
// starts everything once and takes its subtests in order; each leaves the system
// as it found it, and what one may break for the others is repaired between
// them. Tests that need less start less.
//
// A missing tool fails the tests with a sentence that says how to get it.
package e2e
