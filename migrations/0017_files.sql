-- Files: what a turn changed, what the next one gets of it in a new sandbox, and what comes with a message.
ALTER TABLE turnmill.fleet ADD COLUMN attachments_max_bytes integer NOT NULL DEFAULT 16777216 CHECK (attachments_max_bytes >= 0);
COMMENT ON COLUMN turnmill.fleet.attachments_max_bytes IS 'Most bytes of the files that come with one message, decoded, all together.';

ALTER TABLE turnmill.pools
  ADD COLUMN workspace text NOT NULL DEFAULT 'auto' CHECK (workspace IN ('auto', 'snapshot', 'hooks', 'none')),
  ADD COLUMN workspace_max_bytes bigint NOT NULL DEFAULT 33554432 CHECK (workspace_max_bytes BETWEEN 0 AND 536870912),
  ADD COLUMN artifact_max_bytes bigint NOT NULL DEFAULT 1048576 CHECK (artifact_max_bytes BETWEEN 0 AND 536870912),
  -- A line each in the supervisor's environment.
  ADD COLUMN files_exclude text[] NOT NULL DEFAULT ARRAY[
    '.claude', '.claude.json*', '.cache', '.npm', '.local', 'node_modules', '.venv', '__pycache__', '*.pyc',
    '.pytest_cache', '.mypy_cache', '.ruff_cache', '.bash_history', '.DS_Store']
    CHECK (array_position(files_exclude, NULL) IS NULL AND array_to_string(files_exclude, '/') !~ '\n');
COMMENT ON COLUMN turnmill.pools.workspace IS 'How a turn''s files get into the next sandbox of its session: auto = by a snapshot, unless the hook finish has carried them (exit code 0; 10 = it carries none); snapshot = by a snapshot in any case; hooks = by the hooks only; none = not at all. What does not get there is said in a context_lost block.';
COMMENT ON COLUMN turnmill.pools.finish IS 'Bash script that brings the files back when the agent has ended, however it ended; null = the shipped one for uspark, empty = none. Exit code 0 says that it has carried the files, 10 that it carries none.';
COMMENT ON COLUMN turnmill.pools.workspace_max_bytes IS 'Largest snapshot, as tar.gz; a larger one is not saved, and the next turn in a new sandbox says so. Also the most that the contents of one turn''s artifacts take together.';
COMMENT ON COLUMN turnmill.pools.artifact_max_bytes IS 'Files that a turn made or changed are kept for readers up to this size; 0 = only listed.';
COMMENT ON COLUMN turnmill.pools.files_exclude IS 'What is neither listed nor kept: patterns of names anywhere in the workspace, or, with a slash, of paths from its root.';

CREATE TABLE turnmill.artifacts (
  turn_id text NOT NULL REFERENCES turnmill.turns (id) ON DELETE CASCADE,
  n       integer NOT NULL CHECK (n >= 0),
  path    text NOT NULL,
  change  text NOT NULL CHECK (change IN ('created', 'modified', 'deleted')),
  bytes   bigint CHECK (bytes >= 0),
  sha256  bytea CHECK (length(sha256) = 32),
  content bytea,
  -- By number: a path may be longer than an index takes.
  PRIMARY KEY (turn_id, n),
  CONSTRAINT deleted_is_gone CHECK (change <> 'deleted' OR (bytes IS NULL AND sha256 IS NULL AND content IS NULL))
);
COMMENT ON TABLE turnmill.artifacts IS 'The files that a turn created, modified or deleted in its workspace, also one that failed or was cancelled. Written when its agent has ended; at most 10,000.';
COMMENT ON COLUMN turnmill.artifacts.turn_id IS 'The turn.';
COMMENT ON COLUMN turnmill.artifacts.n IS 'Place in the list, by path.';
COMMENT ON COLUMN turnmill.artifacts.path IS 'From the workspace, the directory in which the agent works. Bytes that are no UTF-8 are written \xHH.';
COMMENT ON COLUMN turnmill.artifacts.change IS 'created, modified or deleted, since the turn began.';
COMMENT ON COLUMN turnmill.artifacts.bytes IS 'Its size.';
COMMENT ON COLUMN turnmill.artifacts.sha256 IS 'Of its content; null where it is no file (a link), or where there was no time to read it.';
COMMENT ON COLUMN turnmill.artifacts.content IS 'All of it; null where it is larger than the pool''s artifact_max_bytes, or was not kept for another reason.';

CREATE TABLE turnmill.workspaces (
  turn_id    text PRIMARY KEY REFERENCES turnmill.turns (id) ON DELETE CASCADE,
  session_id text NOT NULL,
  ordinal    integer NOT NULL,
  kind       text NOT NULL CHECK (kind IN ('saved', 'empty', 'carried', 'unchanged', 'lost')),
  data       bytea,
  bytes      bigint NOT NULL DEFAULT 0 CHECK (bytes >= 0),
  files      integer NOT NULL DEFAULT 0 CHECK (files >= 0),
  deleted    bytea,
  key_id     text,
  missing    text,
  unlisted   text,
  saved_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
  CONSTRAINT only_saved_has_data CHECK (kind = 'saved' OR (data IS NULL AND deleted IS NULL)),
  CONSTRAINT lost_says_why CHECK (kind <> 'lost' OR missing IS NOT NULL)
);
CREATE INDEX workspaces_oldest ON turnmill.workspaces (saved_at);
CREATE INDEX workspaces_of_session ON turnmill.workspaces (session_id, ordinal DESC);
COMMENT ON TABLE turnmill.workspaces IS 'A session''s files as they were when a turn''s agent had ended: all that differs from what the hook prepare brings. The next turn goes on from it in a new sandbox.';
COMMENT ON COLUMN turnmill.workspaces.turn_id IS 'The turn after which it was saved.';
COMMENT ON COLUMN turnmill.workspaces.session_id IS 'That turn''s session.';
COMMENT ON COLUMN turnmill.workspaces.ordinal IS 'That turn''s place in it.';
COMMENT ON COLUMN turnmill.workspaces.kind IS 'saved; empty = nothing differs; carried = the hook finish has the files; unchanged = the agent never ran, so all is as after the turn before; lost = missing says why.';
COMMENT ON COLUMN turnmill.workspaces.data IS 'tar.gz of what was made or changed, sealed where key_id says so; null: nothing was.';
COMMENT ON COLUMN turnmill.workspaces.bytes IS 'Size of data.';
COMMENT ON COLUMN turnmill.workspaces.files IS 'Entries in it.';
COMMENT ON COLUMN turnmill.workspaces.deleted IS 'Paths that prepare brings and the agent has deleted, each ended by NUL.';
COMMENT ON COLUMN turnmill.workspaces.key_id IS 'The workers'' master key under which data is sealed; null = it is not.';
COMMENT ON COLUMN turnmill.workspaces.missing IS 'Why all of the files, or some of a saved state, can''t be restored; null: nothing is missing.';
COMMENT ON COLUMN turnmill.workspaces.unlisted IS 'Why the turn''s artifacts are not, or not all, listed; null: they are.';
COMMENT ON COLUMN turnmill.workspaces.saved_at IS 'When.';

CREATE TABLE turnmill.attachments (
  turn_id    text NOT NULL REFERENCES turnmill.turns (id) ON DELETE CASCADE,
  n          integer NOT NULL CHECK (n >= 0),
  path       text NOT NULL,
  media_type text,
  content    bytea NOT NULL,
  PRIMARY KEY (turn_id, n)
);
COMMENT ON TABLE turnmill.attachments IS 'Files that came with a turn''s message. They are in the workspace before its agent starts; it can see the images among them.';
COMMENT ON COLUMN turnmill.attachments.turn_id IS 'The turn.';
COMMENT ON COLUMN turnmill.attachments.n IS 'Place in the message.';
COMMENT ON COLUMN turnmill.attachments.path IS 'Where it lands, from the workspace.';
COMMENT ON COLUMN turnmill.attachments.media_type IS 'As the caller says; null = by the name.';
COMMENT ON COLUMN turnmill.attachments.content IS 'All of it.';

CREATE FUNCTION turnmill.artifact(turn_id text, path text) RETURNS bytea LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_variable
DECLARE
  found_status text := (SELECT t.status FROM turnmill.turns t WHERE t.id = turn_id);
  a turnmill.artifacts;
BEGIN
  IF found_status IS NULL THEN
    RAISE EXCEPTION 'there is no turn "%"', turn_id USING ERRCODE = 'TM404', HINT = 'List turns with: turnmill turns.';
  END IF;
  SELECT x.* INTO a FROM turnmill.artifacts x WHERE x.turn_id = turn_id AND x.path = path;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'turn "%" has no artifact "%"', turn_id, path USING ERRCODE = 'TM404',
      HINT = CASE WHEN found_status IN ('pending', 'in_progress') THEN 'The turn has not ended: its files are listed when it has.'
        ELSE 'Its files are listed in turnmill.artifacts: SELECT path, change, bytes FROM turnmill.artifacts WHERE turn_id = ''…''.' END;
  ELSIF a.change = 'deleted' THEN
    RAISE EXCEPTION 'turn "%" deleted "%"', turn_id, path USING ERRCODE = 'TM404',
      HINT = 'An earlier turn of the session may have it: turnmill.artifacts of that one.';
  ELSIF a.content IS NULL THEN
    RAISE EXCEPTION 'the content of "%" of turn "%" was not kept', path, turn_id USING ERRCODE = 'TM404',
      HINT = format('It has %s bytes. Files are kept up to the pool''s artifact_max_bytes, links and unreadable ones not at all.', a.bytes);
  END IF;
  RETURN a.content;
END $$;
COMMENT ON FUNCTION turnmill.artifact IS
'The content of a file that a turn created or modified. TM404: no such turn; the turn has no such file, or deleted it; its content was
not kept. Which there are: SELECT path, change, bytes FROM turnmill.artifacts WHERE turn_id = ….';

-- Where a file of a message may land: below the workspace, and not where the agent keeps its own.
CREATE FUNCTION turnmill.check_attachment_path(path text, nth integer) RETURNS void LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
  segments text[] := string_to_array(path, '/');
  what text;
BEGIN
  what := CASE
    WHEN path IS NULL OR path = '' THEN 'has no path'
    WHEN octet_length(path) > 1024 THEN format('has a path of %s bytes, more than 1024', octet_length(path))
    WHEN path LIKE '/%' THEN format('has the path "%s", from the root', path)
    WHEN path ~ '[\u0001-\u001f\u007f-\u009f\\]' THEN 'has a path with a control character or a backslash in it'
    WHEN segments && ARRAY['', '.', '..'] THEN format('has the path "%s", with an empty part, "." or ".." in it', path)
    WHEN EXISTS (SELECT FROM unnest(segments) s WHERE octet_length(s) > 255) THEN 'has a path with a name of more than 255 bytes in it'
    WHEN segments[1] IN ('.claude', '.claude.json') THEN format('has the path "%s", where the agent keeps its own files', path)
  END;
  IF what IS NOT NULL THEN
    RAISE EXCEPTION 'attachment % %', nth, what USING ERRCODE = 'TM400',
      HINT = 'Give a path below the agent''s working directory, as "data/report.csv".';
  END IF;
END $$;
COMMENT ON FUNCTION turnmill.check_attachment_path IS 'Raises TM400 unless it is a relative path without surprises.';

-- One attachment of enqueue_turn, decoded; nth from 1, for the message.
CREATE FUNCTION turnmill.read_attachment(given jsonb, nth integer, OUT path text, OUT media_type text, OUT content bytea)
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
  example constant text := 'Give {"path": "data/report.csv", "base64": "…"}, or "text" instead of "base64"; "media_type" if you like.';
  stray text;
BEGIN
  IF jsonb_typeof(given) <> 'object' THEN
    RAISE EXCEPTION 'attachment % is not a JSON object', nth USING ERRCODE = 'TM400', HINT = example;
  END IF;
  SELECT e.key INTO stray FROM jsonb_each(given) e
  WHERE e.key NOT IN ('path', 'base64', 'text', 'media_type') OR jsonb_typeof(e.value) <> 'string' LIMIT 1;
  IF FOUND THEN
    RAISE EXCEPTION 'attachment % has a "%" that is %', nth, stray,
      CASE WHEN stray IN ('path', 'base64', 'text', 'media_type') THEN 'not a text' ELSE 'not known' END USING ERRCODE = 'TM400', HINT = example;
  END IF;
  path := given ->> 'path';
  PERFORM turnmill.check_attachment_path(path, nth);
  IF (given ? 'base64') = (given ? 'text') THEN
    RAISE EXCEPTION 'attachment % has %', nth, CASE WHEN given ? 'text' THEN 'both "base64" and "text"' ELSE 'neither "base64" nor "text"' END
      USING ERRCODE = 'TM400', HINT = example;
  END IF;
  media_type := lower(given ->> 'media_type');
  IF media_type !~ '^[a-z0-9!#$&^_.+-]{1,127}/[a-z0-9!#$&^_.+-]{1,127}$' THEN
    RAISE EXCEPTION 'attachment % has the media type "%"', nth, media_type USING ERRCODE = 'TM400',
      HINT = 'Give one as "text/csv", or leave it out.';
  END IF;
  IF given ? 'text' THEN
    content := convert_to(given ->> 'text', 'UTF8');
  ELSE
    BEGIN
      content := decode(given ->> 'base64', 'base64');
    EXCEPTION WHEN invalid_parameter_value THEN
      RAISE EXCEPTION 'attachment % is not base64: %', nth, SQLERRM USING ERRCODE = 'TM400',
        HINT = 'In SQL: encode(content, ''base64''). The alphabet is the one with + and /, with = at the end.';
    END;
  END IF;
END $$;
COMMENT ON FUNCTION turnmill.read_attachment IS 'One element of enqueue_turn''s attachments, checked and decoded; TM400.';

-- All of a turn's; writes nothing before all are good.
CREATE FUNCTION turnmill.attach(turn_id text, attachments jsonb) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
  limit_bytes integer := (SELECT f.attachments_max_bytes FROM turnmill.fleet f);
  total bigint;
  clash text;
BEGIN
  INSERT INTO turnmill.attachments AS x (turn_id, n, path, media_type, content)
  SELECT turn_id, e.nth - 1, r.path, r.media_type, r.content
  FROM jsonb_array_elements(attachments) WITH ORDINALITY e (given, nth), turnmill.read_attachment(e.given, e.nth::integer) r;
  SELECT sum(length(x.content)) INTO total FROM turnmill.attachments x WHERE x.turn_id = turn_id;
  IF total > limit_bytes THEN
    RAISE EXCEPTION 'the attachments have % bytes, more than the limit of %', total, limit_bytes USING ERRCODE = 'TM400',
      HINT = 'Put large material into files of the project, or raise turnmill.fleet.attachments_max_bytes.';
  END IF;
  SELECT y.path INTO clash FROM turnmill.attachments x JOIN turnmill.attachments y ON y.turn_id = x.turn_id AND y.n > x.n
  WHERE x.turn_id = turn_id AND (x.path = y.path OR starts_with(x.path, y.path || '/') OR starts_with(y.path, x.path || '/')) LIMIT 1;
  IF FOUND THEN
    RAISE EXCEPTION 'two attachments are for the path "%"', clash USING ERRCODE = 'TM400',
      HINT = 'Give each a path of its own; one can''t be a directory of another.';
  END IF;
END $$;
COMMENT ON FUNCTION turnmill.attach IS 'Stores a new turn''s attachments; TM400 when one is not good.';

-- As enqueue_turn takes them.
CREATE FUNCTION turnmill.attachments_of(turn_id text) RETURNS jsonb LANGUAGE sql STABLE AS $$
  SELECT coalesce(jsonb_agg(jsonb_strip_nulls(jsonb_build_object('path', a.path, 'media_type', a.media_type,
    'base64', encode(a.content, 'base64'))) ORDER BY a.n), '[]')
  FROM turnmill.attachments a WHERE a.turn_id = attachments_of.turn_id
$$;
COMMENT ON FUNCTION turnmill.attachments_of IS 'A turn''s attachments as enqueue_turn takes them.';

DROP FUNCTION turnmill.enqueue_turn(text, text, text, text, text, jsonb, text, integer, text, text, text);
CREATE FUNCTION turnmill.enqueue_turn(
  prompt          text,
  project_id      text DEFAULT NULL,
  session_id      text DEFAULT NULL,
  turn_id         text DEFAULT NULL,
  idempotency_key text DEFAULT NULL,
  options         jsonb DEFAULT '{}',
  pool            text DEFAULT NULL,
  priority        integer DEFAULT 0,
  user_id         text DEFAULT NULL,
  tenant_id       text DEFAULT NULL,
  on_busy         text DEFAULT NULL,
  attachments     jsonb DEFAULT '[]'
) RETURNS turnmill.receipt LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
  s turnmill.sessions;
  t turnmill.turns;
  p turnmill.pools;
  fresh_session boolean;
  busy boolean;
  running text;
  queue_was_empty boolean;
  -- jsonb text is canonical, so equal bodies have equal hashes whatever their spacing.
  body jsonb := jsonb_build_array(prompt, options, session_id, turn_id, pool, priority, user_id, tenant_id);
  hash bytea := sha256(convert_to((CASE WHEN attachments <> '[]' THEN body || jsonb_build_array(on_busy, attachments)
    WHEN on_busy IS NULL THEN body ELSE body || to_jsonb(on_busy) END)::text, 'UTF8'));
BEGIN
  IF jsonb_typeof(attachments) IS DISTINCT FROM 'array' THEN
    RAISE EXCEPTION 'attachments is not a JSON array' USING ERRCODE = 'TM400',
      HINT = 'For example: attachments => ''[{"path": "notes.txt", "text": "…"}]''; leave it out for none.';
  ELSIF jsonb_array_length(attachments) > 50 THEN
    RAISE EXCEPTION 'there are % attachments, more than the limit of 50', jsonb_array_length(attachments) USING ERRCODE = 'TM400',
      HINT = 'Put them into one archive, or into files of the project.';
  END IF;
  IF on_busy NOT IN ('queue', 'reject', 'interrupt') THEN
    RAISE EXCEPTION 'on_busy is "%"', on_busy USING ERRCODE = 'TM400',
      HINT = 'It is queue, reject or interrupt; null leaves it to the session.';
  END IF;
  IF idempotency_key IS NOT NULL THEN
    SELECT x.* INTO t FROM turnmill.turns x
    WHERE x.idempotency_key = idempotency_key
      AND x.project_id = coalesce(project_id, (SELECT y.project_id FROM turnmill.sessions y WHERE y.id = session_id));
    IF FOUND THEN
      RETURN turnmill.replay(t, hash);
    END IF;
  END IF;

  fresh_session := session_id IS NULL OR NOT EXISTS (SELECT FROM turnmill.sessions x WHERE x.id = session_id);
  s := turnmill.session_for(session_id, project_id, pool, user_id, tenant_id);
  IF s.tenant_id <> tenant_id THEN
    RAISE EXCEPTION 'session "%" belongs to another tenant', s.id USING ERRCODE = 'TM409',
      HINT = 'A session stays with its tenant. Leave tenant_id out, or start a new session.';
  END IF;
  SELECT x.* INTO p FROM turnmill.pools x WHERE x.name = s.pool;
  PERFORM turnmill.check_turn(prompt, options, p);

  -- This UPDATE locks the session until the caller commits: ordinals have no gaps, and a higher
  -- one is never visible before a lower one. Workers never need this row's lock.
  UPDATE turnmill.sessions x SET turns = x.turns + 1, tenant_id = coalesce(x.tenant_id, tenant_id) WHERE x.id = s.id RETURNING * INTO s;
  -- A statement of its own, so that it sees what was committed while we waited for the session.
  busy := EXISTS (SELECT FROM turnmill.jobs j WHERE j.session_id = s.id);
  IF busy AND coalesce(on_busy, s.on_busy) = 'reject' THEN
    UPDATE turnmill.sessions x SET turns = x.turns - 1 WHERE x.id = s.id;
    RETURN (NULL, s.id, NULL, false, 'session_busy', 'rejected',
      (SELECT count(*) FROM turnmill.jobs j WHERE j.session_id = s.id))::turnmill.receipt;
  END IF;

  INSERT INTO turnmill.turns AS x (id, session_id, project_id, ordinal, prompt, options, idempotency_key, body_hash)
  VALUES (coalesce(turn_id, turnmill.new_id('turn')), s.id, s.project_id, s.turns, prompt, options, idempotency_key, hash)
  ON CONFLICT DO NOTHING RETURNING x.* INTO t;
  IF NOT FOUND THEN  -- the same key, or the same turn id, was committed by another transaction meanwhile
    UPDATE turnmill.sessions x SET turns = x.turns - 1 WHERE x.id = s.id;
    DELETE FROM turnmill.sessions x WHERE fresh_session AND x.id = s.id AND x.turns = 0;
    SELECT x.* INTO t FROM turnmill.turns x
    WHERE x.project_id = s.project_id AND x.idempotency_key = idempotency_key;
    IF FOUND THEN
      RETURN turnmill.replay(t, hash);
    END IF;
    RAISE EXCEPTION 'there is already a turn "%"', turn_id USING ERRCODE = 'TM409',
      HINT = 'Turn ids are used once. To make a repeated enqueue harmless, give an idempotency_key.';
  END IF;

  IF attachments <> '[]' THEN
    PERFORM turnmill.attach(t.id, attachments);
  END IF;

  queue_was_empty := NOT EXISTS (SELECT FROM turnmill.jobs j
    WHERE j.state = 'ready' AND j.pool = s.pool AND j.tenant_id = coalesce(s.tenant_id, '') AND j.run_at <= clock_timestamp());
  INSERT INTO turnmill.jobs (turn_id, session_id, ordinal, pool, state, priority, tenant_id)
  VALUES (t.id, s.id, t.ordinal, s.pool, CASE WHEN busy THEN 'waiting' ELSE 'ready' END, priority, coalesce(s.tenant_id, ''));
  -- A hint, at most one for a burst: NOTIFY serialises commits, and whoever polls finds the rest.
  IF queue_was_empty AND NOT busy THEN
    PERFORM pg_notify('turnmill_ready', s.pool);
  END IF;
  IF busy AND coalesce(on_busy, s.on_busy) = 'interrupt' THEN
    -- One that has not begun keeps its place: its message was not answered yet.
    SELECT j.turn_id INTO running FROM turnmill.jobs j JOIN turnmill.turns x ON x.id = j.turn_id
    WHERE j.session_id = s.id AND j.state <> 'waiting' AND x.started_at IS NOT NULL;
    IF FOUND THEN
      PERFORM turnmill.cancel_turn(running, format('interrupted by turn %s', t.id));
      RETURN turnmill.receipt_of(t.id, false, 'interrupting');
    END IF;
  END IF;
  RETURN turnmill.receipt_of(t.id, false);
END $$;
COMMENT ON FUNCTION turnmill.enqueue_turn IS
'Enqueues one user message, in the caller''s own transaction: it runs if and when that commits.
project_id is needed for a new session; session_id null starts one. Ids may be given (text) or are made.
idempotency_key: the same key and body of a project give the same turn again, another body is an error (TM409).
on_busy: what to do while the session has an unfinished turn: queue (default) | reject | interrupt; null = as the session says.
attachments: files for the agent''s working directory, [{"path": "data/report.csv", "base64": "…"}], or "text" instead of "base64", and
"media_type" if you like; at most 50, together no larger than fleet.attachments_max_bytes. The agent sees images among them.
Errors: TM400 bad argument, TM404 no such pool, TM409 conflict. Returns turn_id, session_id, status, replayed, waits_for, disposition, queue_position.
Example: SELECT turn_id FROM turnmill.enqueue_turn(prompt => ''Fix the login bug'', project_id => ''p1'', session_id => ''sess_42'');';

CREATE OR REPLACE FUNCTION turnmill.retry_turn(
  turn_id text, new_turn_id text DEFAULT NULL, idempotency_key text DEFAULT NULL
) RETURNS turnmill.receipt LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
  old turnmill.turns;
  made turnmill.receipt;
BEGIN
  SELECT t.* INTO old FROM turnmill.turns t WHERE t.id = turn_id;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'there is no turn "%"', turn_id USING ERRCODE = 'TM404', HINT = 'List turns with: turnmill turns.';
  END IF;
  IF old.completed_at IS NULL THEN
    RAISE EXCEPTION 'turn "%" is % and can''t be retried yet', turn_id, old.status USING ERRCODE = 'TM409',
      HINT = 'Wait until it has ended, or cancel it first: turnmill.cancel_turn(id).';
  END IF;
  made := turnmill.enqueue_turn(prompt => old.prompt, options => old.options, session_id => old.session_id,
    turn_id => new_turn_id, idempotency_key => idempotency_key, on_busy => 'queue',
    attachments => turnmill.attachments_of(old.id));
  UPDATE turnmill.turns t SET retry_of = old.id WHERE t.id = made.turn_id AND t.retry_of IS NULL AND NOT made.replayed;
  RETURN made;
END $$;
COMMENT ON FUNCTION turnmill.retry_turn IS
'Enqueues an ended turn''s message again, with its attachments, as a new turn at the end of its session; its retry_of names the old one, which stays
as it is. TM404: no such turn. TM409: it has not ended. Returns a receipt, as enqueue_turn does.';
