-- Corrects facts; those that are not there are passed over.
--
-- KEYS: facts (hash: kind:value -> "first last count")
-- ARGV: time of the observation, since, then for each fact: withdraw or vouch, kind:value. Times in milliseconds.
local key, at, since = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])
for i = 3, #ARGV, 2 do
  local field = ARGV[i + 1]
  local value = redis.call('HGET', key, field)
  if value then
    local first, last, count = string.match(value, '^(%d+) (%d+) (%d+)$')
    first, last = tonumber(first), tonumber(last)
    if ARGV[i] == 'withdraw' and first == at and last == at then
      redis.call('HDEL', key, field)
    elseif ARGV[i] == 'vouch' and first > since then
      redis.call('HSET', key, field, string.format('%.0f %.0f %s', since, last, count))
    end
  end
end
return redis.status_reply('OK')
