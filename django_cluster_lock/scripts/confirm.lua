-- confirm: drop entries that were published.
-- KEYS   record, index, order, messages, outboxes, latest
-- ARGV   member of the index, then entries, each with its sequence (empty: any)
-- Returns 'ok'
for i = 2, #ARGV, 2 do
  forget(ARGV[i], ARGV[1], ARGV[i + 1])
end
return 'ok'
