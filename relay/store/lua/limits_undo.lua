-- A request that was let in here and not elsewhere gives back what it took, soon afterwards.
--
-- KEYS  1 open  2 requests  3 tokens  4 characters; as in limits_take
-- ARGV  1 id  2 length of the lease in µs  3 requests a minute, 0: no limit  4 tokens it took  5 characters it took
-- Returns 1 if it had taken something, 0 if not.
--
-- Of the request as much is given back as cannot have come back by itself meanwhile: whoever is refused a thousand times
-- gains nothing by it. Without a lease nothing is changed; so a repeat does nothing.

local MINUTE = 60000000
local SLOT = 5000000

local id, lease, rate = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

local ends = redis.call('ZSCORE', KEYS[1], id)
if not ends then
  return 0
end
redis.call('ZREM', KEYS[1], id)
local taken_at = tonumber(ends) - lease

local function whole(number)
  return string.format('%.0f', number)
end

local was = rate > 0 and redis.call('GET', KEYS[2])
if was then
  local time = redis.call('TIME')
  local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
  local at, level = string.match(was, '^(%d+) (%d+)$')
  level = math.max(0, tonumber(level) - rate * math.max(0, now - tonumber(at)))
  level = math.max(0, level - math.max(0, MINUTE - rate * math.max(0, now - taken_at)))
  redis.call('SET', KEYS[2], whole(now) .. ' ' .. whole(level), 'PXAT', whole(math.ceil((now + level / rate) / 1000) + 1))
end

local field = whole((taken_at - math.fmod(taken_at, SLOT)) / SLOT)
for i = 3, 4 do
  local took = tonumber(ARGV[i + 1])
  local there = took > 0 and tonumber(redis.call('HGET', KEYS[i], field) or 0) or 0
  if there > 0 then
    redis.call('HINCRBY', KEYS[i], field, whole(-math.min(there, took)))
  end
end
return 1
