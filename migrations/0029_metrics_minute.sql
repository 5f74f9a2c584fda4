-- What the dashboard draws: a row a minute, so that nothing ever counts history.
CREATE TABLE turnmill.metrics_minute (
  minute            timestamptz PRIMARY KEY,
  closed            boolean NOT NULL DEFAULT false,
  enqueued          integer NOT NULL DEFAULT 0,
  started           integer NOT NULL DEFAULT 0,
  completed         integer NOT NULL DEFAULT 0,
  failed            integer NOT NULL DEFAULT 0,
  cancelled         integer NOT NULL DEFAULT 0,
  tries             integer NOT NULL DEFAULT 0,
  tries_failed      integer NOT NULL DEFAULT 0,
  adopted           integer NOT NULL DEFAULT 0,
  failures          jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(failures) = 'object'),
  cost_usd          numeric(14, 6) NOT NULL DEFAULT 0,
  wait_p50_s        double precision,
  wait_p95_s        double precision,
  startup_p50_s     double precision,
  startup_p95_s     double precision,
  first_block_p50_s double precision,
  first_block_p95_s double precision,
  ready             integer,
  waiting           integer,
  running           integer,
  oldest_ready_s    double precision,
  cap               integer,
  held              integer,
  reported          integer,
  workers           integer,
  turns_max         integer,
  reasons           jsonb CHECK (jsonb_typeof(reasons) = 'object'),
  verdict           text
);
COMMENT ON TABLE turnmill.metrics_minute IS 'One row a minute, written by the worker that has the duty sample. Kept for 90 days.';
COMMENT ON COLUMN turnmill.metrics_minute.minute IS 'Its beginning.';
COMMENT ON COLUMN turnmill.metrics_minute.closed IS 'Its counts are final: it was over for some seconds when they were made. What committed later than that is in none.';
COMMENT ON COLUMN turnmill.metrics_minute.enqueued IS 'Turns enqueued in it.';
COMMENT ON COLUMN turnmill.metrics_minute.started IS 'Turns claimed in it for the first time.';
COMMENT ON COLUMN turnmill.metrics_minute.completed IS 'Turns that completed in it.';
COMMENT ON COLUMN turnmill.metrics_minute.failed IS 'Turns that failed in it.';
COMMENT ON COLUMN turnmill.metrics_minute.cancelled IS 'Turns that were cancelled in it.';
COMMENT ON COLUMN turnmill.metrics_minute.tries IS 'Claims and next attempts in it: without take-overs.';
COMMENT ON COLUMN turnmill.metrics_minute.tries_failed IS 'Attempts that ended in it with an error, whether they were tried again or not; without cancels.';
COMMENT ON COLUMN turnmill.metrics_minute.adopted IS 'Take-overs in it.';
COMMENT ON COLUMN turnmill.metrics_minute.failures IS 'tries_failed by what failed: {"PHASE CODE": count}.';
COMMENT ON COLUMN turnmill.metrics_minute.cost_usd IS 'Model cost of the turns that ended in it.';
COMMENT ON COLUMN turnmill.metrics_minute.wait_p50_s IS 'Median seconds from enqueue to first claim, of turns started in it.';
COMMENT ON COLUMN turnmill.metrics_minute.wait_p95_s IS 'The same, 95th of a hundred.';
COMMENT ON COLUMN turnmill.metrics_minute.startup_p50_s IS 'Median seconds from claim to running agent, of turns claimed in it; one that is still under way counts with what it has taken so far.';
COMMENT ON COLUMN turnmill.metrics_minute.startup_p95_s IS 'The same, 95th of a hundred.';
COMMENT ON COLUMN turnmill.metrics_minute.first_block_p50_s IS 'Median seconds from first claim to first block, of turns started in it; as startup.';
COMMENT ON COLUMN turnmill.metrics_minute.first_block_p95_s IS 'The same, 95th of a hundred.';
COMMENT ON COLUMN turnmill.metrics_minute.ready IS 'Turns that could have started, were there room, when it was last sampled; counted up to 10000. This and what follows: null = nobody sampled in it.';
COMMENT ON COLUMN turnmill.metrics_minute.waiting IS 'Turns behind another of their session; likewise.';
COMMENT ON COLUMN turnmill.metrics_minute.running IS 'Turns that ran.';
COMMENT ON COLUMN turnmill.metrics_minute.oldest_ready_s IS 'Seconds that the oldest of the ready ones had been in the queue.';
COMMENT ON COLUMN turnmill.metrics_minute.cap IS 'Caps of all pools together.';
COMMENT ON COLUMN turnmill.metrics_minute.held IS 'Slots that held a sandbox.';
COMMENT ON COLUMN turnmill.metrics_minute.reported IS 'Sandboxes that E2B listed as running.';
COMMENT ON COLUMN turnmill.metrics_minute.workers IS 'Workers with a lease.';
COMMENT ON COLUMN turnmill.metrics_minute.turns_max IS 'Turns that these could run at once.';
COMMENT ON COLUMN turnmill.metrics_minute.reasons IS 'Turns that waited, by wait_reason: {"no_slot": 12}; null reasons are under "".';
COMMENT ON COLUMN turnmill.metrics_minute.verdict IS 'What the dashboard''s first sentence said, as a code.';

ALTER TABLE turnmill.duties DROP CONSTRAINT duties_name_check;
ALTER TABLE turnmill.duties ADD CONSTRAINT duties_name_check CHECK (name ~ '^[a-z_]+$');
COMMENT ON COLUMN turnmill.duties.name IS 'reconcile = hold slots against E2B''s list; sample = write metrics_minute and failures.';
INSERT INTO turnmill.duties (name) VALUES ('sample');
