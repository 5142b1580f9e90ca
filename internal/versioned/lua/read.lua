-- Reads all documents at one moment. A script and not MULTI: a Redis whose
-- memory is full refuses to queue even reads.
--
-- KEYS[1] hash: name -> document   KEYS[2] hash: name -> version
-- KEYS[3] string: the set's version
return {redis.call('GET', KEYS[3]) or '0', redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', KEYS[2])}
