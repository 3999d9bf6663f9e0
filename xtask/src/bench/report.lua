-- For wrk: prints the results of a run as JSON.
function done(summary, latency)
  local report = '{"requests": %d, "rejected": %d, "requests_per_second": %f, "p50_ms": %f, "p99_ms": %f}\n'
  local seconds, requests = summary.duration / 1e6, summary.requests
  local p50, p99 = latency:percentile(50) / 1e3, latency:percentile(99) / 1e3
  io.write(report:format(requests, summary.errors.status, requests / seconds, p50, p99))
end
