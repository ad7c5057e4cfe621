-- Keys in the order of their names, as bytes. Changes nothing.
--
-- keys: names, records. args: the name after which to begin, or ""; how many.
-- Returns {now in ms, name, record, name, record …}.
local names, records = unpack(KEYS)
local first, count = ARGV[1], ARGV[2]

local from = '-'
if first ~= '' then
  from = '(' .. first
end
local answer = {now}
for _, name in ipairs(redis.call('ZRANGEBYLEX', names, from, '+', 'LIMIT', 0, count)) do
  answer[#answer + 1] = name
  answer[#answer + 1] = redis.call('HGET', records, name)
end
return answer
