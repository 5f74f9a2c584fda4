-- What endpoints are to be told: a row for each endpoint and event.
CREATE TABLE turnmill.outbox (
  id              text PRIMARY KEY DEFAULT turnmill.new_id('msg'),
  -- No foreign key: ending a turn would lock the endpoint's row, wait for whoever deletes it, and many ends at once would
  -- make MultiXacts of it. What an endpoint leaves behind is swept up.
  endpoint_id     text NOT NULL,
  turn_id         text REFERENCES turnmill.turns (id) ON DELETE CASCADE,
  type            text NOT NULL,
  payload         jsonb NOT NULL CHECK (jsonb_typeof(payload) = 'object'),
  state           text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'delivered', 'failed')),
  attempts        integer NOT NULL DEFAULT 0 CHECK (attempts >= 0),
  next_at         timestamptz NOT NULL DEFAULT clock_timestamp(),
  epoch           bigint,
  since           timestamptz NOT NULL DEFAULT clock_timestamp(),
  last_attempt_at timestamptz,
  last_status     integer,
  last_error      text,
  ended_at        timestamptz,
  created_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
  CONSTRAINT ended_at_iff_ended CHECK ((ended_at IS NOT NULL) = (state <> 'pending')),
  CONSTRAINT only_pending_is_under_way CHECK (epoch IS NULL OR state = 'pending'),
  CONSTRAINT failed_says_why CHECK (state <> 'failed' OR last_error IS NOT NULL)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);
CREATE INDEX outbox_pending ON turnmill.outbox (endpoint_id, next_at) WHERE state = 'pending';
CREATE INDEX outbox_of_endpoint ON turnmill.outbox (endpoint_id, id);
CREATE INDEX outbox_failed ON turnmill.outbox (endpoint_id, id) WHERE state = 'failed';
CREATE INDEX outbox_ended ON turnmill.outbox (ended_at) WHERE state <> 'pending';
CREATE INDEX outbox_of_turn ON turnmill.outbox (turn_id) WHERE turn_id IS NOT NULL;
COMMENT ON TABLE turnmill.outbox IS 'What endpoints are told: written in the transaction that ends a turn, delivered by workers at least once, pending → delivered | failed.';
COMMENT ON COLUMN turnmill.outbox.id IS 'msg_ and a UUIDv7: the webhook-id, the same for every try and every replay.';
COMMENT ON COLUMN turnmill.outbox.endpoint_id IS 'Who is told.';
COMMENT ON COLUMN turnmill.outbox.turn_id IS 'What about; null = a test.';
COMMENT ON COLUMN turnmill.outbox.type IS 'turn.completed, turn.failed, turn.cancelled; webhook.test.';
COMMENT ON COLUMN turnmill.outbox.payload IS 'The body: type, timestamp, and in data only ids, status and code.';
COMMENT ON COLUMN turnmill.outbox.state IS 'pending; delivered = answered with 2xx; failed = given up, until it is replayed.';
COMMENT ON COLUMN turnmill.outbox.attempts IS 'Tries since it began to be due.';
COMMENT ON COLUMN turnmill.outbox.next_at IS 'Not before then. While a try is under way: when another worker may take it for lost.';
COMMENT ON COLUMN turnmill.outbox.epoch IS 'The try that is under way: only who has it may say how that ended.';
COMMENT ON COLUMN turnmill.outbox.since IS 'Since when it is due: the event, or its last replay. It is given up webhooks.retry_for later.';
COMMENT ON COLUMN turnmill.outbox.last_attempt_at IS 'When it was last tried.';
COMMENT ON COLUMN turnmill.outbox.last_status IS 'HTTP status of the last answer; null = there was none.';
COMMENT ON COLUMN turnmill.outbox.last_error IS 'What was wrong with the last try; null = nothing.';
COMMENT ON COLUMN turnmill.outbox.ended_at IS 'When it was delivered or given up.';
COMMENT ON COLUMN turnmill.outbox.created_at IS 'When the event was.';
