-- A minimal limiter: sends one request to webdis, and uses the reply. It sets no headers. `sha`, the hash of the limiter's
-- script, is set above.
function envoy_on_request(handle)
  local key = handle:headers():get("x-api-key")
  local path = "/EVALSHA/" .. sha .. "/1/rate_limit:" .. key .. "/10000000/1000000000000/60000/0/10000000/1000000000000"
  local request = { [":method"] = "GET", [":path"] = path, [":authority"] = "webdis" }
  local headers, body = handle:httpCall("webdis", request, nil, 1000)
  local admitted = string.match(body or "", '^{"EVALSHA":"0 ([01]) ')
  if not admitted then
    handle:respond({ [":status"] = "503" }, "no answer from webdis")
  elseif admitted == "0" then
    handle:respond({ [":status"] = "429" }, "rate limit exceeded")
  end
end
