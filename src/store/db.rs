//! The connections of a process: every statement has a limit on its time, on both sides, also through PgBouncer.
//!
//! Who stops waiting for an answer (it took too long; or the process lost its lease, and its turns' futures were
//! dropped) closes the connection instead of giving it back: nobody after him gets a connection with a transaction
//! open in it, or one to a host that has vanished.
//!
//! PgBouncer in transaction mode gives each transaction any of its server connections. So there every statement runs
//! in a transaction of its own, unnamed, with its limits set in that transaction; elsewhere the limits are the
//! connection's, and statements are prepared once.

use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{BoxStream, TryStreamExt as _};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions, PgQueryResult, PgRow, PgStatement, PgTypeInfo, Postgres};
use sqlx::{AssertSqlSafe, Connection as _, Describe, Either, Execute, Executor, SqlStr};
use tokio::time::{Instant, sleep, timeout};

/// How long statements and their waits for locks may take, and what is between us and Postgres.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Longest statement.
    pub statement: Duration,
    /// Longest wait for a row that somebody else sits on.
    pub lock: Duration,
    /// PgBouncer in transaction mode is in between.
    pub pgbouncer: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self { statement: Duration::from_secs(30), lock: Duration::from_secs(1), pgbouncer: false }
    }
}

/// How long a transaction of ours may wait for its next statement: whoever vanishes in the middle of one gives his rows
/// back well before his lease is over.
const IDLE_IN_TRANSACTION_MS: &str = "5000";

/// What the network may add to a statement's own limit.
const SLACK: Duration = Duration::from_secs(2);

/// Longest statement of a glance.
const GLANCE_MS: u32 = 1500;

/// A pool of connections; `&Db` executes statements as `&PgPool` does.
#[derive(Debug, Clone)]
pub(super) struct Db {
    pool: PgPool,
    begin: String,
    unnamed: bool,
    patience: Duration,
}

impl Db {
    /// Over a pool that somebody else has made.
    pub fn over(pool: PgPool) -> Self {
        Self { pool, begin: "BEGIN".to_owned(), unnamed: false, patience: Limits::default().statement + SLACK }
    }

    /// Makes no connection yet.
    pub fn new(options: PgConnectOptions, connections: u32, limits: Limits) -> Self {
        let limited = [
            ("statement_timeout", limits.statement.as_millis().to_string()),
            ("lock_timeout", limits.lock.as_millis().to_string()),
            ("idle_in_transaction_session_timeout", IDLE_IN_TRANSACTION_MS.to_owned()),
            // Tables that were empty when they were analysed make it think that a claim is worth seconds of compiling.
            ("jit", "off".to_owned()),
        ];
        let options = options.application_name("turnmill");
        let (options, begin) = if limits.pgbouncer {
            let set = limited.map(|(name, value)| format!("; SET LOCAL {name} = {value}")).concat();
            (options.statement_cache_capacity(0).extra_float_digits(None), format!("BEGIN{set}"))
        } else {
            (options.options(limited), "BEGIN".to_owned())
        };
        let pool = PgPoolOptions::new().max_connections(connections).acquire_timeout(Duration::from_secs(5));
        Self { pool: pool.connect_lazy_with(options), begin, unnamed: limits.pgbouncer, patience: limits.statement + SLACK }
    }

    /// The pool below.
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Several statements that hold together.
    pub async fn begin(&self) -> sqlx::Result<Tx> {
        let mut tx = self.take().await?;
        tx.say(self.begin.clone()).await?;
        Ok(tx)
    }

    /// Reads that must be short and write nothing: what people look at is rather incomplete than late.
    pub async fn glance(&self) -> sqlx::Result<Tx> {
        let mut tx = self.take().await?;
        tx.say(format!("{}; SET LOCAL statement_timeout = {GLANCE_MS}; SET TRANSACTION READ ONLY", self.begin)).await?;
        Ok(tx)
    }

    async fn take(&self) -> sqlx::Result<Tx> {
        Ok(Tx { connection: Some(self.pool.acquire().await?), unnamed: self.unnamed, patience: self.patience })
    }

    /// For one statement.
    async fn one(&self) -> sqlx::Result<Tx> {
        if self.unnamed { self.begin().await } else { self.take().await }
    }

    /// After one statement.
    async fn end<T>(&self, mut tx: Tx, done: sqlx::Result<T>) -> sqlx::Result<T> {
        match done {
            Ok(value) => {
                if self.unnamed {
                    tx.commit().await?;
                } else {
                    tx.give_back();
                }
                Ok(value)
            }
            // Postgres refused it: the connection is good.
            Err(sqlx::Error::Database(refused)) => {
                if self.unnamed {
                    tx.say("ROLLBACK".to_owned()).await?;
                }
                tx.give_back();
                Err(sqlx::Error::Database(refused))
            }
            Err(error) => Err(error),
        }
    }
}

/// A connection in use; after [`Db::begin`], a transaction. `&mut Tx` executes statements. Dropped before it has ended,
/// it is closed, which rolls it back.
#[derive(Debug)]
pub(super) struct Tx {
    connection: Option<PoolConnection<Postgres>>,
    unnamed: bool,
    patience: Duration,
}

impl Tx {
    /// Makes it so.
    pub async fn commit(mut self) -> sqlx::Result<()> {
        self.say("COMMIT".to_owned()).await?;
        self.give_back();
        Ok(())
    }

    /// Forgets it.
    pub async fn rollback(mut self) -> sqlx::Result<()> {
        self.say("ROLLBACK".to_owned()).await?;
        self.give_back();
        Ok(())
    }

    /// Ends it either way, with what its last statement came to. One that Postgres refused leaves a good connection.
    pub async fn done<T>(mut self, result: sqlx::Result<T>) -> sqlx::Result<T> {
        match result {
            Ok(value) => self.commit().await.map(|()| value),
            Err(sqlx::Error::Database(refused)) => {
                self.say("ROLLBACK".to_owned()).await?;
                self.give_back();
                Err(sqlx::Error::Database(refused))
            }
            Err(error) => Err(error),
        }
    }

    /// Constant text, or numbers of ours in it.
    async fn say(&mut self, text: String) -> sqlx::Result<()> {
        let patience = self.patience;
        within(patience, self.get()?.execute(sqlx::raw_sql(AssertSqlSafe(text)))).await?;
        Ok(())
    }

    fn get(&mut self) -> sqlx::Result<&mut PgConnection> {
        // There until it has ended, and then nobody asks.
        self.connection.as_deref_mut().ok_or(sqlx::Error::WorkerCrashed)
    }

    fn give_back(mut self) {
        drop(self.connection.take());
    }
}

impl Drop for Tx {
    fn drop(&mut self) {
        drop(self.connection.take().map(PoolConnection::detach));
    }
}

/// How long a server may take to greet one connection.
const GREETING_MAX: Duration = Duration::from_secs(5);

/// Makes one connection and ends it; tries again for as long as `patience` while nobody listens there yet.
pub(super) async fn reachable(to: &PgConnectOptions, patience: Duration) -> sqlx::Result<()> {
    let since = Instant::now();
    loop {
        match within(GREETING_MAX, PgConnection::connect_with(to)).await {
            Ok(connection) => return connection.close().await,
            Err(error) if starting(&error) && since.elapsed() < patience => sleep(Duration::from_millis(100)).await,
            Err(error) => return Err(error),
        }
    }
}

fn starting(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(error) => error.kind() == std::io::ErrorKind::ConnectionRefused,
        sqlx::Error::Database(error) => error.code().as_deref() == Some("57P03"),
        _ => false,
    }
}

async fn within<T>(patience: Duration, act: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
    let late = |_| Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "Postgres did not answer in time").into());
    timeout(patience, act).await.unwrap_or_else(late)
}

/// A statement that leaves nothing on the server's connection, if it is to.
struct Named<E>(E, bool);

impl<'q, E: Execute<'q, Postgres>> Execute<'q, Postgres> for Named<E> {
    fn sql(self) -> SqlStr {
        self.0.sql()
    }

    fn statement(&self) -> Option<&PgStatement> {
        self.0.statement()
    }

    fn take_arguments(&mut self) -> Result<Option<sqlx::postgres::PgArguments>, sqlx::error::BoxDynError> {
        self.0.take_arguments()
    }

    fn persistent(&self) -> bool {
        self.1 && self.0.persistent()
    }
}

type Step = Either<PgQueryResult, PgRow>;

impl<'c> Executor<'c> for &'c mut Tx {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, sqlx::Result<Step>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let all = async move {
            let (patience, named) = (self.patience, !self.unnamed);
            let steps: Vec<Step> = within(patience, self.get()?.fetch_many(Named(query, named)).try_collect()).await?;
            Ok::<_, sqlx::Error>(futures::stream::iter(steps.into_iter().map(Ok)))
        };
        Box::pin(futures::stream::once(all).try_flatten())
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, sqlx::Result<Option<PgRow>>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        Box::pin(async move {
            let (patience, named) = (self.patience, !self.unnamed);
            within(patience, self.get()?.fetch_optional(Named(query, named))).await
        })
    }

    fn prepare_with<'e>(self, sql: SqlStr, parameters: &'e [PgTypeInfo]) -> BoxFuture<'e, sqlx::Result<PgStatement>>
    where
        'c: 'e,
    {
        Box::pin(async move { self.get()?.prepare_with(sql, parameters).await })
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, sqlx::Result<Describe<Postgres>>>
    where
        'c: 'e,
    {
        Box::pin(async move { self.get()?.describe(sql).await })
    }
}

impl<'c> Executor<'c> for &'c Db {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, sqlx::Result<Step>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let all = async move {
            let mut tx = self.one().await?;
            let done: sqlx::Result<Vec<Step>> = tx.fetch_many(query).try_collect().await;
            Ok::<_, sqlx::Error>(futures::stream::iter(self.end(tx, done).await?.into_iter().map(Ok)))
        };
        Box::pin(futures::stream::once(all).try_flatten())
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, sqlx::Result<Option<PgRow>>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        Box::pin(async move {
            let mut tx = self.one().await?;
            let done = tx.fetch_optional(query).await;
            self.end(tx, done).await
        })
    }

    fn prepare_with<'e>(self, sql: SqlStr, parameters: &'e [PgTypeInfo]) -> BoxFuture<'e, sqlx::Result<PgStatement>>
    where
        'c: 'e,
    {
        self.pool.prepare_with(sql, parameters)
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, sqlx::Result<Describe<Postgres>>>
    where
        'c: 'e,
    {
        self.pool.describe(sql)
    }
}
