-- Notes that a replica lives, and counts those that do.
--
-- KEYS  1 the replicas: a sorted set, by when each was heard of last
-- ARGV  1 the replica's name, 2 how long it counts after
--       it was heard of (milliseconds)
-- reply how many live
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return redis.call('ZCARD', KEYS[1])
