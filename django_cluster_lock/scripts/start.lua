-- start: take a flight's lock for the run of a message that has arrived, or park the message behind the flight.
-- KEYS   record, index, order, messages, outboxes, latest, ended (of the entry)
-- ARGV   token, ttl ms, member of the index, host, pid, thread, task, entry, mode, message (empty: do not park),
--        the task of whose flight it is a duplicate (empty: of none), 1 if the message may be a copy,
--        place of its call (0: not known), ttl ms of a claim
-- Returns {'own', fence}
--         {'busy', ms left, 0, host, pid, thread, task}
--         {'parked', ms left, 0, host, pid, thread, task}
--         {'next', entry, sequence, message}  parked, and the lock handed to this entry, which is to be published
--         {'passed', outcome}  only the latest counts, and a run for a later call has had this outcome
--         {'apart'}   the flight of which it is a duplicate does not hold the lock any more
--         {'ended'}   its run, or that of a copy, has ended
--         {'over'}    the token was cancelled
local token, ttl, member, task, entry, mode = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[7], ARGV[8], ARGV[9]
local message, flight, copy = ARGV[10], ARGV[11], ARGV[12] == '1'
local place, claim_ttl = tonumber(ARGV[13]), tonumber(ARGV[14])
local field = read('t', 'f', 'd', 'a', 'qh', 'k', 'x0', 'x1', 'x2', 'x3', 'x4', 'x5', 'x6', 'x7')
local holder, fence, deadline, newest, owner = field[1], field[2], number(field[3]), number(field[4]), field[6]
local held = holder and deadline > now
local mine = held and holder == token

if not mine and has_ended(KEYS[7], place, copy) then
  forget(entry, member, place > 0 and place)  -- a later call with that task id may be parked as the same entry
  return {'ended'}
end
if cancelled(token, field, 7) then return {'over'} end
if mode == 'rerun' and place > 0 and not mine then
  local latest_place, outcome = latest_run()
  if latest_place > place then
    forget(entry, member)
    return {'passed', outcome}
  end
end

-- Where runs have an order: whether an arrival comes behind one of those that a dead flight left.
local function comes_behind()
  if mode == 'wait' then
    local first = redis.call('ZRANGE', order, 0, 0, 'WITHSCORES')
    return first[1] and first[1] ~= entry and (place == 0 or number(first[2]) < place)
  elseif mode == 'rerun' then
    local last = redis.call('ZREVRANGE', order, 0, 0, 'WITHSCORES')
    return last[1] and last[1] ~= entry and place > 0 and number(last[2]) > place
  end
end

local function answer(status)
  local whose = held and read('h', 'p', 'r', 'k') or {'', '', '', ''}
  return {status, held and deadline - now or 0, 0, whose[1], whose[2], whose[3], whose[4]}
end

local claimed = held and is_claim_of(entry, holder, owner)
if flight ~= '' and not mine and not claimed and not (held and owner == flight) then
  return {'apart'}
end
local waits
if field[5] and not held then
  local first, _, more = first_waiter()
  waits = first or more
end
local behind = not (held or waits) and comes_behind()

if mine or claimed or not (held or waits or behind) then
  -- If it is parked as well, it stays so until the run has ended: nobody may be waiting for this answer any more.
  local since = {}
  if not mine then
    fence, deadline, since = text(new_place(fence, mode)), 0, {'s', text(now)}
  end
  deadline = math.max(deadline, now + ttl)
  expire(deadline, newest)  -- first: full memory must not keep a claim from being taken over
  redis.call('HSET', record, 't', token, 'f', fence, 'd', text(deadline),
    'h', ARGV[4], 'p', ARGV[5], 'r', ARGV[6], 'k', task, unpack(since))
  expire(deadline, newest)
  redis.call('ZADD', KEYS[2], 'NX', text(now), member)
  return {'own', tonumber(fence)}
end

local handed = held and handed_before(holder, token)
if handed then return handed end
if message ~= '' then
  park(entry, message, mode, fence, member, place)
  -- It is not on its way any more: whoever has published it, and says so only now, must not have it dropped.
  if redis.call('HGET', messages, 'next') == entry then redis.call('HDEL', messages, 'next') end
  if behind then return hand_over(token, mode, fence, newest, claim_ttl, member) end
  return answer('parked')
end
return answer('busy')
