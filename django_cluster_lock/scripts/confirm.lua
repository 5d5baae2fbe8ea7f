-- confirm: drop entries that were published.
-- KEYS   record, index, order, messages, outboxes, latest
-- ARGV   member of the index, then entries, each with its sequence, to be dropped while it is the one that was handed
--        the lock last (empty: whichever it is)
-- Returns 'ok'
for i = 2, #ARGV, 2 do
  if ARGV[i + 1] == '' or redis.call('HGET', messages, 'next') == ARGV[i] then
    forget(ARGV[i], ARGV[1], ARGV[i + 1])
  end
end
return 'ok'
