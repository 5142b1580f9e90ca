-- Writes or deletes one flag, if the whole set of flags is still at the version
-- that the writer checked its change against.
--
-- KEYS[1] hash: flag -> record      KEYS[2] hash: flag -> version, kept when the flag is deleted
-- KEYS[3] string: the set's version KEYS[4] list: the flag's history, newest first
-- ARGV[1] flag  ARGV[2] the set's expected version, or "seed": only if the flag was never here
-- ARGV[3] record without its version, "" to delete   ARGV[4] history entry without its version
-- ARGV[5] entries of history to keep   ARGV[6] channel of notices   ARGV[7] lowest version to give
--
-- Returns {1 if written, the flag's version, the set's version}.
local set = tonumber(redis.call('GET', KEYS[3]) or '0')
local version = tonumber(redis.call('HGET', KEYS[2], ARGV[1]) or '0')
if ARGV[2] == 'seed' then
  if version > 0 then
    return {0, version, set}
  end
elseif set ~= tonumber(ARGV[2]) then
  return {0, version, set}
end

version = math.max(version + 1, tonumber(ARGV[7]))
local stamp = '{"version":' .. string.format('%d', version) .. ','
redis.call('HSET', KEYS[2], ARGV[1], string.format('%d', version))
if ARGV[3] == '' then
  redis.call('HDEL', KEYS[1], ARGV[1])
else
  redis.call('HSET', KEYS[1], ARGV[1], stamp .. string.sub(ARGV[3], 2))
end
redis.call('LPUSH', KEYS[4], stamp .. string.sub(ARGV[4], 2))
redis.call('LTRIM', KEYS[4], 0, tonumber(ARGV[5]) - 1)
set = redis.call('INCR', KEYS[3])
redis.call('PUBLISH', ARGV[6], string.format('%d', set))
return {1, version, set}
