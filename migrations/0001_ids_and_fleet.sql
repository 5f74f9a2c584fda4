-- The schema, its ids and its clock-free counters; and who this database belongs to.
CREATE SCHEMA IF NOT EXISTS turnmill;
COMMENT ON SCHEMA turnmill IS 'Turnmill: runs coding-agent turns durably. Public functions: enqueue_turn, cancel_turn, wait_reason. See \df+ turnmill.*';

-- UUIDv7: the first 48 bits are milliseconds, so that ids sort by time and index pages stay warm.
CREATE FUNCTION turnmill.new_id(prefix text) RETURNS text
LANGUAGE sql VOLATILE PARALLEL SAFE AS $$
  SELECT prefix || '_' || encode(
    set_bit(set_bit(
      overlay(uuid_send(gen_random_uuid())
        PLACING substring(int8send(floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3)
        FROM 1 FOR 6),
      52, 1), 53, 1), 'hex')::uuid::text
$$;
COMMENT ON FUNCTION turnmill.new_id IS 'A new id, PREFIX_ and a UUIDv7.';

-- Every claim and adoption takes the next number; whoever holds a lower one for the same job is refused.
CREATE SEQUENCE turnmill.epochs;
COMMENT ON SEQUENCE turnmill.epochs IS 'The fence: a new epoch with every claim and adoption.';

CREATE TABLE turnmill.fleet (
  singleton        boolean PRIMARY KEY DEFAULT true CHECK (singleton),
  id               text NOT NULL DEFAULT turnmill.new_id('fleet'),
  name             text NOT NULL DEFAULT 'dev' CHECK (name ~ '^[a-z0-9][a-z0-9_.-]{0,62}$'),
  prompt_max_bytes integer NOT NULL DEFAULT 1048576 CHECK (prompt_max_bytes > 0),
  created_at       timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE turnmill.fleet IS 'One row: all workers of this database.';
COMMENT ON COLUMN turnmill.fleet.singleton IS 'Always true: there is one fleet row.';
COMMENT ON COLUMN turnmill.fleet.id IS 'Random id, in every sandbox''s metadata: only this fleet touches them.';
COMMENT ON COLUMN turnmill.fleet.name IS 'Workers are configured with it and refuse a database with another name, so that a copy of production harms nobody.';
COMMENT ON COLUMN turnmill.fleet.prompt_max_bytes IS 'Longest prompt that enqueue_turn takes, in bytes of UTF-8.';
COMMENT ON COLUMN turnmill.fleet.created_at IS 'When the fleet got this id.';
INSERT INTO turnmill.fleet DEFAULT VALUES;
