# Stock Envoy with the filter and the shipped configurations; `docker compose up` builds and runs it.
#
#   docker build .                              compiles the filter
#   docker build --build-arg FILTER=ready .     takes the one in target/, from a release or `cargo xtask dist`

ARG FILTER=compiled

# The filter, by the project's own command, and of the compiler that releases are built with: the same bytes.
FROM rust:1.95.0-slim-bookworm AS compiled
RUN rustup target add wasm32-wasip1
WORKDIR /src
COPY . .
# The caches keep what cargo fetched and compiled from one build of the image to the next. They are
# no part of the image, so the artifact is copied out of them.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,id=dynamic-rate-limiter-target,target=/src/target \
    cargo xtask dist && cp target/dist/dynamic_rate_limiter.wasm /

FROM scratch AS ready
COPY target/dynamic_rate_limiter.wasm /

FROM ${FILTER} AS filter

FROM envoyproxy/envoy:v1.40.0
# Paths in the configurations are relative to this, as they are to the repository's root.
WORKDIR /rate-limiter
# The image's entry point runs Envoy as the user `envoy`, who makes sockets in `target`.
RUN install --directory --owner=envoy --group=envoy target
COPY --from=filter /dynamic_rate_limiter.wasm target/
COPY config config
COPY deploy deploy
# Whatever the umask was where the files come from.
RUN chmod --recursive a+rX .
# Drains Envoy on SIGTERM.
ENTRYPOINT ["bash", "/rate-limiter/deploy/entrypoint.sh"]
CMD ["envoy", "-c", "deploy/redis/envoy.yaml"]
