package ratelimit

import "context"

// Store keeps buckets. A store must hold to this:
//
//   - Take decides every demand as [Decide] does, in the order given, each
//     seeing the charges of those before it, and each as one atomic step among
//     all users of the store, with one exception: a store over several servers
//     may charge the buckets of a demand that live on different servers one
//     after the other, returning what it took where a later one denies. It
//     never grants more than a bucket holds.
//   - Time is the store's own, the same for all its users, and returned in
//     Demand.Now.
//   - A denied demand takes nothing from any bucket.
//   - A bucket that is full again takes no space, soon after.
//   - An error says that no demand of the call was decided as far as the store
//     knows. A store that could not be reached in time may still have charged.
//   - It may be called by any number of goroutines.
type Store interface {
	// Take decides the demands, which must not be empty, and sets their
	// results. It returns when ctx ends at the latest.
	Take(ctx context.Context, demands []*Demand) error
}
