-- Shared by the scripts of single flight, after common.lua: what is kept of a flight, and the place of a call.
--
-- KEYS   record, index, order, messages, outboxes, latest, ended...
-- `order` has the entries ("task id:attempt") by sequence: the place of their call among the key's calls. `messages`
-- has each entry's message, and the fields 'mode' (what duplicates get, as the decorator says), 'next' (the entry that
-- was handed the key last, while its message is on its way) and 'rerun' (the one whose message later calls replace,
-- until it goes out for the first time). `outboxes` tells which locks of the slot have entries.
-- `latest`, where only the latest counts, is for a while the place of the latest call whose run had an outcome, and
-- that: "place outcome".
-- `ended` is there for a while once that entry's run has ended, so that a copy of its message is known: the place of
-- its call (0: not known), and "c" where a copy has run, so that the message itself may still come.
--
-- A claim is a lease for an entry that is on its way to a worker: its token is "~attempt~" and a random part, and the
-- record names the task. Whoever runs that entry may take the lock over. Every fence of a flight is higher than the
-- sequences of the entries that were parked before it. A call's place is the fence of its claim, or the sequence that
-- it was parked with first; its message tells it. Where only the latest counts, what has a later place than the call of
-- a run wants another run. A message that was sent without a call has the place of its start; a copy of one, which may
-- be older than anything, has place 0.

local order, messages, outboxes, latest = KEYS[3], KEYS[4], KEYS[5], KEYS[6]

local function claim_for(entry, random)
  return '~' .. entry:match(':([^:]*)$') .. '~' .. random
end

local function last_sequence()
  return number(redis.call('ZREVRANGE', order, 0, 0, 'WITHSCORES')[2])
end

local function flight_fence(previous)
  return text(math.max(next_fence(previous), last_sequence() + 1))
end

local function latest_run()
  local place, outcome = (redis.call('GET', latest) or ''):match('^(%d+) (.*)$')
  return number(place), outcome
end

-- Where only the latest counts, a new call comes after whatever has run, also if this server's clock lags behind.
local function new_place(fence, mode)
  local place = number(flight_fence(fence))
  return mode == 'rerun' and math.max(place, latest_run() + 1) or place
end
