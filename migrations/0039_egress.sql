-- A pool may keep the agent's key out of its sandboxes, and say what they may reach.
ALTER TABLE turnmill.pools
  ADD COLUMN inject_key boolean NOT NULL DEFAULT false,
  ADD COLUMN egress_allow text[];
COMMENT ON COLUMN turnmill.pools.inject_key IS 'The agent''s key is added to its requests by E2B, outside the sandbox, where there is only a stand-in for it.';
COMMENT ON COLUMN turnmill.pools.egress_allow IS 'What a sandbox may reach besides its model: host names, addresses, networks; null = everything.';
