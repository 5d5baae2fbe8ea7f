-- look: who holds the lock now. Changes nothing.
-- KEYS   record
-- Returns {'held', token, fence, ms left, host, pid, thread, task} or {'free'}
local field = read('t', 'f', 'd', 'h', 'p', 'r', 'k')
local left = number(field[3]) - now
if not field[1] or left <= 0 then
  return {'free'}
end
return {'held', field[1], tonumber(field[2]), left, field[4], field[5], field[6], field[7]}
