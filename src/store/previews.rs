//! The second lane: pieces of blocks that are not committed yet, from workers to those who watch. Best effort, in tables
//! that are not logged; nothing else ever waits for them.
//!
//! A web server says what is watched; workers write pieces of those turns; web servers poll what is new. Every row says
//! after which block it was true, from the same snapshot as its fence: whoever has a later block has no use for it.

use std::time::Duration;

use super::Store;
use crate::block::BlockKind;

/// What a worker has to say of one turn: pieces, and what goes on after them.
#[derive(Debug, Clone)]
pub struct PreviewWrite {
    /// The turn.
    pub turn_id: String,
    /// The fence.
    pub epoch: i64,
    /// Journal bytes whose blocks are committed. It is written only where that is where the database stands.
    pub journal_offset: i64,
    /// Order of the first piece among the epoch's.
    pub n: i32,
    /// What was said since the write before.
    pub pieces: Vec<PreviewPiece>,
    /// Which previews go on.
    pub open: Vec<i32>,
}

/// A piece of a preview.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreviewPiece {
    /// Which of the epoch's previews.
    pub preview: i32,
    /// thinking, content or `tool_use`.
    pub kind: BlockKind,
    /// Of a call.
    pub tool_name: Option<String>,
    /// The subagent's call.
    pub parent_tool_use_id: Option<String>,
    /// Characters before it.
    pub at: i32,
    /// The piece.
    pub text: String,
}

/// A row as web servers read it.
#[derive(Debug, Clone)]
pub struct PreviewRow {
    /// The turn.
    pub turn_id: String,
    /// All of an earlier one is void.
    pub epoch: i64,
    /// Order among the epoch's.
    pub n: i32,
    /// The turn's place in its session.
    pub ordinal: i32,
    /// The turn's generation.
    pub generation: i32,
    /// Seq of the last block before; -1: none.
    pub after_seq: i32,
    /// Which previews go on.
    pub open: Vec<i32>,
    /// Which preview this is a piece of, if of any.
    pub preview: Option<i32>,
    /// The type of its block.
    pub kind: Option<String>,
    /// Of a call.
    pub tool_name: Option<String>,
    /// The subagent's call.
    pub parent_tool_use_id: Option<String>,
    /// Characters before it.
    pub at: Option<i32>,
    /// The piece.
    pub text: Option<String>,
}

impl Store {
    /// Says that these turns are watched for `lasts`; gives those of them, unfinished, whose pools have previews.
    pub async fn watch_previews(&self, turns: &[String], lasts: Duration) -> sqlx::Result<Vec<String>> {
        sqlx::query_scalar!(
            // In order, so that two servers can't deadlock.
            "INSERT INTO turnmill.preview_watches AS w (turn_id, until)
             SELECT j.turn_id, clock_timestamp() + make_interval(secs => $2)
             FROM turnmill.jobs j JOIN turnmill.pools p ON p.name = j.pool
             WHERE j.turn_id = ANY($1) AND p.previews ORDER BY j.turn_id
             ON CONFLICT (turn_id) DO UPDATE SET until = greatest(w.until, excluded.until)
             RETURNING turn_id",
            turns,
            lasts.as_secs_f64(),
        )
        .fetch_all(&self.pool)
        .await
    }

    /// Which of these turns somebody watches.
    pub async fn watched(&self, turns: &[String]) -> sqlx::Result<Vec<String>> {
        sqlx::query_scalar!("SELECT turn_id FROM turnmill.preview_watches WHERE turn_id = ANY($1) AND until > clock_timestamp()", turns)
            .fetch_all(&self.pool)
            .await
    }

    /// Writes what is new and drops what is over; gives the turns of which it was written. Of the others a later block is
    /// committed by now, or they are not ours any more: they are to be asked for anew.
    pub async fn write_previews(&self, writes: &[PreviewWrite]) -> sqlx::Result<Vec<String>> {
        let mut c = Columns::default();
        for write in writes {
            c.extend(write);
        }
        sqlx::query_scalar!(
            r#"WITH input AS (
                 SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::int[], $5::text[], $6::int[], $7::text[], $8::text[], $9::text[], $10::int[], $11::text[])
                   AS t(turn_id, epoch, journal_offset, n, open, preview, type, tool_name, parent_tool_use_id, at, text)),
               fit AS MATERIALIZED (
                 SELECT i.*, i.open::int[] AS going_on, j.ordinal, j.generation, j.next_seq - 1 AS after_seq
                 FROM input i JOIN turnmill.jobs j ON j.turn_id = i.turn_id AND j.state = 'leased' AND j.epoch = i.epoch
                   AND j.journal_offset = i.journal_offset),
               over AS (
                 DELETE FROM turnmill.previews p USING (SELECT DISTINCT turn_id, epoch, going_on FROM fit) f
                 WHERE p.turn_id = f.turn_id
                   AND (p.epoch < f.epoch OR p.preview IS NULL OR p.preview <> ALL (f.going_on))),
               said AS (
                 INSERT INTO turnmill.previews
                   (turn_id, epoch, n, ordinal, generation, after_seq, open, preview, type, tool_name, parent_tool_use_id, at, text)
                 SELECT turn_id, epoch, n, ordinal, generation, after_seq, going_on, preview, type, tool_name, parent_tool_use_id, at, text
                 FROM fit)
               SELECT DISTINCT turn_id AS "turn_id!" FROM fit"#,
            &c.turn_id,
            &c.epoch,
            &c.journal_offset,
            &c.n,
            &c.open,
            &c.preview as &[Option<i32>],
            &c.kind as &[Option<String>],
            &c.tool_name as &[Option<String>],
            &c.parent as &[Option<String>],
            &c.at as &[Option<i32>],
            &c.text as &[Option<String>],
        )
        .fetch_all(&self.pool)
        .await
    }

    /// What is new of each of these turns after `(epoch, n)`, in order.
    pub async fn previews(&self, after: &[(String, i64, i32)]) -> sqlx::Result<Vec<PreviewRow>> {
        let turns: Vec<&str> = after.iter().map(|(turn, _, _)| turn.as_str()).collect();
        let epochs: Vec<i64> = after.iter().map(|&(_, epoch, _)| epoch).collect();
        let ns: Vec<i32> = after.iter().map(|&(_, _, n)| n).collect();
        sqlx::query_as!(
            PreviewRow,
            r#"SELECT p.turn_id, p.epoch, p.n, p.ordinal, p.generation, p.after_seq, p.open, p.preview, p.type AS kind, p.tool_name,
                      p.parent_tool_use_id, p.at, p.text
               FROM unnest($1::text[], $2::bigint[], $3::int[]) AS t(turn_id, epoch, n)
               JOIN turnmill.previews p ON p.turn_id = t.turn_id AND (p.epoch, p.n) > (t.epoch, t.n)
               ORDER BY p.turn_id, p.epoch, p.n"#,
            &turns as &[&str],
            &epochs,
            &ns,
        )
        .fetch_all(&self.pool)
        .await
    }

    /// Drops what its worker left behind.
    pub(super) async fn drop_old_previews(&self) -> sqlx::Result<()> {
        sqlx::query!(
            "WITH unwatched AS (DELETE FROM turnmill.preview_watches WHERE until < clock_timestamp() - interval '1 minute')
             DELETE FROM turnmill.previews p
             WHERE NOT EXISTS (SELECT FROM turnmill.jobs j WHERE j.turn_id = p.turn_id AND j.epoch = p.epoch)"
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}

/// Writes as the columns that `unnest` wants: a row for each piece, or one that says what goes on.
#[derive(Default)]
struct Columns {
    turn_id: Vec<String>,
    epoch: Vec<i64>,
    journal_offset: Vec<i64>,
    n: Vec<i32>,
    open: Vec<String>,
    preview: Vec<Option<i32>>,
    kind: Vec<Option<String>>,
    tool_name: Vec<Option<String>>,
    parent: Vec<Option<String>>,
    at: Vec<Option<i32>>,
    text: Vec<Option<String>>,
}

impl Columns {
    fn extend(&mut self, write: &PreviewWrite) {
        // An array of arrays would have to be of one length each.
        let open = format!("{{{}}}", write.open.iter().map(i32::to_string).collect::<Vec<_>>().join(","));
        let pieces = write.pieces.iter().map(Some).chain(write.pieces.is_empty().then_some(None));
        for (n, piece) in (write.n..).zip(pieces) {
            self.turn_id.push(write.turn_id.clone());
            self.epoch.push(write.epoch);
            self.journal_offset.push(write.journal_offset);
            self.n.push(n);
            self.open.push(open.clone());
            self.preview.push(piece.map(|piece| piece.preview));
            self.kind.push(piece.map(|piece| piece.kind.as_str().to_owned()));
            self.tool_name.push(piece.and_then(|piece| piece.tool_name.clone()));
            self.parent.push(piece.and_then(|piece| piece.parent_tool_use_id.clone()));
            self.at.push(piece.map(|piece| piece.at));
            self.text.push(piece.map(|piece| piece.text.clone()));
        }
    }
}
