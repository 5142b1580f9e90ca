// Package ratelimit decides whether a request may pass the limits of its
// user and of the whole system.
//
// A [Rules] value, loaded from a rule file, says which [Limit]s a request
// meets. Each limit is kept in one bucket for each subject (a user, an
// address, the system). A [Limiter] turns a [Request] into a [Demand], the
// list of all its buckets with what each is charged, and gives it to a
// [Store], which charges all of them or none. [Decide] is that decision as a
// pure function; lua/decide.lua is the same function inside Redis.
//
// A bucket is one integer: the instant, in microseconds since the epoch, at
// which it will be full again (the theoretical arrival time of the generic
// cell rate algorithm). A bucket that was never charged, or that is full
// again, takes no space at all. A fixed window is the same integer, counted
// from the beginning of its window instead of from now.
//
// The package knows neither gRPC nor Envoy: internal/rls adapts it.
package ratelimit
