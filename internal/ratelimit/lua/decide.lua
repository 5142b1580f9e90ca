-- Decides a batch of demands, in order, and charges their buckets.
-- The same function as Decide in decide.go; a property test holds them equal.
--
-- Most demands of a batch ask for the same amounts of buckets of the same
-- sizes, so these stand once, as kinds, and a demand names its kind.
--
-- KEYS  the buckets that kinds name, then the other buckets of all demands in
--       order; a key may stand several times
-- ARGV  the number of kinds and of the buckets they name; each kind: the number
--       of its buckets, then for each of them the place of its key, or 0 for
--       the demand's next own, and period, capacity, need, cost (integer
--       microseconds); then the kind of each demand
-- reply now, then for each demand: 1 or 0, then the level of each of its buckets
--
-- Numbers stay below 2^53, so that Lua's are exact. All buckets are read at
-- once, and each is written once, however many demands charge it.
local KEYS, ARGV, call = KEYS, ARGV, redis.call
local time = call('TIME')
local now = time[1] * 1000000 + time[2]

local level = {}
local kept = call('MGET', unpack(KEYS))
for k = 1, #KEYS do
  local value = kept[k]
  level[KEYS[k]] = value and tonumber(value) or 0
end

-- A kind is a list of six for each bucket: place, level when full, level when
-- empty, highest level that is allowed, cost, end of the window or 0.
local kinds, arg = {}, 3
for k = 1, tonumber(ARGV[1]) do
  local kind, n = {}, 0
  for _ = 1, tonumber(ARGV[arg]) do
    local base, stop, period = now, 0, tonumber(ARGV[arg + 2])
    if period > 0 then
      base = now - now % period
      stop = base + period
    end
    local empty = base + ARGV[arg + 3]
    kind[n + 1] = tonumber(ARGV[arg + 1])
    kind[n + 2] = base
    kind[n + 3] = empty
    kind[n + 4] = empty - ARGV[arg + 4]
    kind[n + 5] = tonumber(ARGV[arg + 5])
    kind[n + 6] = stop
    n = n + 6
    arg = arg + 5
  end
  kinds[tostring(k)] = kind
  arg = arg + 1
end

local reply, ends = {now}, {}
local size, own = 1, tonumber(ARGV[2])
for i = arg, #ARGV do
  local kind = kinds[ARGV[i]]
  local at, allowed, mine = size + 1, 1, own
  size = at
  for b = 1, #kind, 6 do
    local place = kind[b]
    if place == 0 then
      mine = mine + 1
      place = mine
    end
    local l, base, empty = level[KEYS[place]], kind[b + 1], kind[b + 2]
    if l < base then l = base elseif l > empty then l = empty end
    if l > kind[b + 3] then allowed = 0 end
    size = size + 1
    reply[size] = l
  end
  reply[at] = allowed
  if allowed == 1 then
    mine = own
    for b = 1, #kind, 6 do
      local place, cost, stop = kind[b], kind[b + 4], kind[b + 5]
      if place == 0 then
        mine = mine + 1
        place = mine
      end
      at = at + 1
      if cost ~= 0 then
        local l, base, empty = reply[at] + cost, kind[b + 1], kind[b + 2]
        if l < base then l = base elseif l > empty then l = empty end
        if stop == 0 then stop = l end
        local key = KEYS[place]
        reply[at] = l
        level[key] = l
        ends[key] = stop
      end
    end
  end
  own = mine
end

for key, stop in pairs(ends) do
  local left = stop - now
  call('SET', key, level[key], 'PX', (left - left % 1000) / 1000 + 1)
end
return reply
