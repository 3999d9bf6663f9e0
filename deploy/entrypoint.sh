#!/usr/bin/env bash
# The image's entry point: passes secrets to Envoy, and drains Envoy before it ends.
#
#   docker run dynamic-rate-limiter envoy -c deploy/redis/envoy.yaml
#
# ADMIN_TOKEN_FILE, REDIS_USERNAME_FILE and REDIS_PASSWORD_FILE name files whose content becomes the variable
# without `_FILE`, in Envoy's environment alone: `docker inspect` shows the name of the file, and no log has
# its content.
set -u

here=${BASH_SOURCE[0]%/*}

# The base image's entry point switches to user `envoy`, unless ENVOY_UID is 0, and runs this script again.
if ((EUID == 0)) && [[ ${ENVOY_UID:-} != 0 ]]; then
  exec /docker-entrypoint.sh bash "${BASH_SOURCE[0]}" "$@"
fi

for name in ADMIN_TOKEN REDIS_USERNAME REDIS_PASSWORD; do
  variable=${name}_FILE
  [[ -n ${!variable:-} ]] || continue
  if [[ -n ${!name:-} ]]; then
    echo "entrypoint: both $name and $variable are set; take one away" >&2
    exit 1
  fi
  if [[ ! -r ${!variable} ]]; then
    echo "entrypoint: $variable is ${!variable}, which user $EUID cannot read" >&2
    exit 1
  fi
  # A newline at the end does not count.
  export "$name=$(<"${!variable}")"
done

stopping=
stop() {
  stopping=yes
  trap '' TERM INT
  [[ -n ${!:-} ]] || exit 0
  bash "$here/drain.sh"
  kill -TERM "$!" 2>/dev/null
}
trap stop TERM INT

"$@" &
# Envoy has inherited them.
unset ADMIN_TOKEN REDIS_USERNAME REDIS_PASSWORD
wait "$!"
status=$?
if [[ -n $stopping ]]; then
  # The signal ended the first `wait`, and not Envoy.
  wait "$!"
  status=$?
fi
exit "$status"
