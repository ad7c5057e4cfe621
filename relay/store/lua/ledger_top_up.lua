-- Add to a balance, or take from it what is not reserved.
--
-- KEYS     of ledger_account
-- ARGV     1 grant  2 idempotency key  3 amount, may be below 0  4 note  5 what an account may get in all
-- returns  {1, balance}; {2, balance} if it is a repeat; {0, balance, available} if the balance would be less than what is
--          reserved, or the account would have got more than it may; {-1, amount} if the key is that of another amount
-- repeat   books nothing.

local TOP_UPS = KEYS[7]
local key, amount = ARGV[2], tonumber(ARGV[3])
local known = redis.call('HGET', TOP_UPS, key)
if known and tonumber(known) ~= amount then
  return {-1, tonumber(known)}
end
grant_once(tonumber(ARGV[1]))
sweep()
if not known then
  if available(-amount) + amount < 0 or balance + used + amount > tonumber(ARGV[5]) then
    save()
    return {0, balance, balance - reserved}
  end
  enter(amount < 0 and 'correction' or 'topup', amount, key, ARGV[4])
  redis.call('HSET', TOP_UPS, key, int(amount))
end
save()
return {known and 2 or 1, balance}
