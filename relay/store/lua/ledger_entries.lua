-- The entries of an account, newest first.
--
-- KEYS     1 entries, as in ledger_account
-- ARGV     1 how many at most  2 only those before this entry; "" for all
-- returns  {{place, {'kind', kind, 'amount', amount, 'balance', balance, 'id', id, 'note', note}}, …}; place: "ms-n"
-- repeat   reads again.

return redis.call('XREVRANGE', KEYS[1], ARGV[2] == '' and '+' or '(' .. ARGV[2], '-', 'COUNT', ARGV[1])
