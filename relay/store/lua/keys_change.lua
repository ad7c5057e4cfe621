-- Change fields of a key's record (see keys_create), and leave the others as they are.
--
-- keys: records, version, audit. args: name, who, what, details, how many labels there may be, then by threes: "set", field,
-- value; or "drop", field, ""; or "clear", prefix, "".
-- Returns {"changed", record, now in ms}; {"unknown"}: there is no such key; {"labels"}: it would have too many.
-- A repeat changes nothing: what stands as it should is neither counted nor told to the audit log.
local records, version, audit = unpack(KEYS)
local name, who, what, details, most = unpack(ARGV)

local raw = redis.call('HGET', records, name)
if not raw then
  return {'unknown'}
end
local record = cjson.decode(raw)
local changed = false
local function put(field, value)
  changed = changed or record[field] ~= value
  record[field] = value
end
for i = 6, #ARGV, 3 do
  local act, field, value = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  if act == 'set' then
    put(field, value)
  elseif act == 'drop' then
    put(field, nil)
  else
    for known in pairs(record) do
      if string.sub(known, 1, #field) == field then
        put(known, nil)
      end
    end
  end
end
local labels = 0
for field in pairs(record) do
  if string.sub(field, 1, 6) == 'label:' then
    labels = labels + 1
  end
end
if labels > tonumber(most) then
  return {'labels'}
end
if changed then
  raw = cjson.encode(record)
  redis.call('HSET', records, name, raw)
  tell(version, audit, who, what, name, details)
end
return {'changed', raw, now}
