// Package experiment assigns users to the variants of A/B tests and judges what
// was measured.
//
// Deciding is pure: an [Assigner] gives a user the same variant at every replica
// without storing anything, and [Analyse] compares variants, with Welch's test
// for the date that was planned and sequential tests for looking at any time; it
// checks the sample ratio first, corrects for several metrics, and ends in plain
// words. Definitions are in a [Catalog] in Redis, which a [Watcher] follows.
//
// A [Meter] takes what the gateway's access log tells of finished requests, a
// [Recorder] writes it behind to a [Store], and a [Guard] stops experiments whose
// guardrails are breached. Observations are summed per user first ([User]), then
// over users ([Moments]): a user makes many requests, and statistics over
// requests would understate the variance. Quantiles come from a [Sketch] over
// single observations.
package experiment
