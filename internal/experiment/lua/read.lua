-- Reads one experiment's sums at one moment. A script and not MULTI: a Redis
-- whose memory is full refuses to queue even reads.
--
-- KEYS[1] hash: variant -> users   KEYS[2] hash: metric, variant -> moments
-- KEYS[3] hash: metric, variant, bin -> observations
return {redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', KEYS[2]), redis.call('HGETALL', KEYS[3])}
