-- Begins a history where there is none: an origin with a name of its own, so that two histories that both begin with
-- nothing can be told apart.
--
-- KEYS: meta   ARGV: link, time to live in seconds
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('HSET', KEYS[1], 'seq', '0', 'link', ARGV[1], 'until', '0', 'marked', '0')
  redis.call('EXPIRE', KEYS[1], ARGV[2])
end
return 1
