//! Files of turns: what came with a message, what a turn changed, and what the next one gets of it.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::jobs::fenced;
use super::{Claimed, Fenced, Store};
use crate::files::{Attachment, Change, FileRules};

/// What is known of the files after one of the turns before, and of whether its agent was started.
#[derive(Debug, Clone, Default)]
pub struct Before {
    /// The turn.
    pub turn_id: String,
    /// Its place in its session.
    pub ordinal: i32,
    /// Its agent was started: it may have changed files.
    pub started: bool,
    /// As in `workspaces.kind`; `None`: nothing was written down.
    pub kind: Option<String>,
    /// Why not all of it can be restored.
    pub missing: Option<String>,
}

/// The files after a turn, as they are saved.
#[derive(Debug, Clone, Default)]
pub struct Workspace {
    /// tar.gz; `None`: nothing was made or changed.
    pub data: Option<Vec<u8>>,
    /// The key under which that is sealed; `None`: it is not.
    pub key_id: Option<String>,
    /// Paths that `prepare` brings and the agent has deleted, each ended by NUL.
    pub deleted: Option<Vec<u8>>,
}

/// What a turn leaves behind of its files.
#[derive(Debug, Clone, Default)]
pub struct TurnFiles {
    /// As in `workspaces.kind`.
    pub kind: &'static str,
    /// For the next turn in a new sandbox.
    pub workspace: Workspace,
    /// Entries of the archive.
    pub files: i32,
    /// Why that is not all.
    pub missing: Option<String>,
    /// For readers.
    pub artifacts: Vec<Artifact>,
    /// Why these are not all.
    pub unlisted: Option<String>,
}

/// A file that a turn has changed.
#[derive(Debug, Clone)]
pub struct Artifact {
    /// From the workspace.
    pub path: String,
    /// What became of it.
    pub change: Change,
    /// Its size; `None`: it is deleted.
    pub bytes: Option<i64>,
    /// Of its content.
    pub sha256: Option<Vec<u8>>,
    /// All of it, where that is kept.
    pub content: Option<Vec<u8>>,
}

impl Artifact {
    /// What it holds, as it was when it was packed: something may have written into it after it was listed.
    pub fn read(&mut self, content: Vec<u8>) {
        self.bytes = i64::try_from(content.len()).ok();
        self.sha256 = Some(Sha256::digest(&content).to_vec());
        self.content = Some(content);
    }
}

/// The same as readers list it.
#[derive(Debug, Clone, Serialize)]
pub struct ArtifactRow {
    /// From the workspace.
    pub path: String,
    /// created, modified or deleted.
    pub change: String,
    /// Its size.
    pub bytes: Option<i64>,
    /// In hex.
    pub sha256: Option<String>,
    /// Whether its content can be had.
    pub kept: bool,
}

/// A turn's list of files.
#[derive(Debug, Clone)]
pub struct Artifacts {
    /// By path.
    pub rows: Vec<ArtifactRow>,
    /// Why these are not all.
    pub unlisted: Option<String>,
    /// When the turn ended; before that there are none.
    pub completed_at: Option<DateTime<Utc>>,
}

impl Store {
    /// What the supervisor is to do about the files of this turn's pool, and what came with its message.
    pub async fn files_of(&self, job: &Claimed) -> sqlx::Result<(FileRules, Vec<Attachment>)> {
        let rules = sqlx::query_as!(
            FileRules,
            "SELECT workspace AS policy, files_exclude AS exclude, workspace_max_bytes AS archive_max_bytes,
               artifact_max_bytes AS each_max_bytes FROM turnmill.pools WHERE name = $1",
            job.pool
        )
        .fetch_one(&self.pool)
        .await?;
        let attachments = sqlx::query_as!(
            Attachment,
            "SELECT path, media_type, content FROM turnmill.attachments WHERE turn_id = $1 ORDER BY n",
            job.turn_id
        )
        .fetch_all(&self.pool)
        .await?;
        Ok((rules, attachments))
    }

    /// The turns whose state this one starts from, nearest first, with what is known of their files.
    pub async fn files_before(&self, turn_id: &str) -> sqlx::Result<Vec<Before>> {
        sqlx::query_as!(
            Before,
            r#"SELECT a.id AS "turn_id!", a.ordinal AS "ordinal!", a.started AS "started!", w.kind AS "kind?", w.missing
               FROM turnmill.ancestors($1) a LEFT JOIN turnmill.workspaces w ON w.turn_id = a.id ORDER BY a.n"#,
            turn_id
        )
        .fetch_all(&self.pool)
        .await
    }

    /// The files as they were after a turn.
    pub async fn workspace(&self, turn_id: &str) -> sqlx::Result<Workspace> {
        let found = sqlx::query_as!(Workspace, "SELECT data, key_id, deleted FROM turnmill.workspaces WHERE turn_id = $1", turn_id);
        Ok(found.fetch_optional(&self.pool).await?.unwrap_or_default())
    }

    /// Writes down what the turn leaves behind, instead of what an earlier attempt has.
    pub async fn save_files(&self, job: &Claimed, kept: &TurnFiles) -> sqlx::Result<Result<(), Fenced>> {
        let mut tx = self.pool.begin().await?;
        // Locked until we have committed: nobody else may become the holder in between.
        let mine = sqlx::query_scalar!(
            "SELECT turn_id FROM turnmill.jobs WHERE turn_id = $1 AND epoch = $2 AND attempt = $3 FOR NO KEY UPDATE",
            job.turn_id,
            job.epoch,
            job.attempt,
        )
        .fetch_optional(&mut tx)
        .await?;
        if mine.is_none() {
            tx.rollback().await?;
            return Ok(Err(Fenced));
        }
        sqlx::query!("DELETE FROM turnmill.artifacts WHERE turn_id = $1", job.turn_id).execute(&mut tx).await?;
        let column = |get: fn(&Artifact) -> String| kept.artifacts.iter().map(get).collect::<Vec<_>>();
        sqlx::query!(
            r#"INSERT INTO turnmill.artifacts (turn_id, n, path, change, bytes, sha256, content)
               SELECT $1, (f.nth - 1)::integer, f.path, f.change, f.bytes, f.sha256, f.content
               FROM unnest($2::text[], $3::text[], $4::bigint[], $5::bytea[], $6::bytea[])
                 WITH ORDINALITY f (path, change, bytes, sha256, content, nth)"#,
            job.turn_id,
            &column(|a| a.path.clone()),
            &column(|a| a.change.as_str().to_owned()),
            &kept.artifacts.iter().map(|a| a.bytes).collect::<Vec<_>>() as &[Option<i64>],
            &kept.artifacts.iter().map(|a| a.sha256.as_deref()).collect::<Vec<_>>() as &[Option<&[u8]>],
            &kept.artifacts.iter().map(|a| a.content.as_deref()).collect::<Vec<_>>() as &[Option<&[u8]>],
        )
        .execute(&mut tx)
        .await?;
        let data = kept.workspace.data.as_deref();
        sqlx::query!(
            "INSERT INTO turnmill.workspaces (turn_id, session_id, ordinal, kind, data, bytes, files, deleted, missing, unlisted, key_id)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
             ON CONFLICT (turn_id) DO UPDATE SET kind = excluded.kind, data = excluded.data, key_id = excluded.key_id, bytes = excluded.bytes,
               files = excluded.files, deleted = excluded.deleted, missing = excluded.missing, unlisted = excluded.unlisted,
               saved_at = clock_timestamp()",
            job.turn_id,
            job.session_id,
            job.ordinal,
            kept.kind,
            data,
            i64::try_from(data.map_or(0, <[u8]>::len)).unwrap_or(i64::MAX),
            kept.files,
            kept.workspace.deleted,
            kept.missing,
            kept.unlisted,
            kept.workspace.key_id,
        )
        .execute(&mut tx)
        .await?;
        // As with the conversation, what the pool keeps no longer of the session goes; but for the state from which this turn
        // began, and what a fork begins from.
        sqlx::query!(
            "DELETE FROM turnmill.workspaces w
             WHERE w.session_id = $1
               AND w.ordinal < (SELECT n.ordinal FROM turnmill.workspaces n WHERE n.session_id = $1 AND n.kind IN ('saved', 'empty', 'carried')
                                ORDER BY n.ordinal DESC LIMIT 1 OFFSET (SELECT p.context_versions - 1 FROM turnmill.pools p WHERE p.name = $2))
               AND w.turn_id IS DISTINCT FROM (SELECT a.id FROM turnmill.ancestors($3) a JOIN turnmill.workspaces b ON b.turn_id = a.id
                                               WHERE b.kind IN ('saved', 'empty', 'carried') ORDER BY a.n LIMIT 1)
               AND NOT EXISTS (SELECT FROM turnmill.sessions f WHERE f.forked_from = w.turn_id AND f.turns < 2)",
            job.session_id,
            job.pool,
            job.turn_id,
        )
        .execute(&mut tx)
        .await?;
        tx.commit().await?;
        Ok(Ok(()))
    }

    /// A further attempt begins: what the one before has left behind, files and conversation, is no longer what there is.
    pub async fn forget_attempt(&self, job: &Claimed) -> sqlx::Result<Result<(), Fenced>> {
        let done = sqlx::query_scalar!(
            r#"WITH job AS MATERIALIZED (
                 SELECT turn_id FROM turnmill.jobs WHERE turn_id = $1 AND epoch = $2 AND attempt = $3 FOR NO KEY UPDATE),
               workspace AS (DELETE FROM turnmill.workspaces w USING job WHERE w.turn_id = job.turn_id),
               artifact AS (DELETE FROM turnmill.artifacts a USING job WHERE a.turn_id = job.turn_id),
               transcript AS (DELETE FROM turnmill.transcripts s USING job WHERE s.turn_id = job.turn_id)
               SELECT count(*) AS "mine!" FROM job"#,
            job.turn_id,
            job.epoch,
            job.attempt,
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(fenced(u64::try_from(done).unwrap_or(0)))
    }

    /// What a turn has changed; `None`: no such turn.
    pub async fn artifacts(&self, turn_id: &str) -> sqlx::Result<Option<Artifacts>> {
        let rows = sqlx::query!(
            r#"SELECT t.completed_at, w.unlisted AS "unlisted?", a.path AS "path?", a.change AS "change?", a.bytes,
                 encode(a.sha256, 'hex') AS sha256, a.content IS NOT NULL AS "kept!"
               FROM turnmill.turns t LEFT JOIN turnmill.workspaces w ON w.turn_id = t.id
               LEFT JOIN turnmill.artifacts a ON a.turn_id = t.id WHERE t.id = $1 ORDER BY a.n"#,
            turn_id
        )
        .fetch_all(&self.pool)
        .await?;
        let Some(first) = rows.first() else { return Ok(None) };
        let (unlisted, completed_at) = (first.unlisted.clone(), first.completed_at);
        let row =
            |r: Option<(String, String)>, bytes, sha256, kept| r.map(|(path, change)| ArtifactRow { path, change, bytes, sha256, kept });
        let rows = rows.into_iter().filter_map(|r| row(r.path.zip(r.change), r.bytes, r.sha256, r.kept)).collect();
        Ok(Some(Artifacts { rows, unlisted, completed_at }))
    }

    /// The content of one file that a turn has made.
    pub async fn artifact(&self, turn_id: &str, path: &str) -> sqlx::Result<Vec<u8>> {
        sqlx::query_scalar!(r#"SELECT turnmill.artifact($1, $2) AS "content!""#, turn_id, path).fetch_one(&self.pool).await
    }
}
