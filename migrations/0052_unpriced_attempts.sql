-- What attempts have spent that ended before they said so.
ALTER TABLE turnmill.jobs ADD COLUMN unpriced integer NOT NULL DEFAULT 0;
COMMENT ON COLUMN turnmill.jobs.unpriced IS 'Attempts that ended before their agent said what they cost. Each leaves half of what was left of the turn''s budget to those after it.';
COMMENT ON TABLE turnmill.turn_secrets IS 'The secrets that the processes of a turn were given. Gone soon after the last sandbox in which they may still be.';
