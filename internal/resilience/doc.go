// Package resilience holds the decisions that keep calls to one upstream
// sensible while it misbehaves: a circuit breaker, a retry back-off and budget,
// and an adaptive concurrency limit.
//
// Nothing here knows HTTP, sleeps or starts a goroutine. Time comes from an
// injected clock and randomness from the caller, so every decision is a
// function of what it was told. All exported types are safe for concurrent use
// unless they say otherwise.
package resilience
