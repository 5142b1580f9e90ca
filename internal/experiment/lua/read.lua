-- Reads one experiment's sums at one moment. A script and not MULTI: a Redis
-- whose memory is full refuses to queue even reads.
--
-- KEYS[1] hash: variant -> users, and requests    KEYS[2] hash: metric, variant -> moments
-- KEYS[3] hash: metric, variant, bin -> observations
-- KEYS[4] hash: metric, variant -> moments together with those before
return {redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', KEYS[2]), redis.call('HGETALL', KEYS[3]), redis.call('HGETALL', KEYS[4])}
