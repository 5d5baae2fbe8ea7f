-- drain: hand a lock that nobody holds to the first of the messages that a flight left behind.
-- KEYS   record, index, order, messages, outboxes, latest
-- ARGV   token (its random part), ttl ms, member of the index, ms after which a message that was handed the lock and
--        is still stored is to be published again
-- Returns {'next', entry, sequence, message}  to be published: the lock is its claim
--         {'busy'}     a flight or a waiter has the lock
--         {'empty'}    nothing is parked
local random, ttl, member, grace = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local field = read('t', 'f', 'd', 'a', 'qh', 's')
local holder, deadline = field[1], number(field[3])
local held = holder and deadline > now
local stored = redis.call('HMGET', messages, 'mode', 'next')
local mode, next = stored[1], stored[2]

if redis.call('ZCARD', order) == 0 then
  redis.call('ZREM', outboxes, member)
  return {'empty'}
end
if held then
  local claim = random_of(holder)
  local again = claim and (claim == random or number(field[6]) <= now - grace)
  if again and next and redis.call('ZSCORE', order, next) then return next_is(next) end
  return {'busy'}
end
if field[5] then
  local first, _, more = first_waiter()
  if first or more then return {'busy'} end
end
return hand_over(random, mode, field[2], number(field[4]), ttl, member)
