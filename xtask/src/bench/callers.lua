-- For wrk: requests of callers in turn, each with its own API key, created before the load starts.
local requests, last = {}, 0

function init(arguments)
  for number = 0, arguments[1] - 1 do
    requests[number + 1] = wrk.format(nil, nil, { ["x-api-key"] = "key-" .. number, Host = wrk.headers["Host"] })
  end
end

function request()
  last = last % #requests + 1
  return requests[last]
end
