# The sandbox template. README.md says how to build, name and pin it.
FROM node:24-bookworm-slim
# The supervisor, e2b/run-turn, needs bash, coreutils and util-linux, and for the files findutils, tar and gzip, all in the base; e2fsprogs has chattr,
# by which the journal becomes append-only. It is uploaded with every turn: the image holds no part of Turnmill.
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates curl e2fsprogs git procps ripgrep \
    && rm -rf /var/lib/apt/lists/*
# Pinned: a conversation is resumed by the version that began it.
RUN npm install -g @anthropic-ai/claude-code@2.1.330
# What `npm install` takes: a name with a version, the address of an archive. E2B has no build arguments: there, set the
# default here. It makes an ENV of it, which every agent can read: nothing secret may be in it.
ARG USPARK_CLI=
RUN if [ -n "$USPARK_CLI" ]; then npm install -g "$USPARK_CLI" && command -v uspark; \
    else echo "No USPARK_CLI: the template has no uspark CLI, and projects' files are neither fetched nor saved by it."; fi
# E2B makes this user too, unless it is there. The agent works in its home or, where the pool says so, in /workspace.
RUN id user >/dev/null 2>&1 || useradd --create-home --shell /bin/bash user; \
    mkdir -p /workspace && chown user: /workspace
# Workers refuse a template of another format than theirs. Raise it here and in run-turn with what they share.
RUN echo 1 > /etc/turnmill-template
USER user
WORKDIR /workspace
# No ENTRYPOINT and no CMD: E2B would run them once, at build time, and wait 20 s for it.
