//! The connections of a process: statements with a limit on their time, also through PgBouncer.
//!
//! PgBouncer in transaction mode gives each transaction any of its server connections. So there every statement runs
//! in a transaction of its own, unnamed, with its limits set in that transaction; elsewhere the limits are the
//! connection's, and statements are prepared once.

use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{BoxStream, TryStreamExt as _};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions, PgQueryResult, PgRow, PgStatement, PgTypeInfo, Postgres};
use sqlx::{AssertSqlSafe, Describe, Either, Execute, Executor, SqlStr, Transaction};

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

/// A pool of connections; `&Db` executes statements as `&PgPool` does.
#[derive(Debug, Clone)]
pub(super) struct Db {
    pool: PgPool,
    /// What begins a transaction through PgBouncer; `None`: no PgBouncer.
    begin: Option<String>,
}

impl Db {
    /// Over a pool that somebody else has made.
    pub fn over(pool: PgPool) -> Self {
        Self { pool, begin: None }
    }

    /// Makes no connection yet.
    pub fn new(options: PgConnectOptions, connections: u32, limits: Limits) -> Self {
        let (statement, lock) = (limits.statement.as_millis().to_string(), limits.lock.as_millis().to_string());
        let begin = limits.pgbouncer.then(|| format!("BEGIN; SET LOCAL statement_timeout = {statement}; SET LOCAL lock_timeout = {lock}"));
        let options = options.application_name("turnmill");
        let options = if limits.pgbouncer {
            options.statement_cache_capacity(0).extra_float_digits(None)
        } else {
            options.options([
                ("statement_timeout", statement.as_str()),
                ("lock_timeout", lock.as_str()),
                ("idle_in_transaction_session_timeout", "60000"),
            ])
        };
        let pool = PgPoolOptions::new().max_connections(connections).acquire_timeout(Duration::from_secs(5));
        Self { pool: pool.connect_lazy_with(options), begin }
    }

    /// The pool below.
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Several statements that hold together.
    pub async fn begin(&self) -> sqlx::Result<Tx> {
        let inner = match &self.begin {
            // Two numbers of ours in constant text.
            Some(begin) => self.pool.begin_with(AssertSqlSafe(begin.clone())).await?,
            None => self.pool.begin().await?,
        };
        Ok(Tx { inner, unnamed: self.begin.is_some() })
    }
}

/// A transaction; `&mut Tx` executes statements. Rolled back unless committed.
#[derive(Debug)]
pub(super) struct Tx {
    inner: Transaction<'static, Postgres>,
    unnamed: bool,
}

impl Tx {
    /// Makes it so.
    pub async fn commit(self) -> sqlx::Result<()> {
        self.inner.commit().await
    }

    /// Forgets it.
    pub async fn rollback(self) -> sqlx::Result<()> {
        self.inner.rollback().await
    }
}

/// A statement that leaves nothing on the server's connection.
struct Unnamed<E>(E);

impl<'q, E: Execute<'q, Postgres>> Execute<'q, Postgres> for Unnamed<E> {
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
        false
    }
}

type Steps<'e> = BoxStream<'e, sqlx::Result<Either<PgQueryResult, PgRow>>>;

impl<'c> Executor<'c> for &'c mut Tx {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> Steps<'e>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let connection: &mut PgConnection = &mut self.inner;
        if self.unnamed { connection.fetch_many(Unnamed(query)) } else { connection.fetch_many(query) }
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, sqlx::Result<Option<PgRow>>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let connection: &mut PgConnection = &mut self.inner;
        if self.unnamed { connection.fetch_optional(Unnamed(query)) } else { connection.fetch_optional(query) }
    }

    fn prepare_with<'e>(self, sql: SqlStr, parameters: &'e [PgTypeInfo]) -> BoxFuture<'e, sqlx::Result<PgStatement>>
    where
        'c: 'e,
    {
        let connection: &mut PgConnection = &mut self.inner;
        connection.prepare_with(sql, parameters)
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, sqlx::Result<Describe<Postgres>>>
    where
        'c: 'e,
    {
        let connection: &mut PgConnection = &mut self.inner;
        connection.describe(sql)
    }
}

impl<'c> Executor<'c> for &'c Db {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> Steps<'e>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        if self.begin.is_none() {
            return self.pool.fetch_many(query);
        }
        let all = async move {
            let mut tx = self.begin().await?;
            let steps: Vec<_> = tx.fetch_many(query).try_collect().await?;
            tx.commit().await?;
            Ok::<_, sqlx::Error>(futures::stream::iter(steps.into_iter().map(Ok)))
        };
        Box::pin(futures::stream::once(all).try_flatten())
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, sqlx::Result<Option<PgRow>>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        if self.begin.is_none() {
            return self.pool.fetch_optional(query);
        }
        Box::pin(async move {
            let mut tx = self.begin().await?;
            let row = tx.fetch_optional(query).await?;
            tx.commit().await?;
            Ok(row)
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
