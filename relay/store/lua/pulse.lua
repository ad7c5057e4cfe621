-- Say that a process lives, and hear what has changed.
--
-- keys: processes, a set of their names by the ms in which they count no more; version, of the keys. args: the name, for how
-- many ms it lives; 0: it ends.
-- Returns the version and how many processes live. A repeat does the same.
local processes, version = unpack(KEYS)
local name, lives = ARGV[1], tonumber(ARGV[2])

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

if lives > 0 then
  redis.call('ZADD', processes, string.format('%.0f', now + lives), name)
else
  redis.call('ZREM', processes, name)
end
redis.call('ZREMRANGEBYSCORE', processes, '-inf', string.format('%.0f', now))
-- From before the clock was set back.
redis.call('ZREMRANGEBYSCORE', processes, string.format('(%.0f', now + 60000), '+inf')
return {tonumber(redis.call('GET', version) or 0), redis.call('ZCARD', processes)}
