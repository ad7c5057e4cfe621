-- Admit a request: reserve a part of the balance for it, under a lease.
--
-- KEYS     of ledger_account
-- ARGV     1 grant  2 lease, ms  3 id  4 least  5 want
-- returns  {1, amount}; or {0, balance, available} if that is less than `least`; or {-1} if the id is settled
-- repeat   answers the same amount, reserves nothing more, and the lease begins anew. One that was refused is judged anew.

local id, least, want = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
grant_once(tonumber(ARGV[1]))
sweep()
local amount, spent = living(id)
if amount then
  want = amount
else
  local kind, charged = recall(id)
  if kind == 'settled' then
    save()
    return {-1}
  elseif kind == 'swept' then
    reopen(id, charged)
    amount, spent = charged, math.max(charged, least)
  elseif available(want) < least then
    save()
    return {0, balance, balance - reserved}
  else
    amount, spent = 0, least
  end
end
amount = extend(id, amount, want, spent, tonumber(ARGV[2]))
save()
return {1, amount}
