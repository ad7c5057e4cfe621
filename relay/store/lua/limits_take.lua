-- A request asks for its share of the limits of one scope: it gets all of it, or none.
--
-- KEYS  1 open: sorted set, id of a request → end of its lease in µs
--       2 requests: string "at level"; the level is how many requests have not come back at the time `at` in µs, in
--         60,000,000ths: so at any rate of r a minute exactly r of them come back in a µs
--       3 tokens, 4 characters: hashes, slot of 5 s → how many were taken in it
-- ARGV  1 id  2 length of the lease in µs  3 how many may be open  4 requests a minute  5 how many of them at once
--       6 tokens a minute  7 tokens of this request  8 characters a minute  9 characters of this request
--       A limit of 0 is none. No limit is above 100,000,000, and no share above its limit.
-- Returns { who refused it: 0 nobody, 1 open, 2 requests, 3 tokens, 4 characters; when it was taken, or now, in µs;
--       how many are open; the level; tokens taken, µs until the share fits, µs until none is taken; the same of characters }
--       as things stand afterwards.
--
-- A refusal takes nothing. A repeat with the id of a request whose lease lasts is let in, and changes nothing.
-- Every number stays a whole one below 2^53, but for products that are only compared with smaller ones: all is exact.

local MINUTE = 60000000
local SLOT = 5000000
local SLOTS = 12

local id, lease = ARGV[1], tonumber(ARGV[2])
local most, rate, burst = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local slot = (now - math.fmod(now, SLOT)) / SLOT

local function whole(number)
  return string.format('%.0f', number)
end

-- What was taken of an amount in the last minute: it counts until its slot is 13 back, so for 60 to 65 s. Slots that lie
-- ahead are from before the clock was set back; by more than a minute, and they are forgotten.
local function window(key, limit, share)
  local state = { taken = 0, wait = 0, reset = 0, old = {} }
  if limit == 0 then
    return state
  end
  local slots, taken = {}, {}
  local fields = redis.call('HGETALL', key)
  for i = 1, #fields, 2 do
    local at = tonumber(fields[i])
    if math.abs(at - slot) <= SLOTS then
      local amount = tonumber(fields[i + 1])
      if amount > 0 then
        slots[#slots + 1] = at
        taken[at] = amount
        state.taken = state.taken + amount
      end
    else
      state.old[#state.old + 1] = fields[i]
    end
  end
  table.sort(slots)
  local left = state.taken
  for _, at in ipairs(slots) do
    local free = (at + SLOTS + 1) * SLOT - now
    if left + share > limit then
      state.wait = free
    end
    left = left - taken[at]
    state.reset = free
  end
  return state
end

redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', whole(now))
-- From before the clock was set back: who lives renews them.
redis.call('ZREMRANGEBYSCORE', KEYS[1], '(' .. whole(now + 2 * lease), '+inf')
local open = redis.call('ZCARD', KEYS[1])
local ends = redis.call('ZSCORE', KEYS[1], id)

-- The level stays when the clock is set back: nobody gains by that, and nobody waits for the clock to come forward again.
local level = 0
local was = rate > 0 and redis.call('GET', KEYS[2])
if was then
  local at, rest = string.match(was, '^(%d+) (%d+)$')
  local elapsed = now - tonumber(at)
  level = math.max(0, tonumber(rest) - rate * math.max(0, elapsed))
  if elapsed < 0 then
    redis.call('SET', KEYS[2], whole(now) .. ' ' .. rest, 'KEEPTTL')
  end
end

local shares = { tonumber(ARGV[7]), tonumber(ARGV[9]) }
local windows = { window(KEYS[3], tonumber(ARGV[6]), shares[1]), window(KEYS[4], tonumber(ARGV[8]), shares[2]) }

local refused = 0
if ends then
  now = tonumber(ends) - lease
elseif most > 0 and open >= most then
  refused = 1
elseif rate > 0 and level + MINUTE > burst * MINUTE then
  refused = 2
elseif windows[1].wait > 0 then
  refused = 3
elseif windows[2].wait > 0 then
  refused = 4
else
  open = open + 1
  redis.call('ZADD', KEYS[1], whole(now + lease), id)
  redis.call('PEXPIREAT', KEYS[1], whole(math.ceil((now + lease) / 1000) + 1))
  if rate > 0 then
    level = level + MINUTE
    redis.call('SET', KEYS[2], whole(now) .. ' ' .. whole(level), 'PXAT', whole(math.ceil((now + level / rate) / 1000) + 1))
  end
  for i, state in ipairs(windows) do
    if tonumber(ARGV[4 + 2 * i]) > 0 then
      local key = KEYS[2 + i]
      if #state.old > 0 then
        redis.call('HDEL', key, unpack(state.old))
      end
      if shares[i] > 0 then
        redis.call('HINCRBY', key, whole(slot), whole(shares[i]))
        state.taken = state.taken + shares[i]
        state.reset = math.max(state.reset, (slot + SLOTS + 1) * SLOT - now)
      end
      redis.call('PEXPIREAT', key, whole((slot + 2 * SLOTS + 1) * SLOT / 1000))
    end
  end
end

return {
  refused, now, open, level,
  windows[1].taken, windows[1].wait, windows[1].reset, windows[2].taken, windows[2].wait, windows[2].reset
}
