// Package experiment assigns users to the variants of A/B tests and judges what
// was measured.
//
// Everything here is pure. [Definition.Assign] gives a user the same variant at
// every replica without storing anything. Observations are summed per user
// first ([User]), then over users ([Moments]): a user makes many requests, and
// statistics over requests would understate the variance. Both merge, so that
// replicas aggregate on their own. Quantiles come from a [Sketch] over single
// observations. [Analyse] compares variants: Welch's test for the date that was
// planned, and sequential tests for looking at any time; it checks the sample
// ratio first, corrects for several metrics, and ends in plain words.
package experiment
