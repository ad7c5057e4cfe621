-- A request has ended: its lease is given up, and what it took of tokens and characters becomes what it used.
--
-- KEYS  1 open  2 tokens  3 characters; as in limits_take
-- ARGV  1 id  2 when it was taken, in µs  3 tokens it took  4 tokens it used  5, 6 the same of characters
-- Returns 1 if it had a lease, 0 if not.
--
-- What was not used is given back where it was taken, if that counts still; what was used beyond is taken now. Without a
-- lease nothing is changed: so a repeat does nothing, nor does one whose lease has run out and was swept.

local SLOT = 5000000
local SLOTS = 12

local id, taken_at = ARGV[1], tonumber(ARGV[2])

if redis.call('ZREM', KEYS[1], id) == 0 then
  return 0
end

local function whole(number)
  return string.format('%.0f', number)
end

local function slot_of(time)
  return (time - math.fmod(time, SLOT)) / SLOT
end

local time = redis.call('TIME')
local slot = slot_of(tonumber(time[1]) * 1000000 + tonumber(time[2]))

for i = 2, 3 do
  local took, used = tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])
  if used < took then
    local field = whole(slot_of(taken_at))
    local there = tonumber(redis.call('HGET', KEYS[i], field) or 0)
    if there > 0 then
      redis.call('HINCRBY', KEYS[i], field, whole(-math.min(there, took - used)))
    end
  elseif used > took then
    redis.call('HINCRBY', KEYS[i], whole(slot), whole(used - took))
    redis.call('PEXPIREAT', KEYS[i], whole((slot + 2 * SLOTS + 1) * SLOT / 1000))
  end
end
return 1
