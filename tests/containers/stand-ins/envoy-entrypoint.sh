#!/bin/sh
# Like the entry point of Envoy's image: a command started by root runs as the user `envoy`.
set -e
if [ "$(id -u)" = 0 ]; then
  chown envoy:envoy /dev/stdout /dev/stderr
  exec setpriv --reuid=envoy --regid=envoy --clear-groups "$@"
fi
exec "$@"
