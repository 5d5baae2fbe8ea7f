-- The scripts run inside the server, which offers these globals and no others.
std = "lua51"
read_globals = { "redis", "KEYS", "ARGV", "cjson", "cmsgpack", "struct", "bit" }
max_line_length = 120
-- Shared pieces are prepended at load: a file by itself sees their names as undefined globals. Name them here.
