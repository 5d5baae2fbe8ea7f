-- Shared by every script of the lock, prepended when they are loaded.
--
-- The record is one hash: t token, f fence, d deadline (ms of this server's clock), h p r k s the
-- owner's host, pid, thread, task and since when (ms); qh qt the queue's first and next sequence,
-- q<seq> a waiter's token, w<token> its "seq:alive until", a the newest alive-until; x0..x7 the
-- cancelled tokens, each "token:until".
--
-- A write that full memory allows (HDEL, PEXPIREAT) comes first wherever a lease is kept or given up.

local RETENTION = 2000  -- ms a record outlives its last lease and its last waiter
local WAKE_LIFE = 8000  -- ms, two of the longest slices
local SKIPS = 64        -- dead waiters one call steps over: scripts stay short, the next call goes on

local record = KEYS[1]
local clock = redis.call('TIME')
local micros = clock[1] * 1000000 + clock[2]
local now = math.floor(micros / 1000)

local function text(number)
  return string.format('%.0f', number)
end

local function number(value)
  return tonumber(value or 0)
end

local function read(...)
  return redis.call('HMGET', record, ...)
end

local function waiter(entry)
  if not entry then return nil, 0 end
  local seq, alive = entry:match('^(%d+):(%d+)$')
  return tonumber(seq), tonumber(alive)
end

-- Whether a token is among the cancelled ones; `marks` has x0..x7 from `first` on.
local function cancelled(token, marks, first)
  for i = first, first + 7 do
    if marks[i] then
      local ended, expires = marks[i]:match('^(.*):(%d+)$')
      if ended == token and tonumber(expires) > now then return true end
    end
  end
end

-- Fences grow while the record survives, and after its loss as far as the servers' clocks agree.
local function next_fence(previous)
  return math.max(number(previous) + 1, micros)
end

local function expire(deadline, alive)
  redis.call('PEXPIREAT', record, text(math.max(deadline, alive, now) + RETENTION))
end

-- The first live waiter: its token and alive-until. Dead ones before it are dropped, at most SKIPS of
-- them; `more` tells that the search stopped there.
local function first_waiter()
  local ends = read('qh', 'qt')
  local head, tail = number(ends[1]), number(ends[2])
  local first, skipped = head, 0
  local token, alive
  while head < tail do
    if skipped == SKIPS then break end
    local candidate = redis.call('HGET', record, 'q' .. text(head))
    if candidate then
      local _, candidate_alive = waiter(redis.call('HGET', record, 'w' .. candidate))
      if candidate_alive > now then
        token, alive = candidate, candidate_alive
        break
      end
      redis.call('HDEL', record, 'q' .. text(head), 'w' .. candidate)
    end
    head, skipped = head + 1, skipped + 1
  end
  if head > first then
    if head == tail then
      redis.call('HDEL', record, 'qh', 'qt')
    else
      redis.call('HSET', record, 'qh', text(head))
    end
  end
  return token, alive, not token and head < tail
end

local function leave_queue(token)
  local seq = waiter(redis.call('HGET', record, 'w' .. token))
  if seq then
    redis.call('HDEL', record, 'q' .. text(seq), 'w' .. token)
  end
  return seq
end
