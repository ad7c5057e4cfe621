-- How an account stands. Leases that have ended are charged; nothing else is written, and nothing created.
--
-- KEYS     of ledger_account
-- ARGV     -
-- returns  {balance, reserved, used, granted or -1 before the first use, leases swept, 1 if there may be more of those}
-- repeat   looks again.

local swept, more = 0, true
for _ = 1, 10 do
  local count
  more, count = sweep()
  swept = swept + count
  if not more then
    break
  end
end
if swept > 0 then
  save()
end
return {balance, reserved, used, granted or -1, swept, more and 1 or 0}
