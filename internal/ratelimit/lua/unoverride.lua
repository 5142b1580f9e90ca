-- Removes overrides.
--
-- KEYS  1 the hash of all overrides
-- ARGV  1 the field of the version, 2 the new version, or empty: those that have
--       ended need none, since every process sees that itself,
--       then for each: its field, and what it must be, or empty for whatever it is
local removed = 0
for i = 3, #ARGV, 2 do
  if ARGV[i + 1] == '' or redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[i + 1] then
    removed = removed + redis.call('HDEL', KEYS[1], ARGV[i])
  end
end
if removed > 0 and ARGV[2] ~= '' then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
end
return removed
