-- Delete a key with all of its secrets.
--
-- keys: records, digests, names, version, audit. args: name, who, what, details.
-- Returns 1; 0: there is no such key, which is also what a repeat says.
local records, digests, names, version, audit = unpack(KEYS)
local name, who, what, details = unpack(ARGV)

local raw = redis.call('HGET', records, name)
if not raw then
  return 0
end
for field in pairs(cjson.decode(raw)) do
  if string.sub(field, 1, 7) == 'secret:' then
    redis.call('HDEL', digests, string.sub(field, 8))
  end
end
redis.call('HDEL', records, name)
redis.call('ZREM', names, name)
tell(version, audit, who, what, name, details)
return 1
