-- Give a key a new secret; those that it has end after an overlap, or earlier if that was said before.
--
-- keys: records, digests, version, audit. args: name, digest of the new secret, hint, who, what, details, overlap in ms, how
-- many secrets there may be.
-- Returns {"rotated", record, now in ms}; {"unknown"}: there is no such key; {"secrets"}: it would have too many.
-- A repeat finds the digest in the record, changes nothing, and returns the same.
local records, digests, version, audit = unpack(KEYS)
local name, digest, hint, who, what, details, overlap, most = unpack(ARGV)

local raw = redis.call('HGET', records, name)
if not raw then
  return {'unknown'}
end
local record = cjson.decode(raw)
if record['secret:' .. digest] then
  return {'rotated', raw, now}
end
local count, ended = 1, {}
for field, value in pairs(record) do
  if string.sub(field, 1, 7) == 'secret:' then
    local shown, created, ends = string.match(value, '^(%S+) (%d+) (%d+)$')
    local last = at + tonumber(overlap)
    if tonumber(ends) > 0 then
      last = math.min(last, tonumber(ends))
    end
    if last > at then
      count = count + 1
      record[field] = shown .. ' ' .. created .. ' ' .. string.format('%.0f', last)
    else
      ended[#ended + 1] = string.sub(field, 8)
      record[field] = nil
    end
  end
end
if count > tonumber(most) then
  return {'secrets'}
end
for _, old in ipairs(ended) do
  redis.call('HDEL', digests, old)
end
record['secret:' .. digest] = hint .. ' ' .. now .. ' 0'
raw = cjson.encode(record)
redis.call('HSET', records, name, raw)
redis.call('HSET', digests, digest, name)
tell(version, audit, who, what, name, details)
return {'rotated', raw, now}
