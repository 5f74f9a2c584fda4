-- A web server exchanges secrets of webhooks, and can read none of them.
CREATE FUNCTION turnmill.rotate_webhook_secret(endpoint_id text, secret bytea, secret_key_id text, keep interval) RETURNS timestamptz
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE until timestamptz;
BEGIN
  UPDATE turnmill.webhook_endpoints e
  SET old_secret = e.secret, old_secret_key_id = e.secret_key_id, secret = secret, secret_key_id = secret_key_id,
      old_secret_until = clock_timestamp() + keep
  WHERE e.id = endpoint_id RETURNING e.old_secret_until INTO until;
  RETURN until;
END $$;
COMMENT ON FUNCTION turnmill.rotate_webhook_secret IS
'Another secret signs from now on, sealed as its key id says; the one before does as well until the time that is returned. Null: no such endpoint.';
