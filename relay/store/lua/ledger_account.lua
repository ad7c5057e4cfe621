-- One account of the ledger: the beginning of every script that reads or books (`relay.ledger` puts them together).
--
-- KEYS  1 book     hash: balance; reserved, the sum of what is open; used, the sum of what was charged; granted at first use
--       2 open     hash: id of a reservation → "amount spent"
--       3 leases   sorted set: id of a reservation → ms at which its lease ends
--       4 closed   hash, of even days: id → "settled charged short" or "swept charged 0"; under "" which day it is
--       5 closed   hash, of odd days
--       6 entries  stream: kind, amount, balance after it, id, note
--       7 topups   hash, for ever: idempotency key → amount (for ledger_top_up alone)
--
-- balance ≥ reserved at any time. A lease that has ended is charged what was last known to be spent, at most what was
-- reserved, by whichever script comes next. As that frees the rest and takes nothing, a script that has enough need not
-- look at all of them; one that has not goes on until it has, or until none is left.
--
-- What an id came to is remembered for 24 to 48 hours: a day's hash goes when the day after the next begins one.
-- Numbers are integers below 2^53, which are exact here.

local BOOK, OPEN, LEASES, ENTRIES = KEYS[1], KEYS[2], KEYS[3], KEYS[6]
local CLOSED = {[0] = KEYS[4], [1] = KEYS[5]}
local DAY_MS = 86400000
local SWEEP = 20  -- leases at a time
local KEPT = 10000  -- entries, or a few more

local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)

local book = redis.call('HMGET', BOOK, 'balance', 'reserved', 'used', 'granted')
local balance, reserved, used = tonumber(book[1] or 0), tonumber(book[2] or 0), tonumber(book[3] or 0)
local granted = book[4] and tonumber(book[4])  -- false before the first use

local function int(number)  -- Lua writes 1e+15 where it is left to itself
  return string.format('%.0f', number)
end

local function save()
  redis.call('HSET', BOOK, 'balance', int(balance), 'reserved', int(reserved), 'used', int(used), 'granted', int(granted))
end

local function enter(kind, amount, id, note)
  if amount ~= 0 then
    balance = balance + amount
    redis.call('XADD', ENTRIES, 'MAXLEN', '~', KEPT, '*',
      'kind', kind, 'amount', int(amount), 'balance', int(balance), 'id', id, 'note', note)
  end
end

local function charge(kind, amount, id, note)  -- less than nothing is given back
  enter(kind, -amount, id, note)
  used = used + amount
end

local function grant_once(grant)
  if not granted then
    granted = grant
    enter('grant', grant, '', '')
  end
end

local function held(id)  -- amount, spent; or nothing
  local found = redis.call('HGET', OPEN, id)
  if found then
    local amount, spent = string.match(found, '^(%d+) (%d+)$')
    return tonumber(amount), tonumber(spent)
  end
end

local function bury(id, kind, charged, short)
  local day = math.floor(now / DAY_MS)
  local hash = CLOSED[day % 2]
  local begun = redis.call('HGET', hash, '')
  if not begun or tonumber(begun) < day then
    redis.call('UNLINK', hash)
    redis.call('HSET', hash, '', int(day))
    redis.call('PEXPIREAT', hash, int((day + 2) * DAY_MS))  -- an account that nobody uses forgets too
  end
  redis.call('HSET', hash, id, kind .. ' ' .. int(charged) .. ' ' .. int(short))
end

local function recall(id)  -- kind, charged, short; or nothing
  local found = redis.call('HGET', CLOSED[0], id) or redis.call('HGET', CLOSED[1], id)
  if found then
    local kind, charged, short = string.match(found, '^(%l+) (%d+) (%d+)$')
    return kind, tonumber(charged), tonumber(short)
  end
end

local function forget(id)
  redis.call('HDEL', CLOSED[0], id)
  redis.call('HDEL', CLOSED[1], id)
end

local function sweep_one(id)
  local amount, spent = held(id)
  local charged = math.min(amount, spent)
  reserved = reserved - amount
  charge('sweep', charged, id, '')
  bury(id, 'swept', charged, 0)
  redis.call('HDEL', OPEN, id)
  redis.call('ZREM', LEASES, id)
end

local function sweep()  -- whether there may be more, and how many it were
  local ids = redis.call('ZRANGE', LEASES, '-inf', int(now), 'BYSCORE', 'LIMIT', 0, SWEEP)
  for _, id in ipairs(ids) do
    sweep_one(id)
  end
  return #ids == SWEEP, #ids
end

local function living(id)  -- as `held`, but nothing if its lease has ended, be it swept yet or not
  local amount, spent = held(id)
  if amount and tonumber(redis.call('ZSCORE', LEASES, id)) <= now then
    sweep_one(id)
    return nil
  end
  return amount, spent
end

local function available(need)  -- exact if less than `need`
  local more = balance - reserved < need
  while more do
    more = sweep() and balance - reserved < need
  end
  return balance - reserved
end

local function reopen(id, charged)  -- what was swept is a reservation again
  forget(id)
  charge('correction', -charged, id, '')
  reserved = reserved + charged
end

local function extend(id, amount, want, spent, lease_ms)  -- the new amount: `want`, or as much of it as there is
  local more = math.max(want - amount, 0)
  more = math.min(more, available(more))
  reserved = reserved + more
  redis.call('HSET', OPEN, id, int(amount + more) .. ' ' .. int(spent))
  redis.call('ZADD', LEASES, int(now + lease_ms), id)
  return amount + more
end

-- End of the part that all have.

