ALTER TABLE turnmill.pools ADD COLUMN api_version text CHECK (api_version IN ('v1', 'v2'));
COMMENT ON COLUMN turnmill.pools.api_version IS 'Which of E2B''s create and connect endpoints to use: v2, or v1 for servers without it; null = e2b.api_version of the workers.';
