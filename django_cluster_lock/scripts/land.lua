-- land: end a flight. Gives the parked messages that it settles, hands the lock to the next one, or frees it.
-- To be called again, with what was published, until the answer is not 'settle'. Repeated, it answers the same.
-- KEYS   record, index, order, messages, outboxes, latest, ended (of the entry), ended (of the one it is kept for, or
--        of the same again)
-- ARGV   token, ttl ms of a claim, ttl ms of a lease, member of the index, start of the wake keys, mode, entry, random
--        part of the token of a claim that follows, 1 if the entry's own claim counts too, what `ended` is to have
--        (empty: the run has not ended for good), the outcome that settles others (empty: none), entry that the lock is
--        kept for (empty: none), place of the run's call (0: not known), then entries that were published, each with
--        its sequence
-- Returns {'settle', entry, sequence, message, ...}  to be published with the outcome; the lock is still held
--         {'next', entry, sequence, message}         to be published: the lock is its claim now
--         {'kept'} {'handed'} {'released'}           for a message under way, to a waiter, to nobody
--         {'lost'}                                   the lock was not its any more; what is parked behind a free one is
--                                                    answered as 'next' all the same

local function remember(place, outcome)
  if number(place) >= math.max(latest_run(), 1) then
    redis.call('SET', latest, place .. ' ' .. outcome, 'PX', ENDED_LIFE)
  end
end

local token, claim_ttl, lease_ttl, member = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local wakes, mode, entry, random = ARGV[5], ARGV[6], ARGV[7], ARGV[8]
local by_claim, ended, outcome, kept, place = ARGV[9] == '1', ARGV[10], ARGV[11], ARGV[12], ARGV[13]
local field = read('t', 'f', 'd', 'a', 'qh', 'k')
local holder, fence, deadline, newest, queue = field[1], field[2], number(field[3]), number(field[4]), field[5]

expire(deadline, newest)  -- first, since full memory allows it: a flight must be able to end
if ended ~= '' then
  redis.call('SET', KEYS[7], ended, 'PX', ENDED_LIFE)
  forget(entry, member)
end
for i = 14, #ARGV, 2 do
  forget(ARGV[i], member, ARGV[i + 1])
end

if random_of(holder) == random then return handed_before(holder, random) or {'kept'} end
if not holder or not (holder == token or (by_claim and is_claim_of(entry, holder, field[6]))) then
  if mode == 'rerun' and outcome ~= '' then remember(place, outcome) end  -- an earlier call must not undo it
  local free = not (holder and deadline > now) and not queue
  return free and hand_over(random, mode, fence, newest, claim_ttl, member) or {'lost'}
end

if kept ~= '' and not has_ended(KEYS[8], number(place), true) then
  keep_for(kept, random, fence, newest, claim_ttl, member)
  if redis.call('ZSCORE', order, kept) then return next_is(kept) end
  return {'kept'}
end

if outcome ~= '' and (mode == 'join' or mode == 'rerun') then
  -- What was called after a run's own call wants another; joiners take what there is.
  local upto = '+inf'
  if mode == 'rerun' then
    remember(place, outcome)
    upto = '(' .. place
  end
  local found = redis.call('ZRANGEBYSCORE', order, '-inf', upto, 'LIMIT', 0, PAGE)
  if #found > 0 then
    deadline = math.max(deadline, now + lease_ttl)
    redis.call('HSET', record, 'd', text(deadline))
    expire(deadline, newest)
    local answer = {'settle'}
    for _, settled in ipairs(found) do
      for _, part in ipairs({going_out(settled)}) do answer[#answer + 1] = part end
    end
    return answer
  end
end

local handed = hand_over(random, mode, fence, newest, claim_ttl, member)
if handed then return handed end

redis.call('HDEL', record, 't', 'd', 'h', 'p', 'r', 'k', 's')
local next, alive, more = hand_on(queue, fence)
expire(alive, newest)
if next then
  wake(wakes .. next)
  return {'handed'}
end
if not more then redis.call('ZREM', KEYS[2], member) end
return {'released'}
