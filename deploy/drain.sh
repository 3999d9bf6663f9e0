#!/usr/bin/env bash
# Drains the Envoy of this container or pod, and returns when it may end without losing a request.
#
# The health check fails, so that load balancers stop sending. Envoy continues to serve, and tells its clients to
# close their connections. The drain is over when no connection is left, or after DRAIN_SECONDS.
#
# deploy/entrypoint.sh runs it on SIGTERM, Kubernetes and Istio as `preStop`. It needs bash and `sleep`.
set -u

# The longest drain. Keep it some seconds below Docker's stop_grace_period or Kubernetes'
# terminationGracePeriodSeconds, after which Envoy is killed.
limit=${DRAIN_SECONDS:-25}
# The shortest: how long load balancers may take to notice, and to send requests until then.
least=${DRAIN_LEAST_SECONDS:-5}
# Envoy's admin port, on the loopback.
port=${DRAIN_ADMIN_PORT:-9901}
# The statistics that count clients' connections, as a regular expression.
connections=${DRAIN_CONNECTIONS:-http.service.downstream_cx_active}

# admin METHOD PATH: prints the answer. Fails with 2 if there is no Envoy, else with 1 if it does not answer with 200
# within 2 s.
admin() {
  local line answer
  exec 3<>"/dev/tcp/127.0.0.1/$port" || return 2
  printf '%s %s HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n' "$1" "$2" >&3
  answer=''
  while IFS= read -r -t 2 line <&3; do answer+=$line$'\n'; done
  exec 3>&-
  [[ $answer == 'HTTP/1.1 200 '* ]] || return 1
  printf '%s' "$answer"
}

# How many connections clients have, in all. Fails with 1 if Envoy has no such statistic.
count() {
  local answer line sum=
  answer=$(admin GET "/stats?filter=$connections") || return
  while IFS= read -r line; do
    line=${line%$'\r'}
    [[ $line =~ _active:\ ([0-9]+)$ ]] && sum=$((sum + BASH_REMATCH[1]))
  done <<<"$answer"
  [[ -n $sum ]] && echo "$sum"
}

# A busy Envoy may not answer in time.
until { admin POST /healthcheck/fail && admin POST '/drain_listeners?graceful&skip_exit'; } >/dev/null 2>&1; do
  if (($? == 2 || SECONDS >= limit)); then
    echo "drain: no Envoy answers at 127.0.0.1:$port" >&2
    exit 1
  fi
  sleep 0.25
done
echo "drain: for at least $least s and at most $limit s" >&2
while ((SECONDS < limit)); do
  # An Envoy that has ended has no connections. One that does not answer in time is busy.
  left=$(count 2>/dev/null) || { (($? == 2)) && left=0 || left=unknown; }
  ((SECONDS >= least)) && [[ $left == 0 ]] && break
  sleep 0.25
done
echo "drain: over after $SECONDS s, connections left: ${left:-unknown}" >&2
