-- Decides a batch of demands, in order, and charges their buckets.
-- The same function as Decide in decide.go; a property test holds them equal.
--
-- KEYS  the buckets of all demands, in order; a key may stand in several demands
-- ARGV  for each demand: the number of its buckets, then for each of them
--       period, capacity, need, cost (integer microseconds)
-- reply now, then for each demand: 1 or 0, then the level of each of its buckets
--
-- Numbers stay below 2^53, so that Lua's are exact. All buckets are read at
-- once, and each is written once, however many demands charge it.
local KEYS, ARGV = KEYS, ARGV
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local kept = redis.call('MGET', unpack(KEYS))
local keys = #KEYS
local level, ends = {}, {}
for k = 1, keys do
  local value = kept[k]
  level[KEYS[k]] = value and tonumber(value) or 0
end

local reply = {now}
local size, first, arg = 1, 1, 1
while first <= keys do
  local last = first + ARGV[arg] - 1
  local at, allowed, a = size + 1, 1, arg
  size = at
  for k = first, last do
    local base = now
    if ARGV[a + 1] ~= '0' then base = now - now % ARGV[a + 1] end
    local full, l = base + ARGV[a + 2], level[KEYS[k]]
    if l < base then l = base elseif l > full then l = full end
    if l + ARGV[a + 3] > full then allowed = 0 end
    size = size + 1
    reply[size] = l
    a = a + 4
  end
  reply[at] = allowed
  if allowed == 1 then
    a = arg
    for k = first, last do
      at = at + 1
      if ARGV[a + 4] ~= '0' then
        local base, stop = now, nil
        if ARGV[a + 1] ~= '0' then
          base = now - now % ARGV[a + 1]
          stop = base + ARGV[a + 1]
        end
        local full, l = base + ARGV[a + 2], reply[at] + ARGV[a + 4]
        if l < base then l = base elseif l > full then l = full end
        reply[at] = l
        level[KEYS[k]] = l
        ends[KEYS[k]] = stop or l
      end
      a = a + 4
    end
  end
  arg = arg + 4 * (last - first + 1) + 1
  first = last + 1
end

local call = redis.call
for key, stop in pairs(ends) do
  local left = stop - now
  call('SET', key, level[key], 'PX', (left - left % 1000) / 1000 + 1)
end
return reply
