-- ended: whether the run of a message has ended, or is under way, which a copy of it asks. Changes nothing.
-- KEYS   record, ended (of the entry)
-- ARGV   task
-- Returns 'ended', 'running' or 'open'
if redis.call('EXISTS', KEYS[2]) == 1 then return 'ended' end
local field = read('t', 'd', 'k')
local running = field[1] and number(field[2]) > now and field[1]:sub(1, 1) ~= '~' and field[3] == ARGV[1]
return running and 'running' or 'open'
