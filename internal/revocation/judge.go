package revocation

// step is how a replica stands to Redis.
type step uint8

const (
	inStep step = iota // knows all that Redis knows
	behind             // Redis has more on the feed
	forked             // Redis has another history, or has lost what it had
)

// judge compares the position that a replica had before it asked with what Redis answered.
//
// Redis behind the replica, or elsewhere at the same sequence, means that Redis lost writes: it came back from an old
// dump or empty, was flushed, or failed over to a server that lagged. One that has overtaken again before it is asked is
// found out by the links of the feed.
func judge(own, redis position) step {
	switch {
	case redis.seq < own.seq, redis.seq == own.seq && redis.link != own.link:
		return forked
	case redis.seq > own.seq:
		return behind
	default:
		return inStep
	}
}

// sweepTime is the time by which a replica forgets: the earliest of its wall clock, the wall clock it started with moved
// on by the monotonic clock, and Redis's clock. A clock that jumps ahead makes nothing be forgotten early unless all
// three agree.
func sweepTime(wall, steady, redis int64) int64 { return min(wall, steady, redis) }
