//! Wake-ups by LISTEN. A hint and never the truth: whoever listens also polls.

use sqlx::postgres::PgListener;

use super::Store;

const READY: &str = "turnmill_ready";

/// Turns of which there is something new to read. The payload is a JSON array of their ids; empty: of any.
const READ: &str = "turnmill_read";

/// Postgres takes payloads below 8000 bytes.
const PAYLOAD_MAX: usize = 7900;

/// A listener with a connection of its own.
#[derive(Debug)]
pub struct Wake {
    listener: PgListener,
}

/// What a reader's listener heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// There is news of these turns.
    Of(Vec<String>),
    /// There may be news of any.
    Any,
}

impl Wake {
    /// Waits for the next hint. An error means that hints may have been missed: poll, then listen anew.
    pub async fn wait(&mut self) -> sqlx::Result<()> {
        // `None`: the connection was lost and will be made again; what was notified meanwhile is unknown.
        self.listener.try_recv().await.map(|_| ())
    }

    /// The same, for who reads turns.
    pub async fn hear(&mut self) -> sqlx::Result<Heard> {
        let heard = self.listener.try_recv().await?;
        let turns = heard.and_then(|heard| serde_json::from_str(heard.payload()).ok());
        Ok(turns.map_or(Heard::Any, Heard::Of))
    }
}

impl Store {
    /// Starts to listen for enqueued turns.
    pub async fn listen(&self) -> anyhow::Result<Wake> {
        self.listen_to(READY).await
    }

    /// Starts to listen for what there is to read.
    pub async fn listen_for_readers(&self) -> anyhow::Result<Wake> {
        self.listen_to(READ).await
    }

    /// Whether LISTEN can work at all: not through PgBouncer.
    pub fn can_listen(&self) -> bool {
        self.direct.is_some()
    }

    async fn listen_to(&self, channel: &str) -> anyhow::Result<Wake> {
        let mut listener = PgListener::connect_with(self.direct()?).await?;
        listener.listen(channel).await?;
        Ok(Wake { listener })
    }

    /// Tells all workers that there may be something to take.
    pub async fn wake_claimers(&self) -> sqlx::Result<()> {
        sqlx::query_scalar!("SELECT pg_notify($1, '')", READY).fetch_one(&self.pool).await?;
        Ok(())
    }

    /// Tells all who read that there is news of these turns. NOTIFY serialises commits: at most once for many turns.
    pub async fn wake_readers(&self, turns: &[String]) -> sqlx::Result<()> {
        let payload = serde_json::to_string(turns).ok().filter(|payload| payload.len() <= PAYLOAD_MAX).unwrap_or_default();
        sqlx::query_scalar!("SELECT pg_notify($1, $2)", READ, payload).fetch_one(&self.pool).await?;
        Ok(())
    }
}
