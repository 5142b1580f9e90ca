// Package httpcache is a shared HTTP cache (RFC 9111) for the answers of one
// service's routes: an LRU bounded in bytes within the process, before a store
// that replicas share.
//
// It is a chain of RoundTrippers, one for each route that asks for it. Three
// properties hold by construction rather than by care:
//
//   - What is not part of an entry's key does not reach the service. A cached
//     route forwards the headers that its policy keys on and a few that cannot
//     change an answer, and drops the rest; so no unkeyed header can poison an
//     entry, and Vary needs no second key.
//   - Requests for one key that miss together are sent once. The one that is
//     sent belongs to no client: a first caller that leaves takes nobody with it.
//   - Nothing depends on the shared store. It is asked with a short deadline and
//     left alone for a while when it fails.
package httpcache
