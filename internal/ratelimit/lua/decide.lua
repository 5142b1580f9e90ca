-- Decides a batch of demands, in order, and charges their buckets.
-- The same function as Decide in decide.go; a property test holds them equal.
--
-- KEYS  the buckets of all demands, in order; a key may stand in several demands
-- ARGV  for each demand: the number of its buckets, then for each of them
--       period, capacity, need, cost (integer microseconds)
-- reply now, then for each demand: 1 or 0, then the level of each of its buckets
--
-- Numbers stay below 2^53, so that Lua's are exact.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local kept = redis.call('MGET', unpack(KEYS))
local level = {}
for k = 1, #KEYS do
  level[KEYS[k]] = (tonumber(kept[k] or 0)) or 0
end

local reply = {now}
local size, first, arg = 1, 1, 1
while first <= #KEYS do
  local last = first + ARGV[arg] - 1
  local allowed, a = 1, arg
  for k = first, last do
    local base = now
    if ARGV[a + 1] ~= '0' then base = now - now % ARGV[a + 1] end
    local full, l = base + ARGV[a + 2], level[KEYS[k]]
    if l < base then l = base elseif l > full then l = full end
    if l + ARGV[a + 3] > full then allowed = 0 end
    reply[size + 1 + k - first + 1] = l
    a = a + 4
  end
  reply[size + 1] = allowed
  if allowed == 1 then
    a = arg
    for k = first, last do
      if ARGV[a + 4] ~= '0' then
        local base, keep = now, nil
        if ARGV[a + 1] ~= '0' then
          base = now - now % ARGV[a + 1]
          keep = base + ARGV[a + 1] - now
        end
        local full, l = base + ARGV[a + 2], reply[size + 1 + k - first + 1] + ARGV[a + 4]
        if l < base then l = base elseif l > full then l = full end
        level[KEYS[k]] = l
        reply[size + 1 + k - first + 1] = l
        keep = keep or l - now
        redis.call('SET', KEYS[k], l, 'PX', (keep - keep % 1000) / 1000 + 1)
      end
      a = a + 4
    end
  end
  size = size + 2 + last - first
  arg = a + 1
  first = last + 1
end
return reply
