-- Adds one batch of what a replica saw to an experiment. A batch that was added
-- before changes nothing, so that a writer may try again.
--
-- KEYS[1] string: the batch's mark       KEYS[2] hash: user -> variant
-- KEYS[3] hash: variant -> users         KEYS[4] hash: metric, user -> count sum nonzero
-- KEYS[5] hash: metric, variant -> n mean m2   KEYS[6] hash: metric, variant, bin -> observations
-- ARGV[1] seconds to keep the mark
-- ARGV[2] number of reported metrics, then for each: metric, kind
-- then number of users who met their variant, then for each: user, variant
-- then number of totals, then for each: metric, user, variant, kind, count, sum, nonzero
-- then number of bins, then for each: field, observations
--
-- What is reported of users who did not meet their variant is kept, and counts
-- from when they do: else those would count who have something to report.
--
-- Returns how many users were seen in another variant than before; what they
-- did is left out.
if not redis.call('SET', KEYS[1], '1', 'NX', 'EX', ARGV[1]) then
  return 0
end
local at = 2
local function take()
  local v = ARGV[at]
  at = at + 1
  return v
end

local function numbers(text)
  local out = {}
  for word in string.gmatch(text or '0 0 0', '%S+') do
    out[#out + 1] = tonumber(word)
  end
  return out[1], out[2], out[3]
end

local function value(kind, count, sum, nonzero)
  if kind == 'mean' then
    return sum / count
  elseif kind == 'rate' then
    return nonzero > 0 and 1 or 0
  end
  return sum
end

-- fold puts a user's new value among those of the variant, in place of the old
-- one where there is one.
local function fold(metric, variant, old, new)
  local group = metric .. ' ' .. variant
  local n, mean, m2 = numbers(redis.call('HGET', KEYS[5], group))
  if old then
    if n <= 1 then
      n, mean, m2 = 0, 0, 0
    else
      local before = (n * mean - old) / (n - 1)
      m2 = math.max(0, m2 - (old - before) * (old - mean))
      n, mean = n - 1, before
    end
  end
  n = n + 1
  local delta = new - mean
  mean = mean + delta / n
  m2 = m2 + delta * (new - mean)
  redis.call('HSET', KEYS[5], group, string.format('%d %.17g %.17g', n, mean, m2))
end

local reported = {}
for i = 1, tonumber(take()) do
  reported[i] = {take(), take()}
end

local strayed = {}
local strays = 0
for _ = 1, tonumber(take()) do
  local user, variant = take(), take()
  if redis.call('HSETNX', KEYS[2], user, variant) == 1 then
    redis.call('HINCRBY', KEYS[3], variant, 1)
    for _, m in ipairs(reported) do
      local kept = redis.call('HGET', KEYS[4], m[1] .. ' ' .. user)
      if kept then
        fold(m[1], variant, nil, value(m[2], numbers(kept)))
      end
    end
  elseif redis.call('HGET', KEYS[2], user) ~= variant then
    strayed[user] = true
    strays = strays + 1
  end
end

for _ = 1, tonumber(take()) do
  local metric, user, variant, kind = take(), take(), take(), take()
  local count, sum, nonzero = tonumber(take()), tonumber(take()), tonumber(take())
  local known = redis.call('HGET', KEYS[2], user)
  if not strayed[user] and known and known ~= variant then
    strayed[user] = true
    strays = strays + 1
  end
  if not strayed[user] then
    local field = metric .. ' ' .. user
    local c, s, z = numbers(redis.call('HGET', KEYS[4], field))
    local old = c > 0 and value(kind, c, s, z) or nil
    c, s, z = c + count, s + sum, z + nonzero
    redis.call('HSET', KEYS[4], field, string.format('%d %.17g %d', c, s, z))
    if known then
      fold(metric, variant, old, value(kind, c, s, z))
    end
  end
end

for _ = 1, tonumber(take()) do
  local field, observations = take(), take()
  redis.call('HINCRBY', KEYS[6], field, observations)
end
return strays
