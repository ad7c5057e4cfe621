-- Requests that are still open have their leases begin anew.
--
-- KEYS  1 open: sorted set, id of a request → end of its lease in µs
-- ARGV  1 length of the lease in µs  2… ids
-- Returns how many had none any more: theirs had run out while the store could not be reached. They count again.
--
-- A repeat does the same again. One that comes after the end of its request leaves a lease that runs out by itself.

local time = redis.call('TIME')
local ends = string.format('%.0f', tonumber(time[1]) * 1000000 + tonumber(time[2]) + tonumber(ARGV[1]))
local arguments = {}
for i = 2, #ARGV do
  arguments[#arguments + 1] = ends
  arguments[#arguments + 1] = ARGV[i]
end
local added = redis.call('ZADD', KEYS[1], unpack(arguments))
redis.call('PEXPIREAT', KEYS[1], string.format('%.0f', math.ceil(tonumber(ends) / 1000) + 1))
return added
