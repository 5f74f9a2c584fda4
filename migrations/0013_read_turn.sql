-- Reading by polling: always one row, so that a reader who has all blocks still sees the end.
CREATE FUNCTION turnmill.read_turn(
  turn_id text, after integer DEFAULT -1, max_blocks integer DEFAULT 500,
  OUT status text, OUT generation integer, OUT waits_for text, OUT error_code text, OUT error_message text,
  OUT next_after integer, OUT blocks jsonb
) LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_variable
BEGIN
  -- One statement, so one snapshot: with a terminal status and fewer blocks than max_blocks there are no more.
  WITH page AS MATERIALIZED (
    SELECT b.* FROM turnmill.blocks b JOIN turnmill.turns t ON t.id = b.turn_id AND t.generation = b.generation
    WHERE b.turn_id = turn_id AND b.seq > after ORDER BY b.seq LIMIT max_blocks)
  SELECT t.status, t.generation, turnmill.wait_reason(t.id), t.error_code, t.error_message,
    coalesce((SELECT max(b.seq) FROM page b), after),
    coalesce((SELECT jsonb_agg(jsonb_build_object('seq', b.seq, 'type', b.type, 'content', b.content,
      'parent_tool_use_id', b.parent_tool_use_id, 'created_at', b.created_at) ORDER BY b.seq) FROM page b), '[]')
  INTO status, generation, waits_for, error_code, error_message, next_after, blocks
  FROM turnmill.turns t
  WHERE t.id = turn_id;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'there is no turn "%"', turn_id USING ERRCODE = 'TM404', HINT = 'List turns with: turnmill turns.';
  END IF;
END $$;
COMMENT ON FUNCTION turnmill.read_turn IS
'A turn and its blocks with seq > after, as one row of one snapshot. blocks is a JSON array of {seq, type, content, parent_tool_use_id,
created_at}; give next_after as after the next time. When generation has grown, the answer started over: drop the blocks that you have.
status completed | failed | cancelled with fewer blocks than max_blocks: that was all. TM404: no such turn.
Example: SELECT status, next_after, blocks FROM turnmill.read_turn(''turn_42'', after => 17);';

CREATE OR REPLACE VIEW turnmill.answers AS
  SELECT b.turn_id, b.seq, b.type, b.content, b.parent_tool_use_id, b.created_at, t.status, b.generation
  FROM turnmill.blocks b JOIN turnmill.turns t ON t.id = b.turn_id AND t.generation = b.generation;
COMMENT ON VIEW turnmill.answers IS 'Blocks of each turn''s newest generation, for looking around. To follow a turn use read_turn: here a turn without new blocks is no row.';
COMMENT ON COLUMN turnmill.answers.turn_id IS 'The turn.';
COMMENT ON COLUMN turnmill.answers.seq IS 'Place in the turn.';
COMMENT ON COLUMN turnmill.answers.type IS 'thinking, content, tool_use or tool_result.';
COMMENT ON COLUMN turnmill.answers.content IS 'As in blocks.content.';
COMMENT ON COLUMN turnmill.answers.parent_tool_use_id IS 'The tool_use whose subagent said it; null for the main agent.';
COMMENT ON COLUMN turnmill.answers.created_at IS 'When it was committed.';
COMMENT ON COLUMN turnmill.answers.status IS 'The turn''s status, of the same snapshot.';
COMMENT ON COLUMN turnmill.answers.generation IS 'The turn''s newest generation.';
