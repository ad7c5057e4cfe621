-- One key. Changes nothing.
--
-- keys: records. args: name.
-- Returns {now in ms, record}; nil in its place: there is no such key.
return {now, redis.call('HGET', KEYS[1], ARGV[1])}
