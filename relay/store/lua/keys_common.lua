-- What the scripts of the keys have in common: it is put before each of them, but for those of the audit log.

local time = redis.call('TIME')
-- In ms since 1970, as a number and as it is written.
local at = time[1] * 1000 + math.floor(time[2] / 1000)
local now = string.format('%.0f', at)

-- Something has changed: other processes look again, and the audit log says who did what.
local function tell(version, audit, who, what, name, details)
  redis.call('INCR', version)
  redis.call('XADD', audit, 'MAXLEN', '~', 100000, '*', 'who', who, 'what', what, 'name', name, 'details', details)
end

