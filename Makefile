# Each target installs what it needs (Debian as root); `make help` lists them.
.DEFAULT_GOAL := help
CARGO ?= cargo

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.PHONY: setup
setup: ## install what is missing
	@scripts/setup

.PHONY: demo
demo: setup ## a turn that survives kill -9 of its worker; KEEP=1 stays up
	@$(CARGO) build --locked
	@$(CARGO) run --quiet --locked -- demo $(if $(KEEP),--keep)

.PHONY: test
test: setup ## all tests, on a Postgres of their own
	@scripts/with-postgres scripts/test

.PHONY: test-pgbouncer
test-pgbouncer: setup ## the tests that need a database, through PgBouncer in transaction mode
	@scripts/with-postgres scripts/with-pgbouncer scripts/test-pgbouncer

.PHONY: test-sdk
test-sdk: setup ## the official E2B SDKs against the local server
	@scripts/test-sdk

.PHONY: test-web
test-web: setup ## the HTTP API under a fuzzer that knows its document; SEED= EXAMPLES=
	@SEED=$(SEED) EXAMPLES=$(EXAMPLES) scripts/with-postgres scripts/test-web

.PHONY: test-browser
test-browser: setup ## the pages in a real browser
	@scripts/with-postgres scripts/test-browser

.PHONY: test-example
test-example: setup ## the Next.js example, built and started, in front of a fleet
	@scripts/with-postgres scripts/test-example

.PHONY: test-claude
test-claude: setup ## the real Claude Code CLI in local sandboxes
	@scripts/with-postgres scripts/test-claude

.PHONY: test-aws
test-aws: setup ## Bedrock's keys against moto and AWS' own token generator
	@scripts/test-aws

.PHONY: fuzz
fuzz: setup ## the parser of what agents print under a fuzzer; SECONDS=30
	@scripts/fuzz $(or $(SECONDS),30)

.PHONY: smoke
smoke: setup ## one turn through everything, as turnmill smoke runs it against an account
	@scripts/with-postgres scripts/smoke

.PHONY: chaos
chaos: setup ## everything that can go wrong with real processes, from a seed; SEED= TURNS= FAULTS= SPREAD= WORKERS= ONLY= KEEP=
	@$(CARGO) test --quiet --locked --test chaos -- $(if $(SEED),--seed $(SEED)) $(if $(TURNS),--turns $(TURNS)) \
	  $(if $(FAULTS),--faults $(FAULTS)) $(if $(SPREAD),--seconds $(SPREAD)) $(if $(WORKERS),--workers $(WORKERS)) \
	  $(if $(ONLY),--only $(ONLY)) $(if $(KEEP),--keep $(KEEP))

.PHONY: chaos-short
chaos-short: setup ## the same in a minute, from a fixed seed
	@$(CARGO) test --quiet --locked --test chaos -- --seed 1 --turns 150 --faults 25 --seconds 25

.PHONY: lint
lint: setup ## formatting, clippy, docs, .sqlx, dependencies
	@$(CARGO) fmt --check
	@$(CARGO) fmt --check --manifest-path fuzz/Cargo.toml
	@$(CARGO) clippy --locked --all-targets -- -D warnings
	@$(CARGO) clippy --locked --test claude --test browser --test chaos --test aws -- -D warnings
	@RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --quiet
	@scripts/with-postgres scripts/sqlx-prepare --check
	@scripts/deny

.PHONY: sqlx
sqlx: setup ## renew .sqlx after a change of a query or of the schema
	@scripts/with-postgres scripts/sqlx-prepare

.PHONY: bench
bench: setup ## the queue beside raw Postgres, in one run
	@$(CARGO) build --release --locked
	@$(CARGO) run --release --quiet --locked -- bench

.PHONY: clean
clean: ## remove what was built
	@$(CARGO) clean
