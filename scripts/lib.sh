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
