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
-- reply now, then for each demand: 1 or 0, then the level of each of its buckets,
--       after that of a sliding window what was taken in the window before
--
-- A bucket is kept as its level; a sliding window as LEVEL:PREVIOUS.
--
-- Numbers stay below 2^53, so that Lua's are exact. All buckets are read at
-- once, and each is written once, however many demands charge it.
local KEYS, ARGV, call = KEYS, ARGV, redis.call
local time = call('TIME')
local now = time[1] * 1000000 + time[2]

local level, previous = {}, {}
local kept = call('MGET', unpack(KEYS))
for k = 1, #KEYS do
  local value = kept[k]
  local l = value and tonumber(value) or 0
  if l == 0 and value then
    local both, before = string.match(value, '^(%d+):(%d+)$')
    if both then l, previous[KEYS[k]] = tonumber(both), tonumber(before) end
  end
  level[KEYS[k]] = l
end

-- A kind is a list of seven for each bucket: place, level when full, level when
-- empty, highest level that is allowed, cost, end of the window or 0, and the
-- weight of the window before a sliding one, or false.
local kinds, arg = {}, 3
for k = 1, tonumber(ARGV[1]) do
  local kind, n = {}, 0
  for _ = 1, tonumber(ARGV[arg]) do
    local base, stop, weight, period = now, 0, false, tonumber(ARGV[arg + 2])
    if period ~= 0 then
      local window = period < 0 and -period or period
      base = now - now % window
      stop = base + window
      if period < 0 then weight = (stop - now) / window end
    end
    local empty = base + ARGV[arg + 3]
    kind[n + 1] = tonumber(ARGV[arg + 1])
    kind[n + 2] = base
    kind[n + 3] = empty
    kind[n + 4] = empty - ARGV[arg + 4]
    kind[n + 5] = tonumber(ARGV[arg + 5])
    kind[n + 6] = stop
    kind[n + 7] = weight
    n = n + 7
    arg = arg + 5
  end
  kinds[tostring(k)] = kind
  arg = arg + 1
end

local reply, ends = {now}, {}
local size, own = 1, tonumber(ARGV[2])
for i = arg, #ARGV do
  local kind = kinds[ARGV[i]]
  local at, allowed, mine, ahead = size + 1, 1, own, nil
  size = at
  for b = 1, #kind, 7 do
    local place = kind[b]
    if place == 0 then
      mine = mine + 1
      place = mine
    end
    local l, base, empty = level[KEYS[place]], kind[b + 1], kind[b + 2]
    local stop, weight = kind[b + 5], kind[b + 6]
    if weight then
      local window = stop - base
      local used, before = l % window, previous[KEYS[place]] or 0
      local from = l - used
      if from == base - window then
        used, before = 0, used
      elseif from < base then
        used, before = 0, 0
      elseif from > base then
        used, before = empty - base, 0
        ahead = ahead or {}
        ahead[KEYS[place]] = {empty, stop + window}
      end
      l = base + used
      if l > empty then l = empty end
      if before > empty - base then before = empty - base end
      if l + math.ceil(before * weight) > kind[b + 3] then allowed = 0 end
      size = size + 2
      reply[size - 1] = l
      reply[size] = before
    else
      if l < base then
        l = base
      elseif l > empty then
        l = empty
        ahead = ahead or {}
        ahead[KEYS[place]] = {empty, stop == 0 and empty or stop}
      end
      if l > kind[b + 3] then allowed = 0 end
      size = size + 1
      reply[size] = l
    end
  end
  reply[at] = allowed
  if allowed == 1 then
    mine = own
    for b = 1, #kind, 7 do
      local place, cost, stop = kind[b], kind[b + 4], kind[b + 5]
      if place == 0 then
        mine = mine + 1
        place = mine
      end
      at = at + 1
      if cost ~= 0 then
        local key = KEYS[place]
        local l, base, empty = reply[at] + cost, kind[b + 1], kind[b + 2]
        if kind[b + 6] then
          local before = reply[at + 1]
          if l < base then before = before + l - base end
          if before < 0 then before = 0 end
          reply[at + 1] = before
          previous[key] = before
          if l > base then
            stop = stop + stop - base
          elseif before == 0 then
            stop = now
          end
        end
        if l < base then l = base elseif l > empty then l = empty end
        if stop == 0 then stop = l end
        reply[at] = l
        level[key] = l
        ends[key] = stop
      end
      if kind[b + 6] then at = at + 1 end
    end
  elseif ahead then
    -- A level that no bucket of this size can have does not stay.
    for key, cut in pairs(ahead) do
      level[key], ends[key] = cut[1], cut[2]
      if previous[key] then previous[key] = 0 end
    end
  end
  own = mine
end

for key, stop in pairs(ends) do
  local left = stop - now
  local value = level[key]
  if previous[key] then value = string.format('%.0f:%.0f', value, previous[key]) end
  call('SET', key, value, 'PX', (left - left % 1000) / 1000 + 1)
end
return reply
