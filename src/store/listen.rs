//! Wake-ups by LISTEN. A hint and never the truth: whoever listens also polls.

use sqlx::postgres::PgListener;

use super::Store;

const READY: &str = "turnmill_ready";

/// A listener for claimable jobs, with a connection of its own.
#[derive(Debug)]
pub struct Wake {
    listener: PgListener,
}

impl Wake {
    /// Waits for the next hint. An error means that hints may have been missed: poll, then listen anew.
    pub async fn wait(&mut self) -> sqlx::Result<()> {
        // `None`: the connection was lost and will be made again; what was notified meanwhile is unknown.
        self.listener.try_recv().await.map(|_| ())
    }
}

impl Store {
    /// Starts to listen for enqueued turns.
    pub async fn listen(&self) -> anyhow::Result<Wake> {
        let mut listener = PgListener::connect_with(self.direct()?).await?;
        listener.listen(READY).await?;
        Ok(Wake { listener })
    }

    /// Tells all workers that there may be something to take.
    pub async fn wake_claimers(&self) -> sqlx::Result<()> {
        sqlx::query_scalar!("SELECT pg_notify($1, '')", READY).fetch_one(&self.pool).await?;
        Ok(())
    }
}
