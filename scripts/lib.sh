# Shared by the scripts here; source it.

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

# The directory of the newest Postgres server's binaries.
postgres_bin() {
  local found
  found=$(ls -d /usr/lib/postgresql/*/bin /usr/pgsql-*/bin /opt/homebrew/opt/postgresql@*/bin /usr/local/pgsql/bin 2>/dev/null | sort -V | tail -1)
  if [ -z "$found" ] && command -v initdb >/dev/null; then found=$(dirname "$(command -v initdb)"); fi
  [ -x "$found/initdb" ] && echo "$found"
}

# need_packages PACKAGE:COMMAND…: installs what has no such command, on Debian as root; else says what is missing.
need_packages() {
  local pair missing=()
  for pair in "$@"; do
    command -v "${pair#*:}" >/dev/null || missing+=("${pair%%:*}")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    say "Installing ${missing[*]} …"
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null 2>&1 ||
      { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null; } ||
      die "apt-get could not install: ${missing[*]}"
  else
    die "these packages are missing: ${missing[*]}. On Debian or Ubuntu: sudo apt-get install ${missing[*]}"
  fi
}

# serve_local KEY: builds, and starts a local E2B server that takes this account key until the script ends. Sets the
# E2B_… variables; `turnmill` is our binary.
serve_local() {
  local server work
  cargo build --quiet --locked
  turnmill_bin=$(cargo metadata --format-version 1 --no-deps --locked | sed -E 's/.*"target_directory":"([^"]+)".*/\1/')/debug/turnmill
  work=$(mktemp -d "${TMPDIR:-/tmp}/turnmill-XXXXXX")
  "$turnmill_bin" local --listen 127.0.0.1:0 --api-key "$1" >"$work/said" 2>"$work/log" &
  server=$!
  # shellcheck disable=SC2064 # now, not when it ends
  trap "kill $server 2>/dev/null; wait $server 2>/dev/null || true; rm -rf '$work'" EXIT
  until grep -q '^E2B-compatible server on' "$work/said"; do
    kill -0 $server 2>/dev/null || { cat "$work/log" >&2; die "the local server did not start"; }
    sleep 0.05
  done
  E2B_API_URL=$(sed -nE 's/^E2B-compatible server on (http[^ ]+).*/\1/p' "$work/said")
  export E2B_API_URL E2B_SANDBOX_URL=$E2B_API_URL E2B_API_KEY=$1
}

turnmill() { "$turnmill_bin" "$@"; }
