# One binary, roles by subcommand: worker (default), migrate, and all others.
FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --release --locked && cp target/release/turnmill /turnmill

FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 turnmill
COPY --from=build /turnmill /usr/local/bin/turnmill
USER 10001
# The worker hands its turns over and ends within moments; the agents run on in their sandboxes.
STOPSIGNAL SIGTERM
ENTRYPOINT ["turnmill"]
CMD ["worker"]
