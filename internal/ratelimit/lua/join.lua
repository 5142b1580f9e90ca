-- Notes what a sharer wants of a quota, in one step with the end of the quota's
-- hash, so that none stays without an end.
--
-- KEYS  1 the hash of the quota's sharers
-- ARGV  1 the sharer's name, 2 what it wants and until when, 3 how long the hash
--       is kept (milliseconds)
-- reply all sharers: name, then what it wants, and so on
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return redis.call('HGETALL', KEYS[1])
