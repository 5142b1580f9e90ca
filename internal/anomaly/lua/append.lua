-- Adds an event unless the same one came shortly before.
--
-- KEYS: events (list, newest first, of "time key json")
-- ARGV: time, within, keep, how many of the newest to search, how many to keep, key, json. Times in milliseconds.
-- Returns: 1 if it was added, else 0
local list, at, within, keep = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
for _, old in ipairs(redis.call('LRANGE', list, 0, tonumber(ARGV[4]) - 1)) do
  local when, key = string.match(old, '^(%d+) (%S+) ')
  if key == ARGV[6] and at - tonumber(when) < within then
    return 0
  end
end
redis.call('LPUSH', list, string.format('%.0f %s %s', at, ARGV[6], ARGV[7]))
redis.call('LTRIM', list, 0, tonumber(ARGV[5]) - 1)
while true do
  local last = redis.call('LRANGE', list, -1, -1)[1]
  if redis.call('LLEN', list) <= 1 or tonumber(string.match(last, '^(%d+)')) >= at - keep then
    break
  end
  redis.call('RPOP', list)
end
redis.call('PEXPIRE', list, ARGV[3])
return 1
