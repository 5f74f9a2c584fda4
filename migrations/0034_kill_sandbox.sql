-- A sandbox that an operator wants gone. Who asks may have no E2B key, so the request is a row, and workers carry it out.
CREATE TABLE turnmill.sandbox_kills (
  sandbox_id   text PRIMARY KEY,
  requested_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  due_at       timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE turnmill.sandbox_kills IS 'Sandboxes that somebody wants killed. The row stays until E2B says that the sandbox is gone: ids are never used twice, so a kill that is late or doubled hits nothing else.';
COMMENT ON COLUMN turnmill.sandbox_kills.sandbox_id IS 'E2B''s id of the sandbox.';
COMMENT ON COLUMN turnmill.sandbox_kills.requested_at IS 'When it was asked for.';
COMMENT ON COLUMN turnmill.sandbox_kills.due_at IS 'When any worker may try (again).';

CREATE FUNCTION turnmill.kill_sandbox(sandbox_id text) RETURNS text LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
  place text;
BEGIN
  -- In this order, so that one that is being parked is seen: it is in its slot until it is parked.
  SELECT s.state INTO place FROM turnmill.slots s WHERE s.sandbox_id = sandbox_id;
  IF NOT FOUND THEN
    SELECT CASE WHEN p.doomed THEN 'releasing' ELSE 'parked' END INTO place FROM turnmill.parked p WHERE p.sandbox_id = sandbox_id;
  END IF;
  IF place IS NULL THEN
    SELECT 'orphan' INTO place FROM turnmill.corrections c WHERE c.kind = 'orphan' AND c.subject = sandbox_id AND c.done_at IS NULL;
  END IF;
  IF place IS NULL THEN
    RAISE EXCEPTION 'this fleet has no sandbox "%"', sandbox_id USING ERRCODE = 'TM404',
      HINT = 'It may be gone already. What lives: SELECT sandbox_id FROM turnmill.slots UNION ALL SELECT sandbox_id FROM turnmill.parked.';
  END IF;
  IF place = 'releasing' THEN
    RAISE EXCEPTION 'sandbox "%" is being killed already', sandbox_id USING ERRCODE = 'TM409', HINT = 'Its slot comes free when E2B says that it is gone.';
  END IF;
  INSERT INTO turnmill.sandbox_kills (sandbox_id) VALUES (sandbox_id) ON CONFLICT DO NOTHING;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'somebody has asked for sandbox "%" to be killed already', sandbox_id USING ERRCODE = 'TM409',
      HINT = 'A worker does it within seconds; if none is alive, as soon as one is.';
  END IF;
  RETURN place;
END $$;
COMMENT ON FUNCTION turnmill.kill_sandbox IS
'Asks workers to kill a sandbox; what it was: creating, busy, warm, pausing, parked or orphan. A turn that runs in it loses it, and
starts over or fails as with any lost sandbox; a kept one is missing for its session''s next turn, which begins from what was saved.
TM404: the fleet has no such sandbox. TM409: it is being killed.';
