-- release: give up a lease or a place in the queue, and hand a free lock to the first live waiter.
-- Also cancels an acquire and, with the token that an operator was shown, releases by force.
-- KEYS   record
-- ARGV   token, mark (1: answer its later requests 'over'), member, index, start of the wake keys
-- Returns 'released', 'handed' or 'not owner' (which includes a lease past its deadline)
--
-- Only the record is declared, so that a lease can be given up while its slot migrates. The other keys
-- come last, under pcall, since touching one that is absent here would end the script in the middle.
local MARK_LIFE = 60000

local token, mark, member, index, wakes = ARGV[1], ARGV[2] == '1', ARGV[3], ARGV[4], ARGV[5]
local field = read('t', 'f', 'd', 'a', 'qh')
local holder, fence, deadline, newest, queue = field[1], field[2], number(field[3]), number(field[4]), field[5]
local mine = holder == token
local answer = mine and deadline > now and 'released' or 'not owner'

if mine then
  redis.call('HDEL', record, 't', 'd', 'h', 'p', 'r', 'k', 's')
  holder = nil
end
if queue then leave_queue(token) end

local next, more
if not holder or deadline <= now then
  next, deadline, more = hand_on(queue, fence)
  if next and answer == 'released' then answer = 'handed' end
end

if mark then
  local place, soonest = 0, math.huge  -- its own, so that a repeated cancel ends no other's; else the oldest
  for i, entry in ipairs(read('x0', 'x1', 'x2', 'x3', 'x4', 'x5', 'x6', 'x7')) do
    local ended, ends = (entry or ''):match('^(.*):(%d+)$')
    if ended == token then
      place = i - 1
      break
    elseif number(ends) < soonest then
      place, soonest = i - 1, number(ends)
    end
  end
  redis.call('HSET', record, 'x' .. place, token .. ':' .. text(now + MARK_LIFE))
  newest = math.max(newest, now + MARK_LIFE)
  redis.call('HSET', record, 'a', text(newest))
end
expire(deadline, newest)

if next then
  wake(wakes .. next)
elseif deadline <= now and not more then
  redis.pcall('ZREM', index, member)
end
return answer
