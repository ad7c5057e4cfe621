-- Find the key that has a secret. Changes nothing.
--
-- keys: records, digests, version. args: digest.
-- Returns {version of the keys, now in ms, name, record}; the last two are nil where no key has it.
local records, digests, version = unpack(KEYS)

local counter = redis.call('GET', version) or '0'
local name = redis.call('HGET', digests, ARGV[1])
if not name then
  return {counter, now, false, false}
end
return {counter, now, name, redis.call('HGET', records, name)}
