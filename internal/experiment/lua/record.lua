-- Adds one batch of what a replica saw to an experiment. A batch that was added
-- before changes nothing, so that a writer may try again.
--
-- KEYS[1] string: the batch's mark       KEYS[2] hash: user -> variant
-- KEYS[3] hash: variant -> users, and requests that were dealt and seen
-- KEYS[4] hash: metric, user -> count sum nonzero, and bins until the user has met the variant
-- KEYS[5] hash: metric, variant -> n mean m2   KEYS[6] hash: metric, variant, bin -> observations
-- KEYS[7] hash: metric, user -> count sum nonzero before the experiment
-- KEYS[8] hash: metric, variant -> n mean m2, mean and m2 before, sum of products
-- ARGV[1] seconds to keep the mark       ARGV[2] seconds to keep all else
-- ARGV[3] users at most                 ARGV[4] what the mark holds: a digest of the content
-- ARGV[5] number of metrics, then for each: metric, kind, 1 if it is reported
-- then the numbers and the parts of: before (metric, user, count, sum, nonzero), users who met
-- their variant (user, variant), totals (metric, user, variant, kind, count, sum, nonzero, bins:
-- "+12:3 z:1" are three observations in bin +12 and one of 0), requests (field, number)
--
-- What is reported of users who did not meet their variant waits, and counts
-- from when they do: else only those would count who have something to report.
-- Means and bins are of the same users, but for one thing: of what waits, a
-- user's first 64 bins of a metric are kept. What was before stands still once a
-- user has met the variant, or else the variant could change it.
--
-- Returns how many users were seen in another variant than before; what they
-- did is left out. -1 where the mark is there with other content.
--
-- What would fail halfway fails before anything is written, and the mark is
-- written last: so a batch that failed may be tried again.
local mark = redis.call('GET', KEYS[1])
if mark then
  return mark == ARGV[4] and 0 or -1
end
for i = 2, 8 do
  redis.call('HLEN', KEYS[i]) -- fails for what is no hash
end
local at = 3
local function take()
  local v = ARGV[at]
  at = at + 1
  return v
end

-- number reads what string.format and Go write. The embedded Redis takes "1e+06"
-- for no number: it wants a point.
local function number(word)
  return tonumber(word) or tonumber((string.gsub(word, 'e', '.e')))
end

local function numbers(text)
  local out = {}
  for word in string.gmatch(text or '0 0 0', '%S+') do
    out[#out + 1] = number(word)
  end
  return unpack(out)
end

local function value(kind, count, sum, nonzero)
  if kind == 'mean' then
    return sum / count
  elseif kind == 'rate' then
    return nonzero > 0 and 1 or 0
  end
  return sum
end

-- add and remove change count, mean and sum of squared deviations by one value.
local function add(n, mean, m2, v)
  local delta = v - mean
  mean = mean + delta / (n + 1)
  return n + 1, mean, m2 + delta * (v - mean)
end

local function remove(n, mean, m2, v)
  if n <= 1 then
    return 0, 0, 0
  end
  local before = (n * mean - v) / (n - 1)
  return n - 1, before, math.max(0, m2 - (v - before) * (v - mean))
end

-- fold puts a user's new value among those of the variant, in place of the old
-- one where there is one.
local function fold(metric, variant, old, new)
  local group = metric .. ' ' .. variant
  local n, mean, m2 = numbers(redis.call('HGET', KEYS[5], group))
  if old then
    n, mean, m2 = remove(n, mean, m2, old)
  end
  n, mean, m2 = add(n, mean, m2, new)
  redis.call('HSET', KEYS[5], group, string.format('%d %.17g %.17g', n, mean, m2))
end

-- pair is fold for the value together with the one before.
local function pair(metric, variant, old, new, x)
  local group = metric .. ' ' .. variant
  local n, y, y2, mean, m2, co = numbers(redis.call('HGET', KEYS[8], group) or '0 0 0 0 0 0')
  if old then
    co = co + (new - old) * (x - mean)
    n, y, y2 = remove(n, y, y2, old)
    n, y, y2 = add(n, y, y2, new)
  else
    local delta, count = new - y, n
    n, y, y2 = add(count, y, y2, new)
    count, mean, m2 = add(count, mean, m2, x)
    co = co + delta * (x - mean)
  end
  redis.call('HSET', KEYS[8], group, string.format('%d %.17g %.17g %.17g %.17g %.17g', n, y, y2, mean, m2, co))
end

local most, content = tonumber(take()), take()
local metrics = {}
for i = 1, tonumber(take()) do
  metrics[i] = {name = take(), kind = take(), reported = take() == '1'}
end

for _ = 1, tonumber(take()) do
  local metric, user = take(), take()
  local count, sum, nonzero = tonumber(take()), number(take()), tonumber(take())
  local field = metric .. ' ' .. user
  local kept = redis.call('HGET', KEYS[7], field)
  if (kept or redis.call('HLEN', KEYS[7]) < most * #metrics) and redis.call('HEXISTS', KEYS[2], user) == 0 then
    local c, s, z = numbers(kept)
    redis.call('HSET', KEYS[7], field, string.format('%d %.17g %d', c + count, s + sum, z + nonzero))
  end
end
local paired = redis.call('EXISTS', KEYS[7]) == 1

-- before is the user's value in the time before, nil where there is none.
local function before(metric, kind, user)
  local kept = paired and redis.call('HGET', KEYS[7], metric .. ' ' .. user)
  return kept and value(kind, numbers(kept)) or nil
end

-- observed are observations by bin, those of all users of the batch together.
local observed = {}
local function count_bins(metric, variant, bins)
  for bin, n in string.gmatch(bins, '(%S+):(%d+)') do
    local field = metric .. ' ' .. variant .. ' ' .. bin
    observed[field] = (observed[field] or 0) + n
  end
end

-- waiting gives the bins among what is kept of a user, nothing for none.
local function waiting(kept)
  return string.match(kept or '', '^%S+ %S+ %S+ (.*)$') or ''
end

-- together makes one list of bins of several.
local function together(bins)
  local sums, out = {}, {}
  for bin, n in string.gmatch(bins, '(%S+):(%d+)') do
    if not sums[bin] then
      out[#out + 1] = bin
    end
    sums[bin] = (sums[bin] or 0) + n
  end
  for i, bin in ipairs(out) do
    out[i] = string.format('%s:%d', bin, sums[bin])
  end
  return table.concat(out, ' ', 1, math.min(#out, 64))
end

local left, strays = {}, 0
local function stray(user)
  left[user] = true
  strays = strays + 1
end

for _ = 1, tonumber(take()) do
  local user, variant = take(), take()
  local known = redis.call('HGET', KEYS[2], user)
  if known then
    if known ~= variant then
      stray(user)
    end
  elseif redis.call('HLEN', KEYS[2]) >= most then
    left[user] = true
  else
    redis.call('HSET', KEYS[2], user, variant)
    redis.call('HINCRBY', KEYS[3], variant, 1)
    for _, m in ipairs(metrics) do
      local field = m.name .. ' ' .. user
      local kept = m.reported and redis.call('HGET', KEYS[4], field)
      local v = kept and value(m.kind, numbers(kept))
      if v then
        fold(m.name, variant, nil, v)
        count_bins(m.name, variant, waiting(kept))
        redis.call('HSET', KEYS[4], field, string.format('%d %.17g %d', numbers(kept)))
      elseif m.kind ~= 'mean' then
        v = 0 -- to have met the variant and done nothing is an outcome
      end
      local x = v and before(m.name, m.kind, user)
      if x then
        pair(m.name, variant, nil, v, x)
      end
    end
  end
end

for _ = 1, tonumber(take()) do
  local metric, user, variant, kind = take(), take(), take(), take()
  local count, sum, nonzero, bins = tonumber(take()), number(take()), tonumber(take()), take()
  local known = redis.call('HGET', KEYS[2], user)
  if not left[user] and known and known ~= variant then
    stray(user)
  end
  local field = metric .. ' ' .. user
  local kept = redis.call('HGET', KEYS[4], field)
  if not left[user] and (known or kept or redis.call('HLEN', KEYS[4]) < most * #metrics) then
    local c, s, z = numbers(kept)
    local old = c > 0 and value(kind, c, s, z) or nil
    c, s, z = c + count, s + sum, z + nonzero
    local text = string.format('%d %.17g %d', c, s, z)
    if not known then
      text = text .. ' ' .. together(waiting(kept) .. ' ' .. bins)
    end
    redis.call('HSET', KEYS[4], field, text)
    if known then
      count_bins(metric, variant, bins)
      local new = value(kind, c, s, z)
      fold(metric, variant, old, new)
      local x = before(metric, kind, user)
      if x then
        pair(metric, variant, old or kind ~= 'mean' and 0 or nil, new, x)
      end
    end
  end
end

for field, n in pairs(observed) do
  redis.call('HINCRBY', KEYS[6], field, n)
end
for _ = 1, tonumber(take()) do
  local field, requests = take(), take()
  redis.call('HINCRBY', KEYS[3], field, requests)
end
for i = 2, 8 do
  redis.call('EXPIRE', KEYS[i], ARGV[2])
end
redis.call('SET', KEYS[1], content, 'EX', ARGV[1])
return strays
