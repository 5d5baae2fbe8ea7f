-- The scripts run inside the server, which offers these globals and no others.
std = "lua51"
read_globals = { "redis", "KEYS", "ARGV", "cjson", "cmsgpack", "struct", "bit" }
max_line_length = 120

-- common.lua is put before every other script when it is loaded, handing.lua before those that give a lock up, outbox.lua
-- before those of single flight, so their locals are theirs too; not every script uses each of them.
local folder = "django_cluster_lock/scripts/"
local function locals_of(script, names)
  for line in assert(io.open(folder .. script)):lines() do
    local name = line:match("^local function ([%w_]+)") or line:match("^local ([%w_]+) =")
    names[#names + 1] = name
    for more in (line:match("^local ([%w_, ]+) =") or ""):gmatch("[%w_]+") do names[#names + 1] = more end
  end
  return names
end
local common = locals_of("common.lua", {})
local handing = locals_of("handing.lua", locals_of("common.lua", {}))
local flights = locals_of("outbox.lua", locals_of("handing.lua", locals_of("common.lua", {})))
files[folder .. "*.lua"] = { read_globals = common }
for _, script in ipairs({ "claim", "start", "land", "drain", "confirm" }) do
  files[folder .. script .. ".lua"] = { read_globals = flights }
end
files[folder .. "release.lua"] = { read_globals = handing }
files[folder .. "handing.lua"] = { read_globals = common, ignore = { "211" } }
files[folder .. "common.lua"] = { ignore = { "211" } }
files[folder .. "outbox.lua"] = { read_globals = common, ignore = { "211" } }

-- The caller's script comes before this one.
files[folder .. "guard.lua"] = { read_globals = { "guarded" } }
