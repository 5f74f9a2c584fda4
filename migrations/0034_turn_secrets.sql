-- What the agents of a turn were given, for whoever takes the turn over: it has other keys, and must not store these.
ALTER TABLE turnmill.jobs ADD COLUMN secrets bytea, ADD COLUMN secrets_key_id text,
  ADD CONSTRAINT jobs_secrets_sealed CHECK ((secrets IS NULL) = (secrets_key_id IS NULL));
COMMENT ON COLUMN turnmill.jobs.secrets IS 'Secrets that the turn''s agents have or had, sealed under a master key, to be masked in what they say; null = none yet, or there is no master key.';
COMMENT ON COLUMN turnmill.jobs.secrets_key_id IS 'The key.';
