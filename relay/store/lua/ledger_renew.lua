-- A stream lives: its lease begins anew, and its reservation is extended if need be.
--
-- KEYS     of ledger_account
-- ARGV     1 grant  2 lease, ms  3 id  4 spent so far  5 want, in all
-- returns  {1, amount}, in all; or {-1, charged, balance} if the id is settled
-- repeat   answers the same amount, or more if there is more by now.
--
-- One that was swept, or got lost in a failover, is opened again: the balance gives back what the sweep charged.

local id, spent, want = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
grant_once(tonumber(ARGV[1]))
sweep()
local amount, known = living(id)
if not amount then
  local kind, charged = recall(id)
  if kind == 'settled' then
    save()
    return {-1, charged, balance}
  elseif kind == 'swept' then
    reopen(id, charged)
  end
  amount, known = charged or 0, charged or 0
end
amount = extend(id, amount, want, math.max(known, spent), tonumber(ARGV[2]))
save()
return {1, amount}
