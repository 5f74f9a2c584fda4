-- The web app's own table, in its own schema of the database that has Turnmill's `turnmill` beside it.
CREATE TABLE IF NOT EXISTS messages (
  id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  project_id text NOT NULL,
  session_id text NOT NULL,
  -- A rule of this app, which the fleet knows nothing of: what breaks it must enqueue nothing.
  body       text NOT NULL CONSTRAINT messages_body_max CHECK (length(body) <= 4000),
  -- The turn that answers it. Written in one transaction with it, so neither is ever without the other.
  turn_id    text NOT NULL UNIQUE,
  created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS messages_of_session ON messages (project_id, session_id, id);
