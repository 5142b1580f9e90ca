-- Adds one batch of what a replica saw to an experiment. A batch that was added
-- before changes nothing, so that a writer may try again.
--
-- KEYS[1] string: the batch's mark       KEYS[2] hash: user -> variant
-- KEYS[3] hash: variant -> users         KEYS[4] hash: metric, user -> count sum nonzero
-- KEYS[5] hash: metric, variant -> n mean m2   KEYS[6] hash: metric, variant, bin -> observations
-- ARGV[1] seconds to keep the mark
-- ARGV[2] number of users, then for each: user, variant
-- then number of totals, then for each: metric, user, variant, kind, count, sum, nonzero
-- then number of bins, then for each: field, observations
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

local strayed = {}
local strays = 0
for _ = 1, tonumber(take()) do
  local user, variant = take(), take()
  if redis.call('HSETNX', KEYS[2], user, variant) == 1 then
    redis.call('HINCRBY', KEYS[3], variant, 1)
  elseif redis.call('HGET', KEYS[2], user) ~= variant then
    strayed[user] = true
    strays = strays + 1
  end
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

for _ = 1, tonumber(take()) do
  local metric, user, variant, kind = take(), take(), take(), take()
  local count, sum, nonzero = tonumber(take()), tonumber(take()), tonumber(take())
  if not strayed[user] then
    local field, group = metric .. ' ' .. user, metric .. ' ' .. variant
    local c, s, z = numbers(redis.call('HGET', KEYS[4], field))
    local n, mean, m2 = numbers(redis.call('HGET', KEYS[5], group))
    if c > 0 then
      local x = value(kind, c, s, z)
      if n <= 1 then
        n, mean, m2 = 0, 0, 0
      else
        local before = (n * mean - x) / (n - 1)
        m2 = math.max(0, m2 - (x - before) * (x - mean))
        n, mean = n - 1, before
      end
    end
    c, s, z = c + count, s + sum, z + nonzero
    local x = value(kind, c, s, z)
    n = n + 1
    local delta = x - mean
    mean = mean + delta / n
    m2 = m2 + delta * (x - mean)
    redis.call('HSET', KEYS[4], field, string.format('%d %.17g %d', c, s, z))
    redis.call('HSET', KEYS[5], group, string.format('%d %.17g %.17g', n, mean, m2))
  end
end

for _ = 1, tonumber(take()) do
  local field, observations = take(), take()
  redis.call('HINCRBY', KEYS[6], field, observations)
end
return strays
