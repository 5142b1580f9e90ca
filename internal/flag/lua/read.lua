-- Reads all flags and the version of the set at one moment. A script and not
-- MULTI: a Redis whose memory is full refuses to queue even reads.
--
-- KEYS[1] hash: flag -> record   KEYS[2] string: the set's version
return {redis.call('GET', KEYS[2]) or '0', redis.call('HGETALL', KEYS[1])}
