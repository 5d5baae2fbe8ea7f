-- start: take a flight's lock for the run of a message that has arrived, or park the message behind the flight.
-- KEYS   record, index, order, messages, outboxes, ended (of the entry)
-- ARGV   token, ttl ms, member of the index, host, pid, thread, task, entry, mode, message (empty: do not park),
--        the task of whose flight it is a duplicate (empty: of none), 1 if the message may be a copy
-- Returns {'own', fence}
--         {'busy', ms left, 0, host, pid, thread, task}
--         {'parked', ms left, 0, host, pid, thread, task}
--         {'apart'}   the flight of which it is a duplicate does not hold the lock any more
--         {'ended'}   the message is a copy: its run has ended
--         {'over'}    the token was cancelled
local token, ttl, member, task, entry, mode = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[7], ARGV[8], ARGV[9]
local message, flight, copy = ARGV[10], ARGV[11], ARGV[12] == '1'
local field = read('t', 'f', 'd', 'a', 'qh', 'k', 'x0', 'x1', 'x2', 'x3', 'x4', 'x5', 'x6', 'x7')
local holder, fence, deadline, newest, owner = field[1], field[2], number(field[3]), number(field[4]), field[6]
local held = holder and deadline > now
local mine = held and holder == token

if copy and not mine and redis.call('EXISTS', KEYS[6]) == 1 then
  forget(entry, member)
  return {'ended'}
end
if cancelled(token, field, 7) then return {'over'} end

local claimed = held and is_claim_of(entry, holder, owner)
if flight ~= '' and not mine and not claimed and not (held and owner == flight) then
  return {'apart'}
end
local waits
if field[5] and not held then
  local first, _, more = first_waiter()
  waits = first or more
end

if mine or claimed or not (held or waits) then
  local since = {}
  if not mine then
    fence, deadline, since = flight_fence(fence), 0, {'s', text(now)}
  end
  deadline = math.max(deadline, now + ttl)
  expire(deadline, newest)  -- first: full memory must not keep a claim from being taken over
  redis.call('HSET', record, 't', token, 'f', fence, 'd', text(deadline),
    'h', ARGV[4], 'p', ARGV[5], 'r', ARGV[6], 'k', task, unpack(since))
  if mode == 'rerun' and not (mine or claimed) then redis.call('HSET', record, 'g', 0) end
  expire(deadline, newest)
  forget(entry, member)
  redis.call('ZADD', KEYS[2], 'NX', text(now), member)
  return {'own', tonumber(fence)}
end

local status = 'busy'
if message ~= '' then
  park(entry, message, mode, fence, member)
  status = 'parked'
end
local whose = held and read('h', 'p', 'r', 'k') or {'', '', '', ''}
return {status, held and deadline - now or 0, 0, whose[1], whose[2], whose[3], whose[4]}
