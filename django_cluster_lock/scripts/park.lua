-- What a claim with a message does, after claim.lua, whose locals it goes on with, and outbox.lua. The `ended` of its
-- entry is always among the keys.
local replaces, replaceable = ARGV[11] == '1', ARGV[12] == '1'
if replaces and entry ~= waiting then return {'gone'} end

-- A request may come again, as its answer was lost, when its message has left the outbox: on its way, or run.
if not (mine or replaces) then
  local handed = held and handed_before(holder, random)
  if handed then return handed end
  local flies = held and field[6] == ARGV[7] and entry == ARGV[7] .. ':0'  -- what follows a run has another attempt
  if flies or redis.call('EXISTS', KEYS[7]) == 1 then return {'parked'} end
end

if takes then return take() end
local stored = park(entry, message, mode, fence, member, 0, replaces)
if stored and replaceable then redis.call('HSET', messages, 'rerun', entry) end
return behind and not waits and hand_over(random, mode, fence, newest, ttl, member) or {'parked'}
