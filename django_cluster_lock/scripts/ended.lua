-- ended: whether the run of a message has ended, which a copy of it asks. Changes nothing.
-- KEYS   record, ended (of the entry)
-- Returns 'ended' or 'open'
return redis.call('EXISTS', KEYS[2]) == 1 and 'ended' or 'open'
