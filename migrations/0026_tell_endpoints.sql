-- Whatever ends a turn (a settle, a cancel of one that waits, poison), its endpoints' rows are in the same transaction.
-- Ends of turns depend on nothing here that others could hold up: endpoints are read, never locked. As its owner, because
-- whoever may cancel a turn need not be able to read secrets.
CREATE FUNCTION turnmill.tell_endpoints() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  event text := 'turn.' || NEW.status;
  its turnmill.sessions;
BEGIN
  -- Nearly all there is to do where nobody uses webhooks.
  IF NOT EXISTS (SELECT FROM turnmill.webhook_endpoints e WHERE e.state = 'enabled') THEN
    RETURN NULL;
  END IF;
  SELECT s.* INTO its FROM turnmill.sessions s WHERE s.id = NEW.session_id;
  INSERT INTO turnmill.outbox (endpoint_id, turn_id, type, payload)
  SELECT e.id, NEW.id, event, jsonb_build_object(
    'type', event,
    'timestamp', to_char(NEW.completed_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
    'data', jsonb_build_object(
      'turn_id', NEW.id, 'session_id', NEW.session_id, 'ordinal', NEW.ordinal, 'project_id', NEW.project_id,
      'tenant_id', its.tenant_id, 'user_id', its.user_id, 'status', NEW.status, 'error_code', NEW.error_code,
      'retry_of', NEW.retry_of))
  FROM turnmill.webhook_endpoints e
  WHERE e.state = 'enabled' AND event = ANY (e.events)
    AND coalesce(e.project_id, '') = ANY (ARRAY['', NEW.project_id])
    AND coalesce(e.tenant_id, '') = ANY (ARRAY['', its.tenant_id]);
  RETURN NULL;
END $$;
COMMENT ON FUNCTION turnmill.tell_endpoints IS 'Trigger: a row in the outbox for each endpoint that wants to hear of this end.';

CREATE TRIGGER ends_are_told AFTER UPDATE ON turnmill.turns
  FOR EACH ROW WHEN (OLD.completed_at IS NULL AND NEW.completed_at IS NOT NULL)
  EXECUTE FUNCTION turnmill.tell_endpoints();
