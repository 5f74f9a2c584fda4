CREATE TABLE turnmill.sessions (
  id               text PRIMARY KEY DEFAULT turnmill.new_id('sess') CHECK (id <> '' AND length(id) <= 255),
  project_id       text NOT NULL CHECK (project_id <> '' AND length(project_id) <= 255),
  user_id          text,
  tenant_id        text,
  pool             text NOT NULL REFERENCES turnmill.pools (name),
  agent_session_id uuid NOT NULL DEFAULT gen_random_uuid(),
  turns            integer NOT NULL DEFAULT 0,
  created_at       timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 80);
COMMENT ON TABLE turnmill.sessions IS 'A conversation of a project; its turns run one after another.';
COMMENT ON COLUMN turnmill.sessions.id IS 'Given by the caller, or sess_ and a UUIDv7.';
COMMENT ON COLUMN turnmill.sessions.project_id IS 'The project it belongs to; enqueueing under another one is an error.';
COMMENT ON COLUMN turnmill.sessions.user_id IS 'Who talks, in the web app''s terms.';
COMMENT ON COLUMN turnmill.sessions.tenant_id IS 'Who pays, in the web app''s terms.';
COMMENT ON COLUMN turnmill.sessions.pool IS 'The pool its turns run in.';
COMMENT ON COLUMN turnmill.sessions.agent_session_id IS 'The agent''s own id of the conversation (claude --session-id).';
COMMENT ON COLUMN turnmill.sessions.turns IS 'Turns enqueued so far: the last ordinal. Its UPDATE is the lock that orders enqueues of one session.';
COMMENT ON COLUMN turnmill.sessions.created_at IS 'When its first turn was enqueued.';

CREATE TABLE turnmill.turns (
  id              text PRIMARY KEY DEFAULT turnmill.new_id('turn') CHECK (id <> '' AND length(id) <= 255),
  session_id      text NOT NULL REFERENCES turnmill.sessions (id) ON DELETE CASCADE,
  project_id      text NOT NULL,
  ordinal         integer NOT NULL CHECK (ordinal > 0),
  prompt          text NOT NULL CHECK (prompt <> ''),
  options         jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(options) = 'object'),
  message_uuid    uuid NOT NULL DEFAULT gen_random_uuid(),
  idempotency_key text CHECK (idempotency_key <> '' AND length(idempotency_key) <= 255),
  body_hash       bytea NOT NULL,
  status          text NOT NULL DEFAULT 'pending'
                  CHECK (status IN ('pending', 'in_progress', 'completed', 'failed', 'cancelled')),
  attempt         integer NOT NULL DEFAULT 0,
  generation      integer NOT NULL DEFAULT 1 CHECK (generation > 0),
  blocks          integer NOT NULL DEFAULT 0,
  error_code      text,
  error_message   text,
  usage           jsonb,
  cost_usd        numeric(14, 6),
  created_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
  started_at      timestamptz,
  completed_at    timestamptz,
  UNIQUE (session_id, ordinal),
  UNIQUE (project_id, idempotency_key),
  CONSTRAINT completed_at_iff_terminal
    CHECK ((completed_at IS NOT NULL) = (status IN ('completed', 'failed', 'cancelled'))),
  CONSTRAINT failed_has_a_code CHECK (status <> 'failed' OR error_code IS NOT NULL),
  CONSTRAINT running_has_started CHECK (status <> 'in_progress' OR started_at IS NOT NULL)
) WITH (fillfactor = 85);
CREATE INDEX turns_newest ON turnmill.turns (created_at DESC, id DESC);
COMMENT ON TABLE turnmill.turns IS 'One user message and everything the agent does about it: the row the web app reads.';
COMMENT ON COLUMN turnmill.turns.id IS 'Given by the caller, or turn_ and a UUIDv7.';
COMMENT ON COLUMN turnmill.turns.session_id IS 'Its conversation.';
COMMENT ON COLUMN turnmill.turns.project_id IS 'Of the session; here because idempotency keys are unique per project.';
COMMENT ON COLUMN turnmill.turns.ordinal IS 'Its place in the session, from 1, without gaps.';
COMMENT ON COLUMN turnmill.turns.prompt IS 'The user''s message, given to the agent as literal text.';
COMMENT ON COLUMN turnmill.turns.options IS 'Per-turn settings, allow-listed by the pool.';
COMMENT ON COLUMN turnmill.turns.message_uuid IS 'The uuid of the message on the agent''s input; the agent de-duplicates by it.';
COMMENT ON COLUMN turnmill.turns.idempotency_key IS 'A second enqueue of the project with this key and the same body gets this turn.';
COMMENT ON COLUMN turnmill.turns.body_hash IS 'SHA-256 of what was enqueued, to tell a replay from a reused key.';
COMMENT ON COLUMN turnmill.turns.status IS 'pending → in_progress → completed | failed | cancelled; pending again while a scheduled retry waits. Terminal rows never change.';
COMMENT ON COLUMN turnmill.turns.attempt IS 'Starts of the agent so far; a take-over is not one.';
COMMENT ON COLUMN turnmill.turns.generation IS 'Grows when an attempt starts over from scratch; readers show blocks of the newest.';
COMMENT ON COLUMN turnmill.turns.blocks IS 'How many blocks it has, set when it ends.';
COMMENT ON COLUMN turnmill.turns.error_code IS 'Stable code of what went wrong, for programs.';
COMMENT ON COLUMN turnmill.turns.error_message IS 'What went wrong, in which phase and what to do, for people.';
COMMENT ON COLUMN turnmill.turns.usage IS 'Tokens, as the agent reports them.';
COMMENT ON COLUMN turnmill.turns.cost_usd IS 'Model cost of this turn alone, as the agent estimates it.';
COMMENT ON COLUMN turnmill.turns.created_at IS 'When it was enqueued.';
COMMENT ON COLUMN turnmill.turns.started_at IS 'First claim; never reset.';
COMMENT ON COLUMN turnmill.turns.completed_at IS 'When it reached its terminal status.';

-- Terminal rows never change again, whoever asks.
CREATE FUNCTION turnmill.refuse_change_of_ended_turn() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'turn % is % and can no longer change', OLD.id, OLD.status
    USING ERRCODE = 'TM409', HINT = 'Enqueue a new turn instead.';
END $$;
CREATE TRIGGER ended_turns_are_final BEFORE UPDATE ON turnmill.turns
  FOR EACH ROW WHEN (OLD.completed_at IS NOT NULL)
  EXECUTE FUNCTION turnmill.refuse_change_of_ended_turn();

CREATE TABLE turnmill.blocks (
  id                 text PRIMARY KEY DEFAULT turnmill.new_id('block'),
  turn_id            text NOT NULL REFERENCES turnmill.turns (id) ON DELETE CASCADE,
  seq                integer NOT NULL CHECK (seq >= 0),
  generation         integer NOT NULL,
  attempt            integer NOT NULL,
  type               text NOT NULL CHECK (type IN ('thinking', 'content', 'tool_use', 'tool_result')),
  content            jsonb NOT NULL CHECK (jsonb_typeof(content) = 'object'),
  parent_tool_use_id text,
  source_uuid        text,
  created_at         timestamptz NOT NULL DEFAULT clock_timestamp(),
  UNIQUE (turn_id, seq)
);
COMMENT ON TABLE turnmill.blocks IS 'The answer, piece by piece. Read with seq > the last one you have.';
COMMENT ON COLUMN turnmill.blocks.id IS 'block_ and a UUIDv7.';
COMMENT ON COLUMN turnmill.blocks.turn_id IS 'Its turn.';
COMMENT ON COLUMN turnmill.blocks.seq IS 'Dense from 0 over the whole turn; never restarts.';
COMMENT ON COLUMN turnmill.blocks.generation IS 'The turn''s generation when it was written; readers show the newest generation only.';
COMMENT ON COLUMN turnmill.blocks.attempt IS 'The attempt that said it.';
COMMENT ON COLUMN turnmill.blocks.type IS 'thinking, content, tool_use or tool_result.';
COMMENT ON COLUMN turnmill.blocks.content IS 'thinking {text}; content {text}; tool_use {tool_name, parameters, tool_use_id}; tool_result {tool_use_id, result, error}. Further keys may be there.';
COMMENT ON COLUMN turnmill.blocks.parent_tool_use_id IS 'The tool_use whose subagent said it; null for the main agent.';
COMMENT ON COLUMN turnmill.blocks.source_uuid IS 'The uuid of the agent''s event it came from.';
COMMENT ON COLUMN turnmill.blocks.created_at IS 'When it was committed.';

CREATE VIEW turnmill.answers AS
  SELECT b.turn_id, b.seq, b.type, b.content, b.parent_tool_use_id, b.created_at, t.status
  FROM turnmill.blocks b JOIN turnmill.turns t ON t.id = b.turn_id AND t.generation = b.generation;
COMMENT ON VIEW turnmill.answers IS 'Blocks of each turn''s newest generation, with the turn''s status from the same snapshot. WHERE turn_id = … AND seq > … ORDER BY seq';
