// Package xds follows the rate limit rules of an xDS management server:
// RateLimitConfig resources over an aggregated discovery stream, state of the
// world, as envoyproxy/ratelimit does it.
//
// Every answer replaces the one before. It is checked as strictly as a rule
// file: one that is faulty changes nothing, and the server is told what is wrong
// with it. While the server is gone the rules known stay in force.
package xds
