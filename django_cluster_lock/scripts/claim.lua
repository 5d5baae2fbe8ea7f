-- claim: take a flight's lock for a call that is about to be published, or park its message behind the flight: park.lua
-- goes on with a message from where this ends.
-- KEYS   record, index, order, messages, outboxes, latest, ended (of the entry; left out where its task id is new)
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
local token = claim_for(entry, random)
local field = read('t', 'f', 'd', 'a', 'qh', 'k', 'x0', 'x1', 'x2', 'x3', 'x4', 'x5', 'x6', 'x7')
local holder, fence, deadline, newest = field[1], field[2], number(field[3]), number(field[4])
if cancelled(token, field, 7) then return {'over'} end

local held = holder and deadline > now
local mine = held and holder == token
local waits = false
if field[5] and not held then
  local first, _, more = first_waiter()
  waits = first or more
end
-- Where runs have an order, a call does not pass those that a dead flight left behind.
local ordered = mode == 'wait' or mode == 'rerun'
local behind = not held and ordered and redis.call('ZCARD', order) > 0
local takes = mine or not (held or waits or behind)

local waiting = ''
if mode == 'rerun' then
  local rerun = redis.call('HGET', messages, 'rerun')
  if rerun and redis.call('ZSCORE', order, rerun) then waiting = rerun end
end

local function forget_ending()  -- of a task id that is used again
  if KEYS[7] then redis.call('DEL', KEYS[7]) end
end

local function take()
  if not mine then fence, deadline = text(new_place(fence, mode)), 0 end
  deadline = math.max(deadline, now + ttl)
  redis.call('HSET', record, 't', token, 'f', fence, 'd', text(deadline),
    'h', ARGV[4], 'p', ARGV[5], 'r', ARGV[6], 'k', ARGV[7], 's', text(now))
  expire(deadline, newest)
  redis.call('ZADD', KEYS[2], 'NX', text(now), member)
  if not mine then forget_ending() end  -- last: full memory would allow what follows it
  return {'own', tonumber(fence)}
end

if message == '' then
  if takes then return take() end
  forget_ending()
  local owner = held and read('h', 'p', 'r', 'k') or {'', '', '', ''}
  return {'busy', held and deadline - now or 0, 0, owner[1], owner[2], owner[3], owner[4], waiting}
end
