-- Adds facts that were all seen at one time. The rules are those of record and trim in memory.go.
--
-- KEYS: facts (hash: kind:value -> "first last count")
-- ARGV: now, keep, start of the hour, highest count of an hour, then for each fact: kind:value, most facts of its kind.
--       Times and spans in milliseconds.
-- Returns: every field and value as they were before
local key, now, keep = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])
local hour, highest = tonumber(ARGV[3]), tonumber(ARGV[4])
local before = redis.call('HGETALL', key)
local facts, kinds = {}, {}

local function forget(field)
  local kind = string.sub(field, 1, 2)
  facts[field] = nil
  kinds[kind] = kinds[kind] - 1
  redis.call('HDEL', key, field)
end

local function write(field)
  local f = facts[field]
  redis.call('HSET', key, field, string.format('%.0f %.0f %d', f[1], f[2], f[3]))
end

for i = 1, #before, 2 do
  local field, kind = before[i], string.sub(before[i], 1, 2)
  local first, last, count = string.match(before[i + 1], '^(%d+) (%d+) (%d+)$')
  if not last or tonumber(last) < now - keep then
    redis.call('HDEL', key, field)
  else
    facts[field] = {tonumber(first), tonumber(last), tonumber(count)}
    kinds[kind] = (kinds[kind] or 0) + 1
  end
end

local function trim(added, most)
  local kind = string.sub(added, 1, 2)
  while kinds[kind] > most do
    local oldest
    for field, f in pairs(facts) do
      if field ~= added and string.sub(field, 1, 2) == kind
        and (not oldest or f[2] < facts[oldest][2] or (f[2] == facts[oldest][2] and field < oldest)) then
        oldest = field
      end
    end
    forget(oldest)
  end
end

local function halve()
  local hours = {}
  for field in pairs(facts) do
    if string.sub(field, 1, 2) == 'h:' then
      hours[#hours + 1] = field
    end
  end
  for _, field in ipairs(hours) do
    facts[field][3] = math.floor(facts[field][3] / 2)
    if facts[field][3] == 0 then
      forget(field)
    else
      write(field)
    end
  end
end

for i = 5, #ARGV, 2 do
  local field, kind, f = ARGV[i], string.sub(ARGV[i], 1, 2), facts[ARGV[i]]
  if not f then
    facts[field] = {now, now, 1}
    kinds[kind] = (kinds[kind] or 0) + 1
    write(field)
    trim(field, tonumber(ARGV[i + 1]))
  else
    if kind == 'h:' and f[2] < hour then
      f[3] = f[3] + 1
    end
    f[1], f[2] = math.min(f[1], now), math.max(f[2], now)
    write(field)
    if f[3] > highest then
      halve()
    end
  end
end
redis.call('PEXPIRE', key, ARGV[2])
return before
