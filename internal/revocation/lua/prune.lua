-- Removes what has expired by both clocks, Redis's and the caller's, a bounded number at a time.
--
-- KEYS: entries (zset), marks (hash)   ARGV: the caller's time in Unix seconds, the number at most
-- Returns how many went.
local now = math.min(tonumber(ARGV[1]), tonumber(redis.call('TIME')[1]))
local dead = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('(%.0f', now), 'LIMIT', 0, ARGV[2])
if #dead > 0 then
  redis.call('ZREM', KEYS[1], unpack(dead))
  redis.call('HDEL', KEYS[2], unpack(dead))
end
return #dead
