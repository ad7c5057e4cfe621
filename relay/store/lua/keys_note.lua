-- Write a line of the audit log for what is changed elsewhere.
--
-- keys: audit. args: who, what, name, details. Returns the line's id. A repeat writes the line again.
return redis.call('XADD', KEYS[1], 'MAXLEN', '~', 100000, '*', 'who', ARGV[1], 'what', ARGV[2], 'name', ARGV[3], 'details', ARGV[4])
