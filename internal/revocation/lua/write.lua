-- Puts denylist entries and not-before marks in force, and tells the feed, in one step.
--
-- KEYS: meta (hash: seq, link, until, marked), entries (zset: member -> expiry), marks (hash: member -> mark), feed (stream)
-- ARGV: mode, now, link, feed length, then pairs of member and value.
--   mode "revoke": a mark that the store timed is moved past one of the same millisecond, so that it kills again.
--   mode "merge":  values are taken as they are; replaying changes nothing.
--   value of an entry: expiry; of a mark: notBefore:tie:expiry:version. Times in Unix seconds.
-- Returns: seq, number of changed pairs, then the value now in force for each mark, in order.
local meta, entries, marks, feed = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local mode, now, link, length = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]

local function parse(value)
  local nb, tie, expires, version = string.match(value, '^(%d+):(%d+):(%d+):(%d+)$')
  if nb then
    return tonumber(nb), tonumber(tie), tonumber(expires), tonumber(version)
  end
end

local known = redis.call('HMGET', meta, 'seq', 'link', 'until', 'marked')
local seq, prev = tonumber(known[1] or 0), known[2] or ''
local last, marked = tonumber(known[3] or 0), tonumber(known[4] or 0)

-- State that had not expired is gone: Redis evicted it. Starting over makes every replica write back what it knows. The
-- minute to spare is for clocks that differ.
local function gone(key, late)
  return late > now + 60 and redis.call('EXISTS', key) == 0
end
if gone(entries, last) or gone(marks, marked) then
  seq, prev, last, marked = 0, '', 0, 0
end

local changes, result = {}, {seq, 0}
for i = 5, #ARGV, 2 do
  local member, value = ARGV[i], ARGV[i + 1]
  local nb, tie, expires, version = parse(value)
  if nb then
    local old = redis.call('HGET', marks, member)
    if old then
      local onb, otie, oexpires, oversion = parse(old)
      if onb > nb then
        nb, tie = onb, otie
      elseif onb == nb then
        if mode == 'revoke' and tie > 0 and tie <= otie then
          tie = math.min(otie + 1, 4095)
        else
          tie = math.max(tie, otie)
        end
      end
      expires, version = math.max(expires, oexpires), math.max(version, oversion)
    end
    marked = math.max(marked, expires)
    value = string.format('%.0f:%.0f:%.0f:%.0f', nb, tie, expires, version)
    result[#result + 1] = value
    if value ~= old then
      redis.call('HSET', marks, member, value)
      redis.call('ZADD', entries, string.format('%.0f', expires), member)
      changes[#changes + 1], changes[#changes + 2] = member, value
    end
  else
    expires = tonumber(value)
    if redis.call('ZADD', entries, 'GT', 'CH', value, member) == 1 then
      changes[#changes + 1], changes[#changes + 2] = member, value
    end
  end
  last = math.max(last, expires)
end

if #changes == 0 then
  return result
end
if seq == 0 then
  redis.call('DEL', feed) -- its ids could lie ahead of a sequence that starts over
end
seq = seq + 1
redis.call('HSET', meta, 'seq', string.format('%.0f', seq), 'link', link,
  'until', string.format('%.0f', last), 'marked', string.format('%.0f', marked))
redis.call('XADD', feed, 'MAXLEN', '~', length, string.format('%.0f-0', seq), 'prev', prev, 'link', link, unpack(changes))
local ttl = string.format('%.0f', math.max(last - now, 0) + 3600)
for i = 1, 4 do
  redis.call('EXPIRE', KEYS[i], ttl)
end
result[1], result[2] = seq, #changes / 2
return result
