-- What each role may do: exactly this. Done after every migration, in one transaction, so that what is written here is true.
-- Whoever adds a table, a column or a function says here who may do what with it; tests/it/roles.rs has the whole of it.
REVOKE ALL ON ALL TABLES IN SCHEMA turnmill FROM turnmill_enqueuer, turnmill_worker, turnmill_viewer, turnmill_web;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA turnmill FROM turnmill_enqueuer, turnmill_worker, turnmill_viewer, turnmill_web;
REVOKE ALL ON ALL ROUTINES IN SCHEMA turnmill FROM turnmill_enqueuer, turnmill_worker, turnmill_viewer, turnmill_web;
REVOKE ALL ON SCHEMA turnmill FROM turnmill_enqueuer, turnmill_worker, turnmill_viewer, turnmill_web;
GRANT USAGE ON SCHEMA turnmill TO turnmill_enqueuer, turnmill_worker, turnmill_viewer, turnmill_web;
-- Which schema it is: they refuse another one than they were built for.
GRANT SELECT ON _sqlx_migrations TO turnmill_worker, turnmill_viewer, turnmill_web;

-- Web apps, by plain SQL: the public functions, and reading. Row security shows a login that is bound to a tenant its own rows.
GRANT EXECUTE ON FUNCTION
  turnmill.enqueue_turn, turnmill.cancel_turn, turnmill.retry_turn, turnmill.edit_turn, turnmill.withdraw_turn,
  turnmill.create_session, turnmill.set_session, turnmill.fork_session,
  turnmill.read_turn, turnmill.wait_reason, turnmill.artifact, turnmill.new_id, turnmill.bound_tenant
  TO turnmill_enqueuer;
GRANT SELECT ON turnmill.sessions, turnmill.turns, turnmill.blocks, turnmill.answers, turnmill.artifacts, turnmill.attachments
  TO turnmill_enqueuer;

-- Workers: what their statements need. They enqueue nothing, change no message, no setting and no key, and know no token.
GRANT SELECT ON
  turnmill.artifacts, turnmill.attachments, turnmill.attempts, turnmill.blocks, turnmill.cancel_requests, turnmill.charges,
  turnmill.corrections, turnmill.duties, turnmill.failures, turnmill.fleet, turnmill.fresh_charges, turnmill.jobs, turnmill.journals,
  turnmill.metrics_minute, turnmill.outbox, turnmill.parked, turnmill.pool_states, turnmill.pools, turnmill.preview_watches,
  turnmill.previews, turnmill.sandbox_kills, turnmill.sessions, turnmill.slots, turnmill.spend_days, turnmill.spend_state,
  turnmill.tenants, turnmill.transcripts, turnmill.turn_secrets, turnmill.turns, turnmill.user_keys, turnmill.webhook_endpoints,
  turnmill.workers, turnmill.workspaces
  TO turnmill_worker;
GRANT INSERT ON
  turnmill.artifacts, turnmill.attempts, turnmill.blocks, turnmill.charges, turnmill.corrections, turnmill.duties, turnmill.failures,
  turnmill.fresh_charges, turnmill.journals, turnmill.metrics_minute, turnmill.parked, turnmill.previews, turnmill.spend_days,
  turnmill.transcripts, turnmill.turn_secrets, turnmill.workers, turnmill.workspaces
  TO turnmill_worker;
GRANT UPDATE ON
  turnmill.artifacts, turnmill.attempts, turnmill.cancel_requests, turnmill.corrections, turnmill.duties, turnmill.failures,
  turnmill.fresh_charges, turnmill.jobs, turnmill.journals, turnmill.metrics_minute, turnmill.outbox, turnmill.parked,
  turnmill.pool_states, turnmill.previews, turnmill.sandbox_kills, turnmill.slots, turnmill.spend_days, turnmill.spend_state,
  turnmill.transcripts, turnmill.turn_secrets, turnmill.workers, turnmill.workspaces
  TO turnmill_worker;
GRANT UPDATE (status, attempt, generation, blocks, error_code, error_message, usage, cost_usd, started_at, completed_at,
  input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, sandbox_s, sandbox_usd) ON turnmill.turns TO turnmill_worker;
GRANT UPDATE (state, state_reason, state_at) ON turnmill.pools TO turnmill_worker;
GRANT UPDATE (running) ON turnmill.tenants TO turnmill_worker;
GRANT UPDATE (state, disabled_reason, disabled_at, failures, failing_since, not_before, last_success_at, last_failure_at, last_error)
  ON turnmill.webhook_endpoints TO turnmill_worker;
GRANT DELETE ON
  turnmill.artifacts, turnmill.cancel_requests, turnmill.corrections, turnmill.fresh_charges, turnmill.jobs, turnmill.journals,
  turnmill.metrics_minute, turnmill.outbox, turnmill.parked, turnmill.preview_watches, turnmill.previews, turnmill.sandbox_kills,
  turnmill.slots, turnmill.transcripts, turnmill.turn_secrets, turnmill.workers, turnmill.workspaces
  TO turnmill_worker;
GRANT USAGE ON SEQUENCE turnmill.epochs TO turnmill_worker;
GRANT EXECUTE ON FUNCTION
  turnmill.new_id, turnmill.promote, turnmill.recount_tenant, turnmill.add_usage, turnmill.ancestors, turnmill.cancel_turn,
  turnmill.wait_reason, turnmill.spent_today, turnmill.fleet_spent_today, turnmill.over_budget
  TO turnmill_worker;

-- Dashboards and people who look: all but secrets, hashes of tokens, what is sealed, and files' contents.
GRANT SELECT ON
  turnmill.sessions, turnmill.turns, turnmill.blocks, turnmill.answers, turnmill.jobs, turnmill.cancel_requests, turnmill.attempts,
  turnmill.failures, turnmill.metrics_minute, turnmill.fleet, turnmill.pool_states, turnmill.workers, turnmill.duties, turnmill.tenants,
  turnmill.corrections, turnmill.sandbox_kills, turnmill.charges, turnmill.fresh_charges, turnmill.ledger, turnmill.spend,
  turnmill.spend_days, turnmill.spend_state, turnmill.outbox, turnmill.audit, turnmill.tenant_logins
  TO turnmill_viewer;
GRANT SELECT (turn_id, n, path, change, bytes, sha256) ON turnmill.artifacts TO turnmill_viewer;
GRANT SELECT (turn_id, n, path, media_type) ON turnmill.attachments TO turnmill_viewer;
GRANT SELECT (turn_id, attempt, bytes, whole, saved_at, forget_at) ON turnmill.journals TO turnmill_viewer;
GRANT SELECT (turn_id, session_id, ordinal, bytes, saved_at, key_id) ON turnmill.transcripts TO turnmill_viewer;
GRANT SELECT (turn_id, session_id, ordinal, kind, bytes, files, key_id, missing, unlisted, saved_at) ON turnmill.workspaces TO turnmill_viewer;
GRANT SELECT (id, pool, state, retire, epoch, due_at, turn_id, session_id, asked_at, sandbox_id, sandbox_at, holds, metered_at)
  ON turnmill.slots TO turnmill_viewer;
GRANT SELECT (sandbox_id, pool, session_id, holds, parked_at, due_at, doomed) ON turnmill.parked TO turnmill_viewer;
-- Not agent_env: people do put secrets there.
GRANT SELECT (name, template, cap, agent, workdir, options_allowed, turn_timeout_s, sandbox_timeout_s, state, state_reason, state_at,
  created_at, prepare, watch, finish, prepare_timeout_s, finish_timeout_s, api_version, create_rate, create_burst, idle_timeout_s,
  transcript, transcript_max_bytes, workspace, workspace_max_bytes, artifact_max_bytes, files_exclude, warm_s, paused_s, sandbox_max_s,
  context_versions, context_days, previews, journal_days, inject_key, egress_allow, sandbox_usd_per_hour, turn_budget_usd,
  trust_project)
  ON turnmill.pools TO turnmill_viewer;
GRANT SELECT (id, url, description, project_id, tenant_id, events, secret_key_id, old_secret_until, state, disabled_reason, disabled_at,
  failures, failing_since, not_before, last_success_at, last_failure_at, last_error, created_at)
  ON turnmill.webhook_endpoints TO turnmill_viewer;
GRANT SELECT (id, tenant_id, user_id, key_id, set_at) ON turnmill.user_keys TO turnmill_viewer;
GRANT SELECT (id, prefix, name, scopes, project_id, tenant_id, session_id, created_at, expires_at, revoked_at, last_used_at)
  ON turnmill.api_tokens TO turnmill_viewer;
GRANT EXECUTE ON FUNCTION
  turnmill.read_turn, turnmill.wait_reason, turnmill.waits_until, turnmill.spent_today, turnmill.fleet_spent_today, turnmill.over_budget
  TO turnmill_viewer;

-- The web server: what web apps may, what the dashboard shows, tokens, webhooks, and giving keys, of which it can read none.
GRANT EXECUTE ON FUNCTION
  turnmill.enqueue_turn, turnmill.cancel_turn, turnmill.retry_turn, turnmill.edit_turn, turnmill.withdraw_turn,
  turnmill.create_session, turnmill.set_session, turnmill.fork_session, turnmill.read_turn, turnmill.wait_reason, turnmill.artifact,
  turnmill.new_id, turnmill.ancestors, turnmill.waits_until, turnmill.spent_today, turnmill.fleet_spent_today, turnmill.over_budget,
  turnmill.kill_sandbox, turnmill.drain_worker, turnmill.rotate_webhook_secret, turnmill.set_tenant, turnmill.set_tenant_budget,
  turnmill.set_fleet_budget, turnmill.stop_fleet, turnmill.resume_fleet
  TO turnmill_web;
GRANT SELECT ON
  turnmill.sessions, turnmill.turns, turnmill.blocks, turnmill.answers, turnmill.artifacts, turnmill.attachments, turnmill.jobs,
  turnmill.cancel_requests, turnmill.attempts, turnmill.failures, turnmill.metrics_minute, turnmill.fleet, turnmill.pools,
  turnmill.pool_states, turnmill.workers, turnmill.duties, turnmill.tenants, turnmill.corrections, turnmill.sandbox_kills,
  turnmill.charges, turnmill.fresh_charges, turnmill.ledger, turnmill.spend, turnmill.spend_days, turnmill.spend_state,
  turnmill.journals, turnmill.previews, turnmill.preview_watches, turnmill.outbox, turnmill.audit, turnmill.api_tokens,
  turnmill.ops_visits
  TO turnmill_web;
GRANT SELECT (turn_id, session_id, ordinal, bytes, saved_at, key_id) ON turnmill.transcripts TO turnmill_web;
GRANT SELECT (turn_id, session_id, ordinal, kind, bytes, files, key_id, missing, unlisted, saved_at) ON turnmill.workspaces TO turnmill_web;
GRANT SELECT (id, pool, state, retire, epoch, due_at, turn_id, session_id, asked_at, sandbox_id, sandbox_at, holds, metered_at)
  ON turnmill.slots TO turnmill_web;
GRANT SELECT (sandbox_id, pool, session_id, holds, parked_at, due_at, doomed) ON turnmill.parked TO turnmill_web;
GRANT SELECT (id, url, description, project_id, tenant_id, events, secret_key_id, old_secret_until, state, disabled_reason, disabled_at,
  failures, failing_since, not_before, last_success_at, last_failure_at, last_error, created_at)
  ON turnmill.webhook_endpoints TO turnmill_web;
GRANT SELECT (id, tenant_id, user_id, key_id, set_at) ON turnmill.user_keys TO turnmill_web;
GRANT INSERT ON
  turnmill.api_tokens, turnmill.audit, turnmill.ops_visits, turnmill.outbox, turnmill.preview_watches, turnmill.user_keys,
  turnmill.webhook_endpoints
  TO turnmill_web;
GRANT UPDATE (weight, running_max, budget_usd_per_day) ON turnmill.tenants TO turnmill_web;
GRANT UPDATE (budget_usd_per_day, stopped_at, stopped_reason) ON turnmill.fleet TO turnmill_web;
GRANT UPDATE ON turnmill.outbox, turnmill.preview_watches TO turnmill_web;
GRANT UPDATE (last_used_at) ON turnmill.api_tokens TO turnmill_web;
GRANT UPDATE (expires_at) ON turnmill.ops_visits TO turnmill_web;
GRANT UPDATE (data, key_id, set_at) ON turnmill.user_keys TO turnmill_web;
GRANT UPDATE (url, description, events, state, disabled_reason, disabled_at, failures, failing_since, not_before)
  ON turnmill.webhook_endpoints TO turnmill_web;
GRANT UPDATE (cap, state, state_reason, state_at, create_rate, create_burst, warm_s, paused_s) ON turnmill.pools TO turnmill_web;
GRANT DELETE ON turnmill.api_tokens, turnmill.ops_visits, turnmill.user_keys, turnmill.webhook_endpoints TO turnmill_web;
