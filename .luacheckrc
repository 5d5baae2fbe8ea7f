-- The scripts run inside the server, which offers these globals and no others.
std = "lua51"
read_globals = { "redis", "KEYS", "ARGV", "cjson", "cmsgpack", "struct", "bit" }
max_line_length = 120

-- common.lua is put before every other script when it is loaded, so its locals are theirs too; not every script uses
-- each of them.
local folder = "django_cluster_lock/scripts/"
local shared = {}
for line in assert(io.open(folder .. "common.lua")):lines() do
  local name = line:match("^local function ([%w_]+)") or line:match("^local ([%w_]+) =")
  shared[#shared + 1] = name
end
files[folder .. "*.lua"] = { read_globals = shared }
files[folder .. "common.lua"] = { ignore = { "211" } }
