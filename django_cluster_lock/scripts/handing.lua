-- Shared by the scripts that give a lock up, after common.lua: to whom it goes.

-- Hands the lock, which nobody holds, to the first live waiter: its token and alive-until (0 if there is none); `more`
-- as above. Whoever calls it wakes the waiter last of all.
local function hand_on(queue, fence)
  local next, alive, more
  if queue then next, alive, more = first_waiter() end
  if next then
    leave_queue(next)
    redis.call('HDEL', record, 'h', 'p', 'r', 'k')
    redis.call('HSET', record, 't', next, 'f', text(next_fence(fence)), 'd', text(alive), 's', text(now))
  end
  return next, alive or 0, more
end

-- Under pcall, since the key is not declared: one that is absent from a migrating slot would end the script.
local function wake(key)
  redis.pcall('LPUSH', key, '1')
  redis.pcall('PEXPIRE', key, WAKE_LIFE)
end
