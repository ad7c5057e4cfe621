-- A request is over: charge what it came to, and free the rest of its reservation.
--
-- KEYS     of ledger_account
-- ARGV     1 grant  2 id  3 amount  4 note
-- returns  {charged, short, balance, 1 if it is a repeat}: charged + short = amount; there was no balance for `short`
-- repeat   books nothing and answers the same charged and short, whatever amount it names.
--
-- After a sweep one entry corrects what that charged. Without a reservation (it got lost in a failover, or the request was
-- let in while the store was away) what is available pays.

local id, amount = ARGV[2], tonumber(ARGV[3])
grant_once(tonumber(ARGV[1]))
local reservation = held(id)
if reservation then  -- before the sweep: one that is late by less needs no correction
  reserved = reserved - reservation
  redis.call('HDEL', OPEN, id)
  redis.call('ZREM', LEASES, id)
end
sweep()
local booked, entry = 0, 'charge'
if not reservation then
  local kind, charged, short = recall(id)
  if kind == 'settled' then
    save()
    return {charged, short, balance, 1}
  elseif kind == 'swept' then
    forget(id)
    booked, entry = charged, 'correction'
  end
end
local charged = math.min(amount, booked + available(amount - booked))
charge(entry, charged - booked, id, ARGV[4])
bury(id, 'settled', charged, amount - charged)
save()
return {charged, amount - charged, balance, 0}
