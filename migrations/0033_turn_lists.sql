-- What lists of turns are read by, beside turns_newest. error_code changes only with turns that fail, so these two cost
-- the others nothing; completed_at costs each turn one entry more at its end.
CREATE INDEX turns_ended ON turnmill.turns (completed_at) WHERE completed_at IS NOT NULL;
CREATE INDEX turns_troubled ON turnmill.turns (created_at DESC, id DESC) WHERE error_code IS NOT NULL;
CREATE INDEX turns_of_error ON turnmill.turns (error_code, created_at DESC, id DESC) WHERE error_code IS NOT NULL;
-- The start of an id, in whatever collation the database has.
CREATE INDEX turns_by_id ON turnmill.turns (id text_pattern_ops);
