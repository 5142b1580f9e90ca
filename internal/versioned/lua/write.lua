-- Writes or deletes documents, if the whole set is still at the version that the
-- writer checked its change against.
--
-- KEYS[1] hash: name -> document        KEYS[2] hash: name -> version, kept when a document is deleted
-- KEYS[3] string: the set's version     KEYS[4...] lists: history of each document, newest first
-- ARGV[1] the set's expected version    ARGV[2] entries of history to keep   ARGV[3] channel of notices
-- then for each document: name, version, document ("" to delete), history entry
--
-- Returns 1 if written, else 0.
if (redis.call('GET', KEYS[3]) or '0') ~= ARGV[1] then
  return 0
end
for i = 4, #KEYS do
  local at = 4 * (i - 3)
  local name, version, document, entry = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  redis.call('HSET', KEYS[2], name, version)
  if document == '' then
    redis.call('HDEL', KEYS[1], name)
  else
    redis.call('HSET', KEYS[1], name, document)
  end
  redis.call('LPUSH', KEYS[i], entry)
  redis.call('LTRIM', KEYS[i], 0, tonumber(ARGV[2]) - 1)
end
redis.call('PUBLISH', ARGV[3], redis.call('INCRBY', KEYS[3], #KEYS - 3))
return 1
