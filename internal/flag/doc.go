// Package flag decides feature flags: definitions, their compiled form, and
// their store.
//
// A definition is a flag of the flagd JSON schema (open-feature/flagd-schemas)
// with one additional member, "tollgate", for what that schema lacks: roll-out
// percentages with salt and hash version, audiences by tier, role and claim,
// single users, prerequisites, schedules, kill switch, layers and holdouts,
// owner and expiry. flagd ignores the member, so one file serves both.
//
// [Parse] and [LoadFile] read definitions strictly and report every fault at
// once. [Compile] turns them into a [Set], immutable and safe for concurrent
// use, whose evaluation is pure: the same definitions, subject and time give
// the same answer, without allocation. [Store] keeps definitions in Redis with
// a version, compare-and-set and a history; [Watcher] follows it and offers
// the current Set behind one atomic pointer.
//
// Reasons and error codes are OpenFeature's
// (https://openfeature.dev/specification/types).
package flag
