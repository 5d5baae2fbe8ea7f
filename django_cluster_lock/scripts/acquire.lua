-- acquire: take the lock, or keep a place in its queue. Polling repeats it.
-- KEYS   record, index
-- ARGV   token, ttl ms, alive ms (0: do not queue), member of the index, host, pid, thread, task
-- Returns {'own', fence}
--         {'queued', ms left of the lease, 1 if the first in the queue, host, pid, thread, task}
--         {'busy',   ms left of the lease, 0, host, pid, thread, task}
--         {'over'}   the token was cancelled
local token, ttl, alive, member = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local field = read('t', 'f', 'd', 'a', 'qh', 'x0', 'x1', 'x2', 'x3', 'x4', 'x5', 'x6', 'x7')
local holder, fence, deadline, newest, queue = field[1], field[2], number(field[3]), number(field[4]), field[5]

if cancelled(token, field, 6) then return {'over'} end

local held = holder and deadline > now
local mine = held and holder == token
local first, _, more
if queue and not mine and (alive > 0 or not held) then
  first, _, more = first_waiter()
end

if mine or (not held and not more and (not first or first == token)) then
  local existed, since = fence, {}
  if not mine then
    if queue then leave_queue(token) end
    fence, deadline = text(next_fence(fence)), 0
    since = {'s', text(now)}
  end
  deadline = math.max(deadline, now + ttl)
  if existed then expire(deadline, newest) end  -- first: full memory must not keep a waiter from its grant
  redis.call('HSET', record, 't', token, 'f', fence, 'd', text(deadline),
    'h', ARGV[5], 'p', ARGV[6], 'r', ARGV[7], 'k', ARGV[8], unpack(since))
  if not existed then expire(deadline, newest) end
  redis.call('ZADD', KEYS[2], 'NX', text(now), member)
  return {'own', tonumber(fence)}
end

local left = held and deadline - now or 0
if alive == 0 then
  return {'busy', left, 0, unpack(read('h', 'p', 'r', 'k'))}
end

local seq, until_ = waiter(redis.call('HGET', record, 'w' .. token))
if until_ <= now then
  leave_queue(token)
  seq = number(redis.call('HGET', record, 'qt'))
  redis.call('HSET', record, 'q' .. text(seq), token, 'qt', text(seq + 1))
  redis.call('HSETNX', record, 'qh', text(seq))
  first = first or (not more and token)
end
newest = math.max(newest, now + alive)
redis.call('HSET', record, 'w' .. token, text(seq) .. ':' .. text(now + alive), 'a', text(newest))
expire(deadline, newest)
redis.call('ZADD', KEYS[2], 'NX', text(now), member)
return {'queued', left, first == token and 1 or 0, unpack(read('h', 'p', 'r', 'k'))}
