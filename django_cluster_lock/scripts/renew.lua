-- renew: keep a lease. Never shortens it, never brings one back.
-- KEYS   record
-- ARGV   token, ttl ms
-- Returns {'ok', fence} or {'lost'}
local field = read('t', 'f', 'd', 'a')
local deadline = number(field[3])
if field[1] ~= ARGV[1] or deadline <= now then
  return {'lost'}
end
deadline = math.max(deadline, now + tonumber(ARGV[2]))
expire(deadline, number(field[4]))
redis.call('HSET', record, 'd', text(deadline))
return {'ok', tonumber(field[2])}
