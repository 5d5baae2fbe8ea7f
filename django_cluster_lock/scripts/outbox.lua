-- Shared by the scripts of single flight, after common.lua: the messages parked behind a flight.
--
-- KEYS   record, index, order, messages, outboxes, ended...
-- `order` has the entries ("task id:attempt") by sequence. `messages` has each entry's message, and the fields
-- 'mode' (what duplicates get, as the decorator says), 'next' (the entry that was handed the key last) and 'rerun' (the
-- one whose message later calls replace). `outboxes` tells which locks of the slot have entries.
-- `ended` is there for a while once that entry's run has ended, so that a copy of its message is known.
--
-- A claim is a lease for an entry that is on its way to a worker: its token is "~attempt~" and a random part, and the
-- record names the task. Whoever runs that entry may take the lock over. Every fence of a flight is higher than the
-- sequences of the entries that were parked before it. Where only the latest counts, the record's g is the fence that
-- the flight's claim had: what was parked after that wants another run, and all does if it had no claim.

local order, messages, outboxes = KEYS[3], KEYS[4], KEYS[5]
local OUTBOX_LIFE = 2592000000  -- ms, a month: parked messages must outlive what keeps them from being published
local ENDED_LIFE = 600000       -- ms for which a copy of an ended message is known
local PAGE = 64                 -- entries one call settles

local function claim_for(entry, random)
  return '~' .. entry:match(':([^:]*)$') .. '~' .. random
end

local function random_of(token)
  return token and token:match('^~[^~]*~(.*)$')
end

local function is_claim_of(entry, token, task)
  local attempt = token and token:match('^~([^~]*)~')
  return attempt and task .. ':' .. attempt == entry
end

local function last_sequence()
  return number(redis.call('ZREVRANGE', order, 0, 0, 'WITHSCORES')[2])
end

local function flight_fence(previous)
  return text(math.max(next_fence(previous), last_sequence() + 1))
end

-- An entry that has left; with a sequence only if it was not parked anew since.
local function forget(entry, member, sequence)
  local parked = redis.call('ZSCORE', order, entry)
  if parked and (not sequence or sequence == '' or tonumber(parked) == tonumber(sequence)) then
    redis.call('ZREM', order, entry)
    redis.call('HDEL', messages, entry)
    if redis.call('ZCARD', order) == 0 then
      redis.call('DEL', messages)
      redis.call('ZREM', outboxes, member)
    end
  end
end

-- Parks a message, or the one in its place; `anew` also gives it the place that it would have got now.
local function park(entry, message, mode, fence, member, anew)
  if anew or not redis.call('ZSCORE', order, entry) then
    redis.call('ZADD', order, text(math.max(last_sequence() + 1, number(fence) + 1, micros)), entry)
  end
  redis.call('HSET', messages, entry, message, 'mode', mode)
  redis.call('PEXPIRE', order, OUTBOX_LIFE)
  redis.call('PEXPIRE', messages, OUTBOX_LIFE)
  redis.call('ZADD', outboxes, 'NX', text(now), member)
end

local function told(entry)
  return entry, redis.call('ZSCORE', order, entry), redis.call('HGET', messages, entry)
end

-- Makes the lock the claim of an entry, for ttl.
local function keep_for(entry, random, fence, newest, ttl, member)
  expire(now + ttl, newest)
  redis.call('HDEL', record, 'h', 'p')
  redis.call('HSET', record, 't', claim_for(entry, random), 'f', flight_fence(fence), 'd', text(now + ttl),
    'r', 'queued', 'k', entry:match('^(.*):[^:]*$'), 's', text(now))
  redis.call('ZADD', KEYS[2], 'NX', text(now), member)
end

-- Hands the lock, which nobody holds, to an entry: the first, but the last where only the latest counts.
-- Nothing if there is none.
local function hand_over(random, mode, fence, newest, ttl, member)
  local entry = redis.call(mode == 'rerun' and 'ZREVRANGE' or 'ZRANGE', order, 0, 0)[1]
  if not entry then return end
  keep_for(entry, random, fence, newest, ttl, member)
  if mode == 'rerun' then redis.call('HSET', record, 'g', redis.call('HGET', record, 'f')) end
  redis.call('HSET', messages, 'next', entry)
  return {'next', told(entry)}
end
