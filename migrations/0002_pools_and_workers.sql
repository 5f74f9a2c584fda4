CREATE TABLE turnmill.pools (
  name              text PRIMARY KEY CHECK (name ~ '^[a-z0-9][a-z0-9_.-]{0,62}$'),
  template          text NOT NULL DEFAULT 'claude',
  cap               integer NOT NULL DEFAULT 20 CHECK (cap BETWEEN 0 AND 10000),
  -- The prompt is never part of it: it reaches the agent as one line on its standard input.
  agent             text[] NOT NULL DEFAULT ARRAY[
    'claude', '-p', '--input-format=stream-json', '--output-format=stream-json', '--verbose',
    '--forward-subagent-text', '--dangerously-skip-permissions', '--setting-sources=user',
    '--strict-mcp-config', '--thinking-display=summarized', '--system-prompt-snapshot=off',
    '--session-id={session}']
    CHECK (cardinality(agent) > 0),
  agent_env         jsonb NOT NULL DEFAULT '{
    "CLAUDE_CODE_DISABLE_BACKGROUND_TASKS": "1",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "CLAUDE_CODE_MAX_RETRIES": "4",
    "DISABLE_AUTOUPDATER": "1"}' CHECK (jsonb_typeof(agent_env) = 'object'),
  workdir           text,
  options_allowed   text[] NOT NULL DEFAULT ARRAY['model', 'max_turns', 'max_budget_usd', 'append_system_prompt'],
  turn_timeout_s    integer NOT NULL DEFAULT 3000 CHECK (turn_timeout_s > 0),
  sandbox_timeout_s integer NOT NULL DEFAULT 900 CHECK (sandbox_timeout_s BETWEEN 60 AND 86400),
  state             text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'paused', 'blocked')),
  state_reason      text,
  state_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
  created_at        timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE turnmill.pools IS 'One E2B account and template, with its cap. Secrets are in the workers'' environment, not here.';
COMMENT ON COLUMN turnmill.pools.name IS 'What enqueue_turn(pool => …) names.';
COMMENT ON COLUMN turnmill.pools.template IS 'E2B template id or alias.';
COMMENT ON COLUMN turnmill.pools.cap IS 'Most sandboxes alive at once, fleet-wide. Changing it changes the slot rows (trigger).';
COMMENT ON COLUMN turnmill.pools.agent IS 'Command line of the agent, a word an element. {session} stands for the agent''s session id; the turn''s options are appended as --flag=value.';
COMMENT ON COLUMN turnmill.pools.agent_env IS 'Extra environment of the agent: an object of strings, nothing secret.';
COMMENT ON COLUMN turnmill.pools.workdir IS 'Directory in the sandbox where the agent starts; null = the agent user''s home.';
COMMENT ON COLUMN turnmill.pools.options_allowed IS 'Keys that a turn''s options may have.';
COMMENT ON COLUMN turnmill.pools.turn_timeout_s IS 'Seconds from the first claim after which the agent is stopped and the turn fails with turn_timeout. Must fit the E2B plan''s longest run.';
COMMENT ON COLUMN turnmill.pools.sandbox_timeout_s IS 'Seconds that a sandbox outlives the last extension; extended while a worker follows it.';
COMMENT ON COLUMN turnmill.pools.state IS 'active; paused = by an operator; blocked = E2B refuses our credentials.';
COMMENT ON COLUMN turnmill.pools.state_reason IS 'Why it is paused or blocked, for people.';
COMMENT ON COLUMN turnmill.pools.state_at IS 'Since when it is in that state.';
COMMENT ON COLUMN turnmill.pools.created_at IS 'When it was made.';

CREATE TABLE turnmill.workers (
  id           text PRIMARY KEY,
  lease_until  timestamptz NOT NULL,
  heartbeat_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  state        text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'draining', 'gone')),
  turns_max    integer NOT NULL CHECK (turns_max > 0),
  host         text NOT NULL,
  pid          integer NOT NULL,
  version      text NOT NULL,
  started_at   timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);
COMMENT ON TABLE turnmill.workers IS 'One row per process boot. Its lease covers all its jobs, so a heartbeat is one row, whatever it runs.';
COMMENT ON COLUMN turnmill.workers.id IS 'Host, pid and random part; never used twice.';
COMMENT ON COLUMN turnmill.workers.lease_until IS 'Until when it may act. Past that its jobs are adopted.';
COMMENT ON COLUMN turnmill.workers.heartbeat_at IS 'When it last renewed.';
COMMENT ON COLUMN turnmill.workers.state IS 'active; draining = takes nothing new; gone = ended in order, or found dead.';
COMMENT ON COLUMN turnmill.workers.turns_max IS 'Turns it runs at once.';
COMMENT ON COLUMN turnmill.workers.host IS 'Host name, for people.';
COMMENT ON COLUMN turnmill.workers.pid IS 'Process id on that host, for people.';
COMMENT ON COLUMN turnmill.workers.version IS 'Version of the binary.';
COMMENT ON COLUMN turnmill.workers.started_at IS 'When it registered.';
