// Package revocation kills tokens before they expire: everywhere, within milliseconds, and without a Redis round trip
// per request.
//
// Two sorts of state say that a token is dead. A denylist entry names one thing: a token by the SHA-256 of its signing
// input, a token by (issuer, jti), or a session. A not-before mark covers many: every token of a user, a client, an
// issuer, or all of them, that was issued up to the mark. The marks are layered: a token must be younger than each of
// them.
//
// State only ever grows until it expires: an entry's expiry moves forward only, a mark moves forward only. Merging two
// states is therefore commutative, associative and idempotent. Every recovery below leans on it: replaying, merging a
// snapshot into what is known, and writing back what Redis lost are all safe at any time and in any order.
//
// [Store] writes to Redis, one atomic script per change: state, its time to live, and a message on the feed (a stream).
// [Replica] holds the whole state in memory: snapshot, then the feed, with gap and fork detection, and measured
// staleness. [Guard] puts the two together under a policy for when the replica is stale. See docs/guide/revocation.md.
package revocation
