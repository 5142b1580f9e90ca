-- Puts an override in force, and gives the overrides a new version in the same
-- step, which is what all processes look at.
--
-- KEYS  1 the hash of all overrides
-- ARGV  1 its field, 2 the override, 3 when the hash may go at the earliest
--       (milliseconds of Unix time), 4 the field of the version, 5 the new version,
--       6 how many overrides there may be
-- reply 1, or 0 where there are as many already
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then
  local others = redis.call('HLEN', KEYS[1]) - redis.call('HEXISTS', KEYS[1], ARGV[4])
  if others >= tonumber(ARGV[6]) then
    return 0
  end
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2], ARGV[4], ARGV[5])
redis.call('PEXPIREAT', KEYS[1], ARGV[3], 'NX')
redis.call('PEXPIREAT', KEYS[1], ARGV[3], 'GT')
return 1
