-- Shared by the scripts of single flight, after places.lua: parking messages, and giving them the lock.

local OUTBOX_LIFE = 2592000000  -- ms, a month: parked messages must outlive what keeps them from being published
local ENDED_LIFE = 600000       -- ms for which a copy of an ended message is known
local PAGE = 64                 -- entries one call settles

local function random_of(token)
  return token and token:match('^~[^~]*~(.*)$')
end

local function is_claim_of(entry, token, task)
  local attempt = token and token:match('^~([^~]*)~')
  return attempt and task .. ':' .. attempt == entry
end

-- Whether a message's run has ended, by the `ended` of its entry: not if it is of a later call with that task id, nor
-- if it is no copy, since it may be replayed, unless a copy has run.
local function has_ended(key, place, copy)
  local own, copied = (redis.call('GET', key) or ''):match('^(%d+)(c?)$')
  if not own then return false end
  local ended = tonumber(own)
  if copy then return place == 0 or ended == 0 or place <= ended end
  return copied == 'c' and place > 0 and place <= ended
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

-- Parks a message at its place, or behind all others if that is 0. Of an entry that is parked already both stay as they
-- are, since a later call may have replaced its message, but for one that is parked `anew`. Whether it was stored.
local function park(entry, message, mode, fence, member, place, anew)
  local stores = anew or not redis.call('ZSCORE', order, entry)
  if stores then
    redis.call('ZADD', order, text(place == 0 and new_place(fence, mode) or place), entry)
    redis.call('HSET', messages, entry, message)
  end
  redis.call('HSET', messages, 'mode', mode)
  redis.call('PEXPIRE', order, OUTBOX_LIFE)
  redis.call('PEXPIRE', messages, OUTBOX_LIFE)
  redis.call('ZADD', outboxes, 'NX', text(now), member)
  return stores
end

-- What is to be published of an entry; no call may take its place any more.
local function going_out(entry)
  if redis.call('HGET', messages, 'rerun') == entry then redis.call('HDEL', messages, 'rerun') end
  return entry, text(redis.call('ZSCORE', order, entry)), redis.call('HGET', messages, entry)
end

local function next_is(entry)
  redis.call('HSET', messages, 'next', entry)
  redis.call('PEXPIRE', messages, OUTBOX_LIFE)
  return {'next', going_out(entry)}
end

-- Makes the lock the claim of an entry, for ttl.
local function keep_for(entry, random, fence, newest, ttl, member)
  expire(now + ttl, newest)  -- first: full memory must not keep a flight from ending
  redis.call('HDEL', record, 'h', 'p')
  redis.call('HSET', record, 't', claim_for(entry, random), 'f', flight_fence(fence), 'd', text(now + ttl),
    'r', 'queued', 'k', entry:match('^(.*):[^:]*$'), 's', text(now))
  expire(now + ttl, newest)  -- again: there may have been no record before
  redis.call('ZADD', KEYS[2], 'NX', text(now), member)
end

-- Hands the lock, which nobody holds, to an entry: the first, but the last where only the latest counts.
-- Nothing if there is none.
local function hand_over(random, mode, fence, newest, ttl, member)
  local entry = redis.call(mode == 'rerun' and 'ZREVRANGE' or 'ZRANGE', order, 0, 0)[1]
  if not entry then return end
  keep_for(entry, random, fence, newest, ttl, member)
  return next_is(entry)
end

-- What the lock was handed to by the same request before, if nobody has published that yet.
local function handed_before(holder, random)
  if random_of(holder) ~= random then return end
  local next = redis.call('HGET', messages, 'next')
  return next and redis.call('ZSCORE', order, next) and next_is(next)
end
