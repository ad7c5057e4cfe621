-- Lines of the audit log, the latest first. Changes nothing.
--
-- keys: audit. args: the id before which to begin, or ""; how many. Returns {{id, {field, value …}} …}.
local last = '+'
if ARGV[1] ~= '' then
  last = '(' .. ARGV[1]
end
return redis.call('XREVRANGE', KEYS[1], last, '-', 'COUNT', ARGV[2])
