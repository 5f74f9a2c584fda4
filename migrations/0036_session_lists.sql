-- What the list of sessions is read by, beside what is there: the start of an id, in whatever collation the database has.
CREATE INDEX sessions_by_id ON turnmill.sessions (id text_pattern_ops);
