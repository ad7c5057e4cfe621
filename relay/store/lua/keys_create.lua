-- Make a key.
--
-- keys: records, digests, names, version, audit. args: name, digest of its secret, hint, who, what, details, then fields and
-- values by turns.
-- Returns {"made", record, now in ms}; {"taken"}: another key has the name.
-- A repeat finds the digest in the record, changes nothing, and returns the same.
--
-- A record is a JSON object of strings, so that cjson can neither round a number nor take an empty list for an object:
-- "created", "expires" in ms, "disabled", "models" as JSON, "limit:NAME", "label:NAME", and for each secret
-- "secret:DIGEST" with "HINT CREATED ENDS" in ms, ENDS 0 while it has no end.
local records, digests, names, version, audit = unpack(KEYS)
local name, digest, hint, who, what, details = unpack(ARGV)

local raw = redis.call('HGET', records, name)
if raw then
  if cjson.decode(raw)['secret:' .. digest] then
    return {'made', raw, now}
  end
  return {'taken'}
end
local record = {created = now, ['secret:' .. digest] = hint .. ' ' .. now .. ' 0'}
for i = 7, #ARGV, 2 do
  record[ARGV[i]] = ARGV[i + 1]
end
raw = cjson.encode(record)
redis.call('HSET', records, name, raw)
redis.call('HSET', digests, digest, name)
redis.call('ZADD', names, 0, name)
tell(version, audit, who, what, name, details)
return {'made', raw, now}
