-- When a user is due next, unless that was changed since it was claimed.
--
-- KEYS: due (zset: user -> when)
-- ARGV: user, the claim, and when; 0 is never. Times in milliseconds.
-- Returns: whether it was set
local is = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not is or tonumber(is) ~= tonumber(ARGV[2]) then
  return 0
end
if ARGV[3] == '0' then
  redis.call('ZREM', KEYS[1], ARGV[1])
else
  redis.call('ZADD', KEYS[1], ARGV[3], ARGV[1])
end
return 1
