-- The same job in nginx with Lua: parse the envelope, GET its URL through the edge by a socket of nginx's own, drop the body.
local cjson = require "cjson.safe"

local EDGE_HOST, EDGE_PORT = "127.0.0.1", tonumber(ngx.var.edge_port)

local function fail(status)
    ngx.status = status
    ngx.header.content_length = 0
    return ngx.exit(status)
end

ngx.req.read_body()
local envelope = cjson.decode(ngx.req.get_body_data() or "")
local message = envelope and envelope.message
local url = message and ngx.decode_base64(message.data or "")
if not url then return fail(400) end
local scheme, host, path = url:match("^(https?)://([^/]+)(/.*)$")
if not scheme then return fail(400) end

local socket = ngx.socket.tcp()
socket:settimeouts(5000, 20000, 20000)
if not socket:connect(EDGE_HOST, EDGE_PORT, {pool = scheme, pool_size = 512}) then return fail(503) end
if scheme == "https" and socket:getreusedtimes() == 0 and not socket:sslhandshake(nil, host, true) then return fail(503) end
if not socket:send("GET " .. path .. " HTTP/1.1\r\nHost: " .. host .. "\r\n\r\n") then return fail(503) end
local line = socket:receive("*l")
if not line then return fail(503) end
local status, length = line:sub(10, 12), nil
while true do
    line = socket:receive("*l")
    if not line then return fail(503) end
    if line == "" or line == "\r" then break end
    local value = line:match("^[Cc]ontent%-[Ll]ength: *(%d+)")
    if value then length = tonumber(value) end
end
if not length then return fail(503) end
while length > 0 do
    local piece = socket:receiveany(math.min(length, 262144))
    if not piece then return fail(503) end
    length = length - #piece
end
socket:setkeepalive(60000, 512)
if status ~= "200" then return fail(503) end
ngx.status = 204
