-- One operation on one user's sessions. The rules are those of rules.go.
--
-- A session's name is its issuer, a line break, and its id; the issuer is empty where it is unknown.
--
-- KEYS: created (zset: name -> when), seen (zset: name -> when), about (hash: name -> description), tombs (zset: name ->
--       when it may be forgotten), owed (set of names whose tokens are still to be revoked)
-- ARGV: now, idle, absolute, tombstone, keep, operation, then the operation's own. Times and spans in milliseconds.
-- Returns: {status, ended names, owed names, name, created, seen, description of each session, oldest first}
local created, seen, about, tombs, owed = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local now, idle, absolute = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local tombstone, keep, operation = tonumber(ARGV[4]), ARGV[5], ARGV[6]
local ended = {}

local function text(n)
  return string.format('%.0f', n)
end

local function split(name)
  local at = string.find(name, '\n', 1, true)
  return string.sub(name, 1, at - 1), string.sub(name, at + 1)
end

local function finish(name)
  redis.call('ZREM', created, name)
  redis.call('ZREM', seen, name)
  redis.call('HDEL', about, name)
  redis.call('ZADD', tombs, text(now + tombstone), name)
  redis.call('SADD', owed, name)
  local issuer, id = split(name)
  if issuer ~= '' then -- and one for whoever asks without an issuer
    redis.call('ZADD', tombs, text(now + tombstone), '\1\n' .. id)
  end
end

local function finishAll(names)
  for _, name in ipairs(names) do
    finish(name)
  end
end

local function dead(issuer, id)
  return redis.call('ZSCORE', tombs, issuer .. '\n' .. id) or redis.call('ZSCORE', tombs, '\n' .. id)
    or (issuer == '' and redis.call('ZSCORE', tombs, '\1\n' .. id))
end

-- The name of the session that is meant. A live one of an unknown issuer takes the issuer; where that is not said, it
-- is the oldest live one of that id.
local function meet(issuer, id)
  local name, unknown = issuer .. '\n' .. id, '\n' .. id
  if redis.call('ZSCORE', created, name) then
    return name
  end
  if issuer == '' then
    for _, known in ipairs(redis.call('ZRANGE', created, 0, -1)) do
      local _, same = split(known)
      if same == id then
        return known
      end
    end
    return name
  end
  local since = redis.call('ZSCORE', created, unknown)
  if since and not dead(issuer, id) then
    redis.call('ZADD', created, since, name)
    redis.call('ZADD', seen, redis.call('ZSCORE', seen, unknown), name)
    redis.call('HSET', about, name, redis.call('HGET', about, unknown))
    redis.call('ZREM', created, unknown)
    redis.call('ZREM', seen, unknown)
    redis.call('HDEL', about, unknown)
  end
  return name
end

finishAll(redis.call('ZRANGEBYSCORE', seen, '-inf', text(now - idle)))
finishAll(redis.call('ZRANGEBYSCORE', created, '-inf', text(now - absolute)))
for _, name in ipairs(redis.call('ZRANGEBYSCORE', tombs, '-inf', text(now))) do
  if redis.call('SISMEMBER', owed, name) == 0 then
    redis.call('ZREM', tombs, name)
  end
end

local operations = {}

function operations.list()
  return 'ok'
end

-- ARGV: issuer, id, description, cap, policy, whether the description is inferred
operations['register'] = function()
  local issuer, id, description, cap, policy = ARGV[7], ARGV[8], ARGV[9], tonumber(ARGV[10]), ARGV[11]
  local name = meet(issuer, id)
  if redis.call('ZSCORE', created, name) then
    if ARGV[12] ~= '1' then
      redis.call('HSET', about, name, description)
    end
    if tonumber(redis.call('ZSCORE', seen, name)) < now then
      redis.call('ZADD', seen, text(now), name)
    end
    return 'ok'
  end
  if dead(issuer, id) then
    return 'ended'
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
  redis.call('ZADD', created, text(now), name)
  redis.call('ZADD', seen, text(now), name)
  redis.call('HSET', about, name, description)
  return 'ok'
end

-- ARGV: issuer, only, except
operations['end'] = function()
  local issuer, only, except = ARGV[7], ARGV[8], ARGV[9]
  if only ~= '' and issuer ~= '' then
    meet(issuer, only)
  end
  for _, name in ipairs(redis.call('ZRANGE', created, 0, -1)) do
    local whose, id = split(name)
    if (issuer == '' or whose == '' or whose == issuer) and (only == '' or only == id) and (except == '' or except ~= id) then
      finish(name)
      ended[#ended + 1] = name
    end
  end
  if only ~= '' and not dead(issuer, only) then
    finish(issuer .. '\n' .. only)
  end
  return 'ok'
end

-- ARGV: issuer, id, when
operations['touch'] = function()
  local name, at = ARGV[7] .. '\n' .. ARGV[8], tonumber(ARGV[9])
  local last = redis.call('ZSCORE', seen, name)
  if last and tonumber(last) < at then
    redis.call('ZADD', seen, text(at), name)
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
