-- One operation on one user's sessions. The rules are those of rules.go.
--
-- KEYS: created (zset: id -> when), seen (zset: id -> when), about (hash: id -> description), tombs (zset: id -> when it
--       may be forgotten), owed (set of ids whose tokens are still to be revoked)
-- ARGV: now, idle, absolute, tombstone, keep, operation, then the operation's own. Times and spans in milliseconds.
-- Returns: {status, ended ids, owed ids, id, created, seen, description of each session, oldest first}
local created, seen, about, tombs, owed = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local now, idle, absolute = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local tombstone, keep, operation = tonumber(ARGV[4]), ARGV[5], ARGV[6]
local ended = {}

local function text(n)
  return string.format('%.0f', n)
end

local function finish(id)
  redis.call('ZREM', created, id)
  redis.call('ZREM', seen, id)
  redis.call('HDEL', about, id)
  redis.call('ZADD', tombs, text(now + tombstone), id)
  redis.call('SADD', owed, id)
end

local function finishAll(ids)
  for _, id in ipairs(ids) do
    finish(id)
  end
end

finishAll(redis.call('ZRANGEBYSCORE', seen, '-inf', text(now - idle)))
finishAll(redis.call('ZRANGEBYSCORE', created, '-inf', text(now - absolute)))
for _, id in ipairs(redis.call('ZRANGEBYSCORE', tombs, '-inf', text(now))) do
  if redis.call('SISMEMBER', owed, id) == 0 then
    redis.call('ZREM', tombs, id)
  end
end

local operations = {}

function operations.list()
  return 'ok'
end

-- ARGV: id, description, cap, policy, whether the description is inferred
operations['register'] = function()
  local id, description, cap, policy = ARGV[7], ARGV[8], tonumber(ARGV[9]), ARGV[10]
  if redis.call('ZSCORE', tombs, id) then
    return 'ended'
  end
  if redis.call('ZSCORE', created, id) then
    if ARGV[11] ~= '1' then
      redis.call('HSET', about, id, description)
    end
    if tonumber(redis.call('ZSCORE', seen, id)) < now then
      redis.call('ZADD', seen, text(now), id)
    end
    return 'ok'
  end
  local count = redis.call('ZCARD', created)
  if count >= cap then
    if policy == 'refuse_new' then
      return 'too_many'
    end
    -- Members of one score come in the order of their bytes.
    for _, old in ipairs(redis.call('ZRANGE', created, 0, count - cap)) do
      finish(old)
      ended[#ended + 1] = old
    end
  end
  redis.call('ZADD', created, text(now), id)
  redis.call('ZADD', seen, text(now), id)
  redis.call('HSET', about, id, description)
  return 'ok'
end

-- ARGV: only, except
operations['end'] = function()
  local only, except = ARGV[7], ARGV[8]
  for _, id in ipairs(redis.call('ZRANGE', created, 0, -1)) do
    if (only == '' or only == id) and (except == '' or except ~= id) then
      finish(id)
      ended[#ended + 1] = id
    end
  end
  if only ~= '' and not redis.call('ZSCORE', tombs, only) then
    finish(only)
  end
  return 'ok'
end

-- ARGV: id, when
operations['touch'] = function()
  local id, at = ARGV[7], tonumber(ARGV[8])
  local last = redis.call('ZSCORE', seen, id)
  if last and tonumber(last) < at then
    redis.call('ZADD', seen, text(at), id)
  end
  return 'ok'
end

local status = operations[operation]()
for i = 1, #KEYS do
  redis.call('PEXPIRE', KEYS[i], keep)
end
local result = {status, ended, redis.call('SMEMBERS', owed)}
for _, id in ipairs(redis.call('ZRANGE', created, 0, -1)) do
  result[#result + 1] = id
  result[#result + 1] = redis.call('ZSCORE', created, id)
  result[#result + 1] = redis.call('ZSCORE', seen, id)
  result[#result + 1] = redis.call('HGET', about, id)
end
return result
