-- What the model is in the middle of saying, for those who watch: best effort, apart from everything that must last.
-- Nothing here is logged, replicated or kept: a crash of the database empties it, and nobody misses a block by that.

ALTER TABLE turnmill.pools ADD COLUMN previews boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN turnmill.pools.previews IS
  'Readers may watch blocks grow: --include-partial-messages is added to the agent''s command line. The journal is three times as long by that.';

CREATE UNLOGGED TABLE turnmill.preview_watches (
  turn_id text PRIMARY KEY,
  until   timestamptz NOT NULL
);
COMMENT ON TABLE turnmill.preview_watches IS 'Turns that somebody watches: a web server names them every few seconds, and only of them workers write previews.';
COMMENT ON COLUMN turnmill.preview_watches.turn_id IS 'The turn.';
COMMENT ON COLUMN turnmill.preview_watches.until IS 'When nobody does any more, unless it is renewed.';

CREATE UNLOGGED TABLE turnmill.previews (
  turn_id            text    NOT NULL,
  epoch              bigint  NOT NULL,
  n                  integer NOT NULL,
  ordinal            integer NOT NULL,
  generation         integer NOT NULL,
  after_seq          integer NOT NULL,
  open               integer[] NOT NULL,
  preview            integer,
  type               text,
  tool_name          text,
  parent_tool_use_id text,
  at                 integer,
  text               text,
  PRIMARY KEY (turn_id, epoch, n)
-- Rows live for seconds.
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);
COMMENT ON TABLE turnmill.previews IS 'Pieces of blocks that are not committed yet, of turns that are watched. A row goes when its block is there.';
COMMENT ON COLUMN turnmill.previews.turn_id IS 'The turn.';
COMMENT ON COLUMN turnmill.previews.epoch IS 'Who wrote it: all of an earlier epoch is void.';
COMMENT ON COLUMN turnmill.previews.n IS 'Order of the epoch''s rows.';
COMMENT ON COLUMN turnmill.previews.ordinal IS 'The turn''s place in its session.';
COMMENT ON COLUMN turnmill.previews.generation IS 'The turn''s generation.';
COMMENT ON COLUMN turnmill.previews.after_seq IS 'Seq of the turn''s last block when this was said; -1: there was none. Void for whoever has a later one.';
COMMENT ON COLUMN turnmill.previews.open IS 'Previews that go on: all others of the turn are over or withdrawn.';
COMMENT ON COLUMN turnmill.previews.preview IS 'Which of the epoch''s previews this is a piece of; null: the row only says what is open.';
COMMENT ON COLUMN turnmill.previews.type IS 'The type that its block will have.';
COMMENT ON COLUMN turnmill.previews.tool_name IS 'Of a call; its text is then the beginning of the JSON of its parameters.';
COMMENT ON COLUMN turnmill.previews.parent_tool_use_id IS 'The subagent''s call.';
COMMENT ON COLUMN turnmill.previews.at IS 'Characters before this piece.';
COMMENT ON COLUMN turnmill.previews.text IS 'The piece.';
