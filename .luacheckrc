-- The scripts run inside the server, which offers these globals and no others.
std = "lua51"
read_globals = { "redis", "KEYS", "ARGV", "cjson", "cmsgpack", "struct", "bit" }
max_line_length = 120

-- How scripts.py puts them together: each sees the locals of those before it; not every script uses each of them.
local folder = "django_cluster_lock/scripts/"
local function locals_of(script, names)
  for line in assert(io.open(folder .. script)):lines() do
    local name = line:match("^local function ([%w_]+)") or line:match("^local ([%w_]+) =")
    names[#names + 1] = name
    for more in (line:match("^local ([%w_, ]+) =") or ""):gmatch("[%w_]+") do names[#names + 1] = more end
  end
  return names
end
local function before(...)
  local names = locals_of("common.lua", {})
  for _, script in ipairs({ ... }) do locals_of(script .. ".lua", names) end
  return names
end
local function check(script, names, ...)
  files[folder .. script .. ".lua"] = { read_globals = names, ignore = { ... } }
end
local UNUSED = "211"
files[folder .. "*.lua"] = { read_globals = before() }
for _, script in ipairs({ "start", "land", "drain", "confirm" }) do
  check(script, before("handing", "places", "outbox"))
end
check("claim", before("places"), UNUSED)
check("park", before("places", "claim", "outbox"))
check("release", before("handing"))
check("common", {}, UNUSED)
check("handing", before(), UNUSED)
check("places", before(), UNUSED)
check("outbox", before("places"), UNUSED)

-- The caller's script comes before this one.
files[folder .. "guard.lua"] = { read_globals = { "guarded" } }
