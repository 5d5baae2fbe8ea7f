-- sweep: put one lock's record and its index entry in order. Never touches a live lease or waiter.
-- KEYS   record, index
-- ARGV   member of the index
-- Returns 'kept' or 'removed' (the index entry of a lock nobody holds or waits for)
local field = read('t', 'd', 'a')
local deadline = number(field[2])
local held = field[1] and deadline > now
local waiting, _, more = first_waiter()
if redis.call('PTTL', record) == -1 then
  expire(deadline, number(field[3]))
end
if held or waiting or more then
  redis.call('ZADD', KEYS[2], 'NX', text(now), ARGV[1])
  return 'kept'
end
redis.call('ZREM', KEYS[2], ARGV[1])
return 'removed'
