-- claim: take a flight's lock for a call that is about to be published, or park its message behind the flight.
-- KEYS   record, index, order, messages, outboxes, latest, ended (of the entry)
-- ARGV   token (its random part), ttl ms, member of the index, host, pid, thread, task, entry, mode,
--        message (empty: do not park), 1 if it is to replace the message that waits as this entry, 1 if later calls may
--        replace it
-- Returns {'own', fence}
--         {'busy', ms left, 0, host, pid, thread, task, entry whose message a call replaces}
--         {'parked'}
--         {'next', entry, sequence, message}  parked, and the lock handed to this entry, which is to be published
--         {'gone'}    the entry to replace is not waiting any more
--         {'over'}    the token was cancelled
local random, ttl, member, entry, mode, message = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[8], ARGV[9], ARGV[10]
local token, replaces, replaceable = claim_for(entry, random), ARGV[11] == '1', ARGV[12] == '1'
local field = read('t', 'f', 'd', 'a', 'qh', 'k', 'x0', 'x1', 'x2', 'x3', 'x4', 'x5', 'x6', 'x7')
local holder, fence, deadline, newest = field[1], field[2], number(field[3]), number(field[4])
if cancelled(token, field, 7) then return {'over'} end

local held = holder and deadline > now
local mine = held and holder == token
local waits
if field[5] and not held then
  local first, _, more = first_waiter()
  waits = first or more
end
-- Where runs have an order, a call does not pass those that a dead flight left behind.
local ordered = mode == 'wait' or mode == 'rerun'
local behind = not held and ordered and redis.call('ZCARD', order) > 0

local waiting = ''
if mode == 'rerun' then
  local rerun = redis.call('HGET', messages, 'rerun')
  if rerun and redis.call('ZSCORE', order, rerun) then waiting = rerun end
end
if replaces and entry ~= waiting then return {'gone'} end

-- A request with a message may come again, as its answer was lost, when that has left the outbox: on its way, or run.
if message ~= '' and not (mine or replaces) then
  local handed = held and handed_before(holder, random)
  if handed then return handed end
  local flies = held and field[6] == ARGV[7] and entry == ARGV[7] .. ':0'  -- what follows a run has another attempt
  if flies or redis.call('EXISTS', KEYS[7]) == 1 then return {'parked'} end
end

if mine or not (held or waits or behind) then
  if not mine then
    redis.call('DEL', KEYS[7])  -- a task id that is used again
    fence, deadline = text(new_place(fence, mode)), 0
  end
  deadline = math.max(deadline, now + ttl)
  redis.call('HSET', record, 't', token, 'f', fence, 'd', text(deadline),
    'h', ARGV[4], 'p', ARGV[5], 'r', ARGV[6], 'k', ARGV[7], 's', text(now))
  if mode == 'rerun' then redis.call('HSET', record, 'g', fence) end
  expire(deadline, newest)
  redis.call('ZADD', KEYS[2], 'NX', text(now), member)
  return {'own', tonumber(fence)}
end

if message == '' then
  local owner = held and read('h', 'p', 'r', 'k') or {'', '', '', ''}
  redis.call('DEL', KEYS[7])
  return {'busy', held and deadline - now or 0, 0, owner[1], owner[2], owner[3], owner[4], waiting}
end
local stored = park(entry, message, mode, fence, member, 0, replaces)
if stored and replaceable then redis.call('HSET', messages, 'rerun', entry) end
return behind and not waits and hand_over(random, mode, fence, newest, ttl, member) or {'parked'}
