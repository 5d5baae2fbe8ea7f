-- transfer: turn a lease into a new one, of another token, without letting go of the lock.
-- KEYS   record, index
-- ARGV   token, new token, ttl ms, member of the index, host, pid, thread, task
-- Returns {'own', fence} or {'lost'}. Repeated, it is a renewal.
local token, successor, ttl = ARGV[1], ARGV[2], tonumber(ARGV[3])
local field = read('t', 'f', 'd', 'a', 'x0', 'x1', 'x2', 'x3', 'x4', 'x5', 'x6', 'x7')
local holder, fence, deadline = field[1], field[2], number(field[3])
if deadline <= now or (holder ~= token and holder ~= successor) or cancelled(successor, field, 5) then
  return {'lost'}
end
if holder == successor then
  deadline = math.max(deadline, now + ttl)
else
  fence, deadline = text(next_fence(fence)), now + ttl
end
expire(deadline, number(field[4]))
redis.call('HSET', record, 't', successor, 'f', fence, 'd', text(deadline),
  'h', ARGV[5], 'p', ARGV[6], 'r', ARGV[7], 'k', ARGV[8], 's', text(now))
redis.call('ZADD', KEYS[2], 'NX', text(now), ARGV[4])
return {'own', tonumber(fence)}
