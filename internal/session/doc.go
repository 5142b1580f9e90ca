// Package session keeps users' sessions: who is logged in, from which device and address, since when, last seen when. It
// holds a user to a number of sessions, ends idle and old ones, and ends them on demand.
//
// A session that ends leaves a tombstone, so that it cannot come back, and is owed a kill: its tokens must be revoked.
// Both are written in the same atomic step that ends it. [Manager] pays the debts with a [Killer] and then settles them;
// a debt that could not be paid (the denylist was away) is paid with the next call that concerns the user.
//
// [Tracker] is what a request meets: it notes that a session was seen, in memory, and writes behind in batches. It never
// waits for a store.
//
// [Redis] and [Memory] are the two stores. Both pass the same suite, and a test runs the same operations against both and
// a model.
package session
