-- A process asks for slots on a moderator's account: how many calls it may begin within the next moments.
--
-- KEYS  1 hash: at (µs), slots, rate (calls a second), fell_at (µs)
--       2 hash, id of a process → "seen_at wanted credit"
-- ARGV  1 id of the process  2 how many it wants  3 how many of those it got before it gives back unused
--       4 whether the service has said that there were too many: 1 or 0
--       5 calls a second at most  6 slots at once at most  7 the least that the rate falls to  8 how much faster it gets in
--       every second after it fell
-- Returns { how many it gets, the rate in thousandths of a call a second }.
--
-- The account is a bucket whose rate yields, as in relay/pure/pace.py. Of what flows into it each process that has asked
-- lately has a credit, in the proportion of what they want: so it does not matter who asks first, nor how often.
-- Never to be repeated: it would take slots that nobody uses, and give back twice what was unused.

local LIVES = 150000
local SECOND = 1000000
local FALL = 0.7

local id, want, unused = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local most, burst, least, recovery = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])

local time = redis.call('TIME')
local now = tonumber(time[1]) * SECOND + tonumber(time[2])

local state = redis.call('HMGET', KEYS[1], 'at', 'slots', 'rate', 'fell_at')
local at, slots = tonumber(state[1] or now), tonumber(state[2] or burst)
local rate, fell_at = math.min(most, tonumber(state[3] or most)), tonumber(state[4] or 0)
if now < at then
  at, fell_at = now, math.min(fell_at, now)
end
local elapsed = (now - at) / SECOND
slots = math.min(burst, slots + rate * elapsed + unused)
rate = math.min(most, rate + recovery * math.max(0, now - math.max(at, fell_at + SECOND)) / SECOND)
if ARGV[4] == '1' then
  slots = math.min(0, slots)
  if now >= fell_at + SECOND then
    rate = math.max(least, rate * FALL)
    fell_at = now
  end
end

local wanted, credit, seen_at = want, nil, nil
local others = {}
local all = redis.call('HGETALL', KEYS[2])
for i = 1, #all, 2 do
  local seen, wants, has = string.match(all[i + 1], '^(%S+) (%S+) (%S+)$')
  seen = tonumber(seen)
  if math.abs(now - seen) > LIVES then
    redis.call('HDEL', KEYS[2], all[i])
  elseif all[i] == id then
    seen_at, credit = seen, tonumber(has)
  elseif tonumber(wants) > 0 then
    wanted = wanted + tonumber(wants)
    others[#others + 1] = { seen = seen, wants = tonumber(wants), has = tonumber(has) }
  end
end
local share = wanted > 0 and want / wanted or 0
if credit then
  credit = credit + rate * share * math.max(0, now - seen_at) / SECOND
else
  credit = slots * share
end
if ARGV[4] == '1' then
  credit = math.min(0, credit)
end
credit = math.max(-burst, math.min(burst, credit + unused))
-- Whoever has the most credit may have one in advance: slots that nobody takes would flow over.
local first = true
for _, other in ipairs(others) do
  if other.has + rate * other.wants / wanted * math.max(0, now - other.seen) / SECOND > credit then
    first = false
  end
end
-- What is a slot but for the rounding of sums is one.
local granted = math.floor(credit + 1e-9)
if first then
  granted = math.max(1, granted)
end
granted = math.max(0, math.min(want, math.floor(slots + 1e-9), granted))

redis.call('HSET', KEYS[1], 'at', string.format('%.0f', now), 'slots', string.format('%.17g', slots - granted),
  'rate', string.format('%.17g', rate), 'fell_at', string.format('%.0f', fell_at))
redis.call('HSET', KEYS[2], id, string.format('%.0f %.0f %.17g', now, want, credit - granted))
redis.call('PEXPIRE', KEYS[1], 60000)
redis.call('PEXPIRE', KEYS[2], 60000)
return { granted, math.floor(rate * 1000 + 0.5) }
