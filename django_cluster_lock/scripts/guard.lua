-- guard: run a caller's script, unless a later lease of the lock has written here. It comes before all else, as the
-- function `guarded`.
-- KEYS   note, then the caller's
-- ARGV   fence, token, session, turn, then the caller's
-- Returns {'done', result}
--         {'failed', why}   the caller's script raised an error; what it had written before stays
--         {'stale', fence}  of the later lease; '0' if this one is older than later ones are remembered
--         {'late'}          the request was overtaken by one that its sender has made since
--
-- The note is one hash: f t the last lease's fence and token; s who writes under it, n the turn, e who has before. A
-- turn ends when a request stays without an answer: should that arrive yet, it must not undo what came after it. As in
-- the database, the note may go when its fence is KEPT old, since a lease that is older than that is refused anyhow.
--
-- For example, a handle (session S) sends a write in turn 0 and misses the answer: its next one is of turn 1. Once that
-- is done, the first is 'late'. Then a handle elsewhere takes the lease over (session R), and writes: S joins e, and
-- whatever of S still arrives is 'late'.
local AGE = 302400000000 -- µs, 3.5 days
local KEPT = 604800000   -- ms, 7 days

local fence, token, session, turn = tonumber(ARGV[1]), ARGV[2], ARGV[3], tonumber(ARGV[4])
local field = read('f', 't', 's', 'n', 'e')
local newest, ended = number(field[1]), ''
if newest > fence or (newest == fence and field[2] ~= token) then
  return {'stale', text(newest)}
end
if fence <= micros - AGE then
  return {'stale', '0'}
end
if newest == fence then
  ended = field[5]
  if field[3] ~= session then
    if ended:find(session, 1, true) then return {'late'} end
    ended = ended .. field[3] .. ' '
  elseif turn < number(field[4]) then
    return {'late'}
  end
end
redis.call('HSET', record, 'f', ARGV[1], 't', token, 's', session, 'n', ARGV[4], 'e', ended)
redis.call('PEXPIREAT', record, text(math.max(now, fence / 1000) + KEPT))

local keys, args = {}, {}
for i = 2, #KEYS do keys[i - 1] = KEYS[i] end
for i = 5, #ARGV do args[i - 4] = ARGV[i] end
local fine, result = pcall(guarded, keys, args)
local told = type(result) == 'table' and result.err
if not fine or told then
  return {'failed', told or tostring(result)}
end
return {'done', result}
