# The sandbox template. Build it once, with an E2B account:
#   e2b template create turnmill-claude -d e2b.Dockerfile --cpu-count 2 --memory-mb 4096
# then: turnmill pool set default --template turnmill-claude
FROM node:24-bookworm-slim
# The supervisor, e2b/run-turn, needs bash, coreutils and util-linux, which are in the base; e2fsprogs has chattr,
# by which the journal becomes append-only. It is uploaded with every turn: the image holds no part of Turnmill.
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates curl e2fsprogs git procps ripgrep \
    && rm -rf /var/lib/apt/lists/*
# Pinned: a conversation is resumed by the version that began it.
RUN npm install -g @anthropic-ai/claude-code@2.1.330
# No ENTRYPOINT and no CMD: E2B would run them once, at build time, and wait 20 s for it.
