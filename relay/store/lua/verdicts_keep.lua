-- Keeps what a moderator has said of a text. KEYS 1 the verdict. ARGV 1 the verdict  2 for how long, in ms. A repeat does the
-- same.
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
