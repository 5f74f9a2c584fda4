-- What turns cost: model calls, and the time that sandboxes run for them. Each amount is booked once, in the very statement
-- that ends what it was for and under its fence: what is refused there is not booked, and what is booked can't be lost.
ALTER TABLE turnmill.pools ADD COLUMN sandbox_usd_per_hour numeric(12, 6) CHECK (sandbox_usd_per_hour >= 0);
COMMENT ON COLUMN turnmill.pools.sandbox_usd_per_hour IS 'What one of its sandboxes costs an hour while it runs; null = not said: their time is counted, and costs nothing. Holds for what is booked from then on.';

ALTER TABLE turnmill.slots ADD COLUMN metered_at timestamptz;
COMMENT ON COLUMN turnmill.slots.metered_at IS 'Up to when its sandbox''s time is booked; at first when its create was asked for, or it was woken.';

ALTER TABLE turnmill.turns
  ADD COLUMN input_tokens bigint,
  ADD COLUMN output_tokens bigint,
  ADD COLUMN cache_read_tokens bigint,
  ADD COLUMN cache_write_tokens bigint,
  ADD COLUMN sandbox_s numeric(14, 3),
  ADD COLUMN sandbox_usd numeric(14, 6);
COMMENT ON COLUMN turnmill.turns.cost_usd IS 'Model cost of this turn alone, of all its attempts, as the agent estimates it; null = no attempt has said.';
COMMENT ON COLUMN turnmill.turns.input_tokens IS 'Tokens that models read anew, of all its attempts and subagents; null = no attempt has said.';
COMMENT ON COLUMN turnmill.turns.output_tokens IS 'Tokens that models wrote; likewise.';
COMMENT ON COLUMN turnmill.turns.cache_read_tokens IS 'Tokens read from the prompt cache; likewise.';
COMMENT ON COLUMN turnmill.turns.cache_write_tokens IS 'Tokens written to the prompt cache; likewise.';
COMMENT ON COLUMN turnmill.turns.sandbox_s IS 'Seconds for which its attempts held a running sandbox; grows with the end of each. What one is kept warm for its session is in charges.';
COMMENT ON COLUMN turnmill.turns.sandbox_usd IS 'What these cost, at the pool''s rate of that moment.';

CREATE TABLE turnmill.charges (
  epoch              bigint NOT NULL,
  kind               text NOT NULL CHECK (kind IN ('model', 'sandbox', 'kept')),
  model              text NOT NULL CHECK ((kind = 'model') = (model <> '')),
  day                date NOT NULL,
  booked_at          timestamptz NOT NULL,
  pool               text NOT NULL,
  tenant_id          text NOT NULL,
  project_id         text NOT NULL,
  session_id         text NOT NULL,
  turn_id            text CHECK ((turn_id IS NULL) = (kind = 'kept')),
  turns              integer NOT NULL DEFAULT 0,
  unpriced           integer NOT NULL DEFAULT 0,
  input_tokens       bigint NOT NULL DEFAULT 0,
  output_tokens      bigint NOT NULL DEFAULT 0,
  cache_read_tokens  bigint NOT NULL DEFAULT 0,
  cache_write_tokens bigint NOT NULL DEFAULT 0,
  seconds            numeric(14, 3) NOT NULL DEFAULT 0,
  usd                numeric(14, 6) NOT NULL DEFAULT 0,
  PRIMARY KEY (epoch, kind, model)
);
CREATE INDEX charges_of_day ON turnmill.charges (day, tenant_id);
CREATE INDEX charges_of_session ON turnmill.charges (session_id, day);
CREATE INDEX charges_of_project ON turnmill.charges (project_id, day);
COMMENT ON TABLE turnmill.charges IS 'The ledger: what was booked, never changed. Its key makes a second booking of the same thing impossible. Read it with what is new in fresh_charges: turnmill.ledger.';
COMMENT ON COLUMN turnmill.charges.epoch IS 'The attempt that it ends, as in attempts.epoch; of kept time, the epoch that the slot had.';
COMMENT ON COLUMN turnmill.charges.kind IS 'model = calls of one model; sandbox = the attempt''s sandbox; kept = a sandbox that ran on after its turn, warm for its session or until it was gone.';
COMMENT ON COLUMN turnmill.charges.model IS 'The model, as the agent names it; empty where there is none.';
COMMENT ON COLUMN turnmill.charges.day IS 'The UTC day on which it was booked: budgets and roll-ups count it there.';
COMMENT ON COLUMN turnmill.charges.booked_at IS 'When that was.';
COMMENT ON COLUMN turnmill.charges.pool IS 'The pool.';
COMMENT ON COLUMN turnmill.charges.tenant_id IS 'Of the session; empty = none.';
COMMENT ON COLUMN turnmill.charges.project_id IS 'Of the session.';
COMMENT ON COLUMN turnmill.charges.session_id IS 'The session.';
COMMENT ON COLUMN turnmill.charges.turn_id IS 'The turn; null = kept time, which is its session''s.';
COMMENT ON COLUMN turnmill.charges.turns IS '1 where this ended a turn.';
COMMENT ON COLUMN turnmill.charges.unpriced IS '1 where an agent ran in the attempt and has not said what it cost: it was killed, or its sandbox vanished.';
COMMENT ON COLUMN turnmill.charges.input_tokens IS 'Tokens that the model read anew.';
COMMENT ON COLUMN turnmill.charges.output_tokens IS 'Tokens that it wrote.';
COMMENT ON COLUMN turnmill.charges.cache_read_tokens IS 'Tokens read from the prompt cache.';
COMMENT ON COLUMN turnmill.charges.cache_write_tokens IS 'Tokens written to the prompt cache.';
COMMENT ON COLUMN turnmill.charges.seconds IS 'Seconds that the sandbox ran.';
COMMENT ON COLUMN turnmill.charges.usd IS 'Dollars.';

-- Who books takes no lock that another one could want: a row of its own. One worker at a time moves them on.
CREATE TABLE turnmill.fresh_charges (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  LIKE turnmill.charges INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING COMMENTS
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0,
        autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 20000);
COMMENT ON TABLE turnmill.fresh_charges IS 'Charges that are booked and not in the roll-up yet: some seconds'' worth.';
COMMENT ON COLUMN turnmill.fresh_charges.id IS 'Roughly in the order in which they were booked.';

CREATE TABLE turnmill.spend_days (
  day                date NOT NULL,
  tenant_id          text NOT NULL,
  pool               text NOT NULL,
  kind               text NOT NULL,
  model              text NOT NULL,
  turns              bigint NOT NULL,
  unpriced           bigint NOT NULL,
  input_tokens       bigint NOT NULL,
  output_tokens      bigint NOT NULL,
  cache_read_tokens  bigint NOT NULL,
  cache_write_tokens bigint NOT NULL,
  seconds            numeric(18, 3) NOT NULL,
  usd                numeric(18, 6) NOT NULL,
  PRIMARY KEY (day, tenant_id, pool, kind, model)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
COMMENT ON TABLE turnmill.spend_days IS 'The roll-up: sums of charges. Read it with what is not summed yet: turnmill.spend.';
COMMENT ON COLUMN turnmill.spend_days.day IS 'UTC.';
COMMENT ON COLUMN turnmill.spend_days.tenant_id IS 'Empty = none.';
COMMENT ON COLUMN turnmill.spend_days.pool IS 'The pool.';
COMMENT ON COLUMN turnmill.spend_days.kind IS 'As in charges; and so are the sums.';
COMMENT ON COLUMN turnmill.spend_days.model IS 'The model; empty where there is none.';
COMMENT ON COLUMN turnmill.spend_days.turns IS 'Turns that ended.';
COMMENT ON COLUMN turnmill.spend_days.unpriced IS 'Attempts whose model cost nobody knows.';
COMMENT ON COLUMN turnmill.spend_days.input_tokens IS 'Tokens that models read anew.';
COMMENT ON COLUMN turnmill.spend_days.output_tokens IS 'Tokens that they wrote.';
COMMENT ON COLUMN turnmill.spend_days.cache_read_tokens IS 'Tokens read from the prompt cache.';
COMMENT ON COLUMN turnmill.spend_days.cache_write_tokens IS 'Tokens written to the prompt cache.';
COMMENT ON COLUMN turnmill.spend_days.seconds IS 'Seconds that sandboxes ran.';
COMMENT ON COLUMN turnmill.spend_days.usd IS 'Dollars.';

CREATE TABLE turnmill.spend_state (
  one       boolean PRIMARY KEY DEFAULT true CHECK (one),
  summed_to bigint NOT NULL DEFAULT 0,
  day       date NOT NULL DEFAULT '-infinity',
  usd       numeric(18, 6) NOT NULL DEFAULT 0
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);
INSERT INTO turnmill.spend_state DEFAULT VALUES;
COMMENT ON TABLE turnmill.spend_state IS 'One row: how far the roll-up is. Its lock is the right to go on with it.';
COMMENT ON COLUMN turnmill.spend_state.one IS 'There is one.';
COMMENT ON COLUMN turnmill.spend_state.summed_to IS 'Highest fresh_charges.id that was summed. Those a little below may have committed later: who looks for what is not summed looks from 1000 below on.';
COMMENT ON COLUMN turnmill.spend_state.day IS 'The newest day that was summed.';
COMMENT ON COLUMN turnmill.spend_state.usd IS 'All that is in the roll-up of that day, so that the fleet''s budget costs no sum over its tenants.';

CREATE VIEW turnmill.ledger AS
  SELECT epoch, kind, model, day, booked_at, pool, tenant_id, project_id, session_id, turn_id, turns, unpriced,
         input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, seconds, usd FROM turnmill.charges
  UNION ALL
  SELECT epoch, kind, model, day, booked_at, pool, tenant_id, project_id, session_id, turn_id, turns, unpriced,
         input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, seconds, usd FROM turnmill.fresh_charges;
COMMENT ON VIEW turnmill.ledger IS 'Every charge, also those of this moment. For one turn, session or project; sums over many are cheaper from turnmill.spend.';

CREATE VIEW turnmill.spend AS
  SELECT day, tenant_id, pool, kind, model, turns, unpriced, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens,
         seconds, usd FROM turnmill.spend_days
  UNION ALL
  SELECT day, tenant_id, pool, kind, model, turns, unpriced, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens,
         seconds, usd FROM turnmill.fresh_charges;
COMMENT ON VIEW turnmill.spend IS 'What was spent by day, tenant, pool and model, also in this moment. Sum what you need: SELECT day, sum(usd) FROM turnmill.spend GROUP BY day. It always equals the sum of turnmill.ledger.';

COMMENT ON COLUMN turnmill.ledger.epoch IS 'The attempt that it ends, as in attempts.epoch; of kept time, the epoch that the slot had.';
COMMENT ON COLUMN turnmill.ledger.kind IS 'model = calls of one model; sandbox = the attempt''s sandbox; kept = a sandbox that ran on after its turn, warm for its session or until it was gone.';
COMMENT ON COLUMN turnmill.ledger.model IS 'The model, as the agent names it; empty where there is none.';
COMMENT ON COLUMN turnmill.ledger.day IS 'The UTC day on which it was booked: budgets and roll-ups count it there.';
COMMENT ON COLUMN turnmill.ledger.booked_at IS 'When that was.';
COMMENT ON COLUMN turnmill.ledger.pool IS 'The pool.';
COMMENT ON COLUMN turnmill.ledger.tenant_id IS 'Of the session; empty = none.';
COMMENT ON COLUMN turnmill.ledger.project_id IS 'Of the session.';
COMMENT ON COLUMN turnmill.ledger.session_id IS 'The session.';
COMMENT ON COLUMN turnmill.ledger.turn_id IS 'The turn; null = kept time, which is its session''s.';
COMMENT ON COLUMN turnmill.ledger.turns IS '1 where this ended a turn.';
COMMENT ON COLUMN turnmill.ledger.unpriced IS '1 where an agent ran in the attempt and has not said what it cost: it was killed, or its sandbox vanished.';
COMMENT ON COLUMN turnmill.ledger.input_tokens IS 'Tokens that the model read anew.';
COMMENT ON COLUMN turnmill.ledger.output_tokens IS 'Tokens that it wrote.';
COMMENT ON COLUMN turnmill.ledger.cache_read_tokens IS 'Tokens read from the prompt cache.';
COMMENT ON COLUMN turnmill.ledger.cache_write_tokens IS 'Tokens written to the prompt cache.';
COMMENT ON COLUMN turnmill.ledger.seconds IS 'Seconds that the sandbox ran.';
COMMENT ON COLUMN turnmill.ledger.usd IS 'Dollars.';

COMMENT ON COLUMN turnmill.spend.day IS 'UTC.';
COMMENT ON COLUMN turnmill.spend.tenant_id IS 'Empty = none.';
COMMENT ON COLUMN turnmill.spend.pool IS 'The pool.';
COMMENT ON COLUMN turnmill.spend.kind IS 'As in charges; and so are the sums.';
COMMENT ON COLUMN turnmill.spend.model IS 'The model; empty where there is none.';
COMMENT ON COLUMN turnmill.spend.turns IS 'Turns that ended.';
COMMENT ON COLUMN turnmill.spend.unpriced IS 'Attempts whose model cost nobody knows.';
COMMENT ON COLUMN turnmill.spend.input_tokens IS 'Tokens that models read anew.';
COMMENT ON COLUMN turnmill.spend.output_tokens IS 'Tokens that they wrote.';
COMMENT ON COLUMN turnmill.spend.cache_read_tokens IS 'Tokens read from the prompt cache.';
COMMENT ON COLUMN turnmill.spend.cache_write_tokens IS 'Tokens written to the prompt cache.';
COMMENT ON COLUMN turnmill.spend.seconds IS 'Seconds that sandboxes ran.';
COMMENT ON COLUMN turnmill.spend.usd IS 'Dollars.';
