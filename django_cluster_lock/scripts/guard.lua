-- guard: run a caller's script, unless a later lease of the lock has written here. It comes before all else, as the
-- function `guarded`.
-- KEYS   note, then the caller's
-- ARGV   fence, token, turn, then the caller's
-- Returns {'done', result}
--         {'failed', why}   the caller's script raised an error; what it had written before stays
--         {'stale', fence}  of the later lease; '0' if this one is older than later ones are remembered
--         {'late'}          the request was overtaken by one that its sender has made since
--
-- The note is one hash: f t the last lease's fence and token; n its turn. A turn ends when a request stays without an
-- answer: should that arrive yet, it must not undo what came after it. As in the database, the note may go when its
-- fence is KEPT old, since a lease that is older than that is refused anyhow.
--
-- For example, a handle sends a write in turn 0 and misses the answer: its next one is of turn 1. Once that is done,
-- the first is 'late'. Then a handle elsewhere takes the lease over, with a greater fence, and writes: whatever of the
-- first handle still arrives is 'stale'.
local AGE = 302400000000 -- µs, 3.5 days
local KEPT = 604800000   -- ms, 7 days

local fence, token, turn = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local field = read('f', 't', 'n')
local newest = number(field[1])
if newest > fence or (newest == fence and field[2] ~= token) then
  return {'stale', text(newest)}
end
if fence <= micros - AGE then
  return {'stale', '0'}
end
if newest == fence and turn < number(field[3]) then
  return {'late'}
end
redis.call('HSET', record, 'f', ARGV[1], 't', token, 'n', ARGV[3])
redis.call('PEXPIREAT', record, text(math.max(now, fence / 1000) + KEPT))

local keys, args = {}, {}
for i = 2, #KEYS do keys[i - 1] = KEYS[i] end
for i = 4, #ARGV do args[i - 3] = ARGV[i] end
local fine, result = pcall(guarded, keys, args)
local told = type(result) == 'table' and result.err
if not fine or told then
  return {'failed', told or tostring(result)}
end
return {'done', result}
