-- attach: take over a lease that was detached. It begins anew: with another token, a new fence and its full time.
-- KEYS   record
-- ARGV   token that detach gave, the new token, ttl ms, host, pid, thread, task
-- Returns {'own', fence}
--         {'lost'}   the lease has ended, or was attached before
--         {'over'}   the new token was cancelled
-- Only the record is declared, so that a lease can be taken over while its slot migrates. The lock is in the index.
local old, token, ttl = ARGV[1], ARGV[2], tonumber(ARGV[3])
local field = read('t', 'f', 'd', 'a', 'x0', 'x1', 'x2', 'x3', 'x4', 'x5', 'x6', 'x7')
local holder, fence, deadline, newest = field[1], field[2], number(field[3]), number(field[4])
if cancelled(token, field, 5) then return {'over'} end

local again = holder == token
if deadline <= now or not (again or holder == old) then return {'lost'} end
local since = {}
if not again then
  fence, deadline, since = text(next_fence(fence)), 0, {'s', text(now)}
end
deadline = math.max(deadline, now + ttl)
expire(deadline, newest)  -- first: full memory must not end a lease
redis.call('HSET', record, 't', token, 'f', fence, 'd', text(deadline),
  'h', ARGV[4], 'p', ARGV[5], 'r', ARGV[6], 'k', ARGV[7], unpack(since))
return {'own', tonumber(fence)}
