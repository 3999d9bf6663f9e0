#!/bin/sh
# As the entry point of Envoy's image does: what root starts runs as the user `envoy`.
set -e
if [ "$(id -u)" = 0 ]; then
  chown envoy:envoy /dev/stdout /dev/stderr
  exec setpriv --reuid=envoy --regid=envoy --clear-groups "$@"
fi
exec "$@"
