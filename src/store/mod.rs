//! All SQL of Turnmill, a file per noun. Nothing outside this folder talks SQL.
//!
//! Every write for a job names its epoch, and its caller gets told whether it was still the holder:
//! [`Fenced`] means that somebody else has the job now, and that the sandbox is theirs.
//!
//! | file | statements |
//! | --- | --- |
//! | `turns` | enqueue, read turns and blocks |
//! | `sessions`, `details` | sessions and turns in the bounds of who asks |
//! | `pages` | what comes after a place in many sessions (`pages.sql`): every stream |
//! | `previews` | what is not a block yet, for those who watch |
//! | `webhooks` | endpoints that are told when turns end |
//! | `outbox`, `deliveries` | what they are told: due, tried (`due_deliveries.sql`, `delivery_failed.sql`); listed, sent again |
//! | `overview`, `board` | how full the queue is; what waits and why, what every slot does |
//! | `metrics` | the roll-up of each minute (`close_minutes.sql`), and failures by kind |
//! | `found`, `timeline` | turns as operators look for them; one of them with all that happened to it |
//! | `found_sessions`, `held`, `pool_cards` | sessions, sandboxes and pools as operators look for them |
//! | `kills` | sandboxes that an operator wants gone |
//! | `audit`, `visits` | what people did through the dashboard, and which browsers are in it |
//! | `tokens` | who may ask over HTTP |
//! | `own_keys` | keys to the model that users and tenants have given |
//! | `jobs` | claim (`claim.sql`), phases, hand-over, promotion |
//! | `blocks` | the fenced group append (`append.sql`) |
//! | `settle` | terminal status (`settle.sql`) or the next try (`retry_later.sql`) |
//! | `charges` | what turns cost, booked where they end (`settle.sql`, `next_attempt.sql`, `retry_later.sql`), summed by day (`sum_charges.sql`) |
//! | `slots` | intent, sandbox known, release |
//! | `kept` | sandboxes that wait for their session's next turn, warm or paused |
//! | `workers` | register, renew, release |
//! | `pools`, `fleet` | configuration that lives in the database |
//! | `reconcile` | what E2B says against the slots |
//! | `turn_secrets` | what a running turn's processes were given |
//! | `transcripts` | what agents remember |
//! | `journals` | what agents printed, word for word |
//! | `files` | what turns change, and what comes with messages |
//! | `usage`, `spend` | what was spent, summed; what operators do about it |
//! | `tenants`, `tenant_cards` | weights, limits, budgets; tenants as operators look for them |
//! | `roles` | who may do what in the database (`everyone.sql`, `rights.sql`) |
//! | `erase` | forgetting a user or a session |
//! | `sealed` | what is sealed under which master key, and sealing it anew |
//! | `listen` | wake-ups |
//! | `refused` | what the public functions refuse, and why |
//! | `db` | connections, time limits, PgBouncer |

mod audit;
mod blocks;
mod board;
mod charges;
mod db;
mod deliveries;
mod details;
mod erase;
mod files;
mod fleet;
mod found;
mod found_sessions;
mod held;
mod jobs;
mod journals;
mod kept;
mod kills;
mod listen;
mod metrics;
mod next_attempt;
mod outbox;
mod overview;
mod own_keys;
mod pages;
mod pool_cards;
mod pools;
mod previews;
mod reconcile;
mod refused;
mod roles;
mod sealed;
mod sessions;
mod settle;
mod slots;
mod spend;
mod tenant_cards;
mod tenants;
mod timeline;
mod tokens;
mod transcripts;
mod turn_secrets;
mod turns;
mod usage;
mod visits;
mod webhooks;
mod workers;

use std::io::ErrorKind;
use std::time::Duration;

use anyhow::Context as _;
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

use db::Db;

pub use audit::{Actor, AuditRow};
pub use blocks::{Answer, Append, Position};
pub use board::{CELLS_MAX, Oldest, PoolRoom, SlotCell, Starts, Wait};
pub use db::Limits;
pub use deliveries::{Delivery, REPLAYED_MAX, Replay, Since};
pub use details::TurnDetail;
pub use erase::{Erasure, Traces, Whose};
pub use files::{Artifact, ArtifactRow, Artifacts, Before, TurnFiles, Workspace};
pub use fleet::{Fleet, FleetChange, FleetMoney};
pub use found::{Below, FoundPage, FoundTurn, LOOKED_AT_MAX, TurnFilter};
pub use found_sessions::{FoundSession, SessionKept, SessionPage, SessionsWanted};
pub use held::{AfterParked, HeldFilter, HeldSlot, Orphan, ParkedSandbox};
pub use jobs::{Claimed, PoolHooks, Taken};
pub use journals::Journal;
pub use kills::SandboxPlace;
pub use listen::{Heard, Wake};
pub use metrics::{Failure, Minute, Sample, Tries};
pub use next_attempt::NextAttempt;
pub use outbox::{Due, FailedTry, Room};
pub use overview::{COUNTED_MAX, QueueRow, QueueTotals};
pub use own_keys::OwnKeyInfo;
pub use pages::{PageLimits, Place, StreamBlock, Trouble, TurnPage, TurnState};
pub use pool_cards::PoolCard;
pub use pools::{Hold, Pool, PoolAnswer, PoolChange};
pub use previews::{PreviewPiece, PreviewRow, PreviewWrite};
pub use reconcile::Correction;
pub use refused::{Refused, Wrong, refused};
pub use roles::{BoundLogin, ROLES, RoleRow};
pub use sealed::{Resealed, SealedCount, SealedKind, SealedRow};
pub use sessions::{NewSession, SessionFilter, SessionRow};
pub use settle::{Kept, Retry, Settle};
pub use slots::Releasing;
pub use spend::{SpendDay, SpendFilter, SpendSum};
pub use tenant_cards::{TENANT_COUNTED_MAX, TENANTS_LOOKED_AT_MAX, TenantCard, TenantPage};
pub use tenants::{Tenant, TenantChange};
pub use timeline::{OpsTurn, Period, Said, SaidPage};
pub use tokens::{Bearer, Bounds, NewToken, TokenRow};
pub use transcripts::{Past, SavedBy};
pub use turns::{BlockRow, Enqueue, Reading, Receipt, Seam, TurnRow};
pub use usage::{By, Usage, UsageFilter};
pub use visits::Visit;
pub use webhooks::{Endpoint, EndpointChange, NewEndpoint};
pub use workers::{Renewal, WORKERS_MAX, WorkerRow};

/// The migrations of the schema, in `migrations/`.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!();

/// The write was refused: the job has another epoch or attempt, or is gone. Leave its sandbox alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("fenced: another worker has this turn, or it has ended")]
pub struct Fenced;

/// How long a command waits for a server that refuses connections: it may be starting.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// Where the database is and how to use it.
#[derive(Debug, Clone)]
pub struct Options {
    /// `postgres://…`, or PgBouncer's.
    pub url: String,
    /// Postgres itself, where `url` is PgBouncer's: for migrations and LISTEN. `None`: neither works then.
    pub direct_url: Option<String>,
    /// Most connections of this process, but for two: its heartbeat has one of its own, LISTEN another.
    pub connections: u32,
    /// How long statements may take.
    pub limits: Limits,
}

impl Options {
    /// With the defaults.
    pub fn new(url: &str, connections: u32) -> Self {
        Self { url: url.to_owned(), direct_url: None, connections, limits: Limits::default() }
    }
}

/// The database. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    pool: Db,
    /// Apart, so that nothing that waits for a connection can cost the process its lease.
    heartbeats: Db,
    /// Straight to Postgres, without limits on time; `None`: not through PgBouncer.
    direct: Option<PgPool>,
}

impl Store {
    /// Over an existing pool, as tests have it.
    pub fn new(pool: PgPool) -> Self {
        Self { pool: Db::over(pool.clone()), heartbeats: Db::over(pool.clone()), direct: Some(pool) }
    }

    /// Connects. Fails within seconds, with a text that says which URL (without its password), what was wrong there and
    /// what to do. A server that is just starting is waited for, for as long as `patience`.
    pub async fn connect(options: &Options, patience: Duration) -> anyhow::Result<Self> {
        let store = Self::lazy(options)?;
        let to = store.pool.pool().connect_options();
        let place = format!("{}:{}/{}", to.get_host(), to.get_port(), to.get_database().unwrap_or("postgres"));
        // Apart from the pool, which would try for longer and then forget why in vain.
        Box::pin(db::reachable(&to, patience)).await.map_err(|error| {
            let text = format!("can't reach Postgres at {place}; {}", advice(&error));
            anyhow::Error::from(error).context(text)
        })?;
        Ok(store)
    }

    /// Connects when it is first needed.
    pub fn lazy(options: &Options) -> anyhow::Result<Self> {
        let parse = |name: &str, url: &str| -> anyhow::Result<PgConnectOptions> {
            let wrong = || format!("{name} is not a Postgres URL; it looks like postgres://user:password@host:5432/database");
            // The parser takes any scheme.
            anyhow::ensure!(["postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme)), wrong());
            url.parse().with_context(wrong)
        };
        let to = parse("DATABASE_URL", &options.url)?;
        let direct = match (&options.direct_url, options.limits.pgbouncer) {
            (Some(url), _) => Some(parse("database.direct_url", url)?),
            (None, true) => None,
            (None, false) => Some(to.clone()),
        };
        Ok(Self {
            pool: Db::new(to.clone(), options.connections, options.limits),
            heartbeats: Db::new(to, 1, options.limits),
            direct: direct.map(|to| PgPoolOptions::new().max_connections(1).connect_lazy_with(to.application_name("turnmill"))),
        })
    }

    /// The pool below, for tests that look behind the curtain.
    pub fn pool(&self) -> &PgPool {
        self.pool.pool()
    }

    fn direct(&self) -> anyhow::Result<&PgPool> {
        self.direct.as_ref().context("this does not work through PgBouncer; set database.direct_url to Postgres' own URL")
    }

    /// Brings the schema up to date, and everybody's rights on it; whether the roles are there that have some. Safe to run from
    /// many processes at once.
    pub async fn migrate(&self) -> anyhow::Result<bool> {
        MIGRATOR.run(self.direct()?).await.context("migrating the turnmill schema")?;
        self.give_rights().await
    }

    /// Fails unless the database has exactly the migrations that this binary knows.
    pub async fn check_schema(&self) -> anyhow::Result<()> {
        let known = MIGRATOR.iter().map(|m| m.version).max().unwrap_or(0);
        let there = self.schema_version().await?;
        match there {
            Some(version) if version == known => Ok(()),
            Some(version) if version > known => {
                anyhow::bail!("the database's schema is newer ({version}) than this binary knows ({known}); deploy the newer binary")
            }
            _ => anyhow::bail!(
                "the database's schema is {}, this binary needs {known}; run: turnmill migrate",
                there.map_or_else(|| "not there".into(), |v| v.to_string())
            ),
        }
    }

    async fn schema_version(&self) -> sqlx::Result<Option<i64>> {
        // The table is the migrator's, not ours: it may not exist, so the query can't be checked at compile time.
        let there: bool = sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations') IS NOT NULL").fetch_one(&self.pool).await?;
        if !there {
            return Ok(None);
        }
        sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations WHERE success").fetch_one(&self.pool).await
    }
}

/// What to do about a connection that was not made.
fn advice(error: &sqlx::Error) -> &'static str {
    let of_tls = match error {
        sqlx::Error::Tls(_) => true,
        sqlx::Error::Io(error) => matches!(error.get_ref(), Some(cause) if cause.is::<rustls::Error>()),
        _ => false,
    };
    match error {
        _ if of_tls => {
            "check what DATABASE_URL says of TLS: sslrootcert=FILE names the authority of the server's certificate, and \
             sslmode=verify-full wants the host's name in it"
        }
        sqlx::Error::Io(error) if [ErrorKind::NotFound, ErrorKind::PermissionDenied].contains(&error.kind()) => {
            "DATABASE_URL names a file that can't be read: sslrootcert, sslcert, sslkey, or the socket"
        }
        // No entry of pg_hba.conf lets it in, or not so.
        sqlx::Error::Database(refused) if refused.code().as_deref() == Some("28000") => {
            "check the user of DATABASE_URL, and whether the server asks for TLS (sslmode=verify-full)"
        }
        _ => "check DATABASE_URL, and that the server runs and lets this host in",
    }
}

/// Whether trying again may help: the connection or the server failed, not the statement.
pub fn is_outage(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) | sqlx::Error::PoolTimedOut | sqlx::Error::WorkerCrashed => {
            true
        }
        sqlx::Error::Database(e) => e.code().is_some_and(|code| {
            // 08 connection, 40 rolled back (deadlock, serialisation), 53 resources, 57P admin shutdown or start-up, 57014 took too long, 25006 read-only replica, 55P03 lock
            code.starts_with("08")
                || code.starts_with("40")
                || code.starts_with("53")
                || code.starts_with("57P")
                || code == "57014"
                || code == "25006"
                || code == "55P03"
        }),
        _ => false,
    }
}

/// Whether the rows themselves were refused (SQLSTATE 22, 23, 54): one hostile line, not the database.
pub fn is_data_error(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(e) if e.code().is_some_and(|code| {
        code.starts_with("22") || code.starts_with("23") || code.starts_with("54")
    }))
}
