//! Who may do what in the database: Turnmill's roles, their rights, and the logins that are bound to a tenant.
//!
//! Roles belong to all databases of a server, rights to one. So `turnmill roles create` makes the roles, once a server, and every
//! migration gives them their rights anew (`everyone.sql`, `rights.sql`): what is not written there is taken back.

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use super::Store;

/// The roles, and what each is for. None can log in: they are granted to those who do.
pub const ROLES: [(&str, &str); 4] = [
    ("turnmill_enqueuer", "web apps, by plain SQL: the public functions, and reading turns"),
    ("turnmill_worker", "turnmill worker"),
    ("turnmill_web", "turnmill web: the HTTP API and the dashboard"),
    ("turnmill_viewer", "dashboards and people who look: all but secrets and files"),
];

const EVERYONE: &str = include_str!("everyone.sql");
const RIGHTS: &str = include_str!("rights.sql");

/// Lets the roles see all rows of a table that has row security.
const POLICIES: &str = include_str!("policies.sql");

/// Those tables.
const SECURED: [&str; 5] = ["sessions", "turns", "blocks", "attachments", "artifacts"];

/// A role as the database has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleRow {
    /// One of [`ROLES`].
    pub name: String,
    /// Whether it is there.
    pub exists: bool,
    /// Who logs in with its rights.
    pub logins: Vec<String>,
}

/// A login that sees one tenant only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoundLogin {
    /// Its role.
    pub login: String,
    /// Whose rows it sees.
    pub tenant_id: String,
    /// Since when.
    pub bound_at: DateTime<Utc>,
}

impl Store {
    /// Makes the roles that are not there, and gives all of them their rights in this database if it has our schema.
    pub async fn create_roles(&self) -> anyhow::Result<()> {
        let mut connection = self.direct()?.acquire().await?;
        for (name, _) in ROLES {
            // Another database's command may be making it this moment.
            let make = format!(
                "DO $$ BEGIN IF to_regrole('{name}') IS NULL THEN CREATE ROLE {name} NOLOGIN; END IF;
                 EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
            );
            let made = sqlx::raw_sql(AssertSqlSafe(make)).execute(&mut *connection).await;
            made.with_context(|| format!("can't make the role {name}; somebody who may make roles can: {}", creation()))?;
        }
        let ours: bool = sqlx::query_scalar("SELECT to_regclass('turnmill.tenant_logins') IS NOT NULL").fetch_one(&mut *connection).await?;
        if ours {
            give_rights(&mut connection).await?;
        }
        Ok(())
    }

    /// Gives everybody the rights that are theirs, and takes all others; whether the roles are there.
    pub(super) async fn give_rights(&self) -> anyhow::Result<bool> {
        give_rights(&mut *self.direct()?.acquire().await?).await
    }

    /// The roles, in the order of [`ROLES`].
    pub async fn roles(&self) -> sqlx::Result<Vec<RoleRow>> {
        let names = ROLES.map(|(name, _)| name.to_owned());
        sqlx::query_as!(
            RoleRow,
            r#"SELECT wanted.name AS "name!", r.oid IS NOT NULL AS "exists!",
                 ARRAY(SELECT m.rolname::text FROM pg_roles m
                       WHERE m.rolcanlogin AND NOT m.rolsuper AND pg_has_role(m.oid, r.oid, 'MEMBER') ORDER BY 1) AS "logins!"
               FROM unnest($1::text[]) WITH ORDINALITY AS wanted (name, nth) LEFT JOIN pg_roles r ON r.rolname = wanted.name
               ORDER BY wanted.nth"#,
            &names,
        )
        .fetch_all(&self.pool)
        .await
    }

    /// Which logins are bound to tenants.
    pub async fn bound_logins(&self) -> sqlx::Result<Vec<BoundLogin>> {
        sqlx::query_as!(
            BoundLogin,
            r#"SELECT coalesce(r.rolname, l.name)::text AS "login!", l.tenant_id, l.bound_at
               FROM turnmill.tenant_logins l LEFT JOIN pg_roles r ON r.oid = l.login ORDER BY 1"#
        )
        .fetch_all(&self.pool)
        .await
    }

    /// Binds a login to a tenant, in the place of the one before. Refused for whoever would see all rows nevertheless.
    pub async fn bind_login(&self, login: &str, tenant_id: &str) -> anyhow::Result<()> {
        if let Some(why) = self.why_unbindable(login).await? {
            anyhow::bail!("{login} {why}");
        }
        sqlx::query!(
            "INSERT INTO turnmill.tenant_logins (login, name, tenant_id) SELECT r.oid, r.rolname, $2 FROM pg_roles r WHERE r.rolname = $1
             ON CONFLICT (login) DO UPDATE SET name = excluded.name, tenant_id = excluded.tenant_id, bound_at = clock_timestamp()",
            login,
            tenant_id,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// It sees all tenants again; whether it was bound.
    pub async fn unbind_login(&self, login: &str) -> sqlx::Result<bool> {
        let done = sqlx::query!(
            "DELETE FROM turnmill.tenant_logins l
             WHERE l.name = $1 OR EXISTS (SELECT FROM pg_roles r WHERE r.oid = l.login AND r.rolname = $1)",
            login
        );
        Ok(done.execute(&self.pool).await?.rows_affected() > 0)
    }

    /// What speaks against binding it, with what to do about that.
    async fn why_unbindable(&self, login: &str) -> sqlx::Result<Option<String>> {
        let found = sqlx::query!(
            r#"SELECT r.rolcanlogin AS "can_login!", r.rolsuper OR r.rolbypassrls AS "sees_all!",
                 pg_has_role(r.oid, n.nspowner, 'MEMBER') AS "owns!",
                 (SELECT g.rolname::text FROM pg_roles g
                  WHERE g.rolname IN ('turnmill_worker', 'turnmill_web', 'turnmill_viewer') AND pg_has_role(r.oid, g.oid, 'MEMBER')
                  ORDER BY 1 LIMIT 1) AS other,
                 EXISTS (SELECT FROM pg_roles g WHERE g.rolname = 'turnmill_enqueuer' AND pg_has_role(r.oid, g.oid, 'MEMBER')) AS "enqueues!"
               FROM pg_roles r CROSS JOIN pg_namespace n WHERE r.rolname = $1 AND n.nspname = 'turnmill'"#,
            login
        )
        .fetch_optional(&self.pool)
        .await?;
        let Some(found) = found else {
            return Ok(Some("is not there; make it first: CREATE ROLE … LOGIN PASSWORD '…' IN ROLE turnmill_enqueuer".to_owned()));
        };
        Ok(if !found.can_login {
            Some("can't log in, and what counts is who does: bind the login itself".to_owned())
        } else if found.sees_all || found.owns {
            Some("sees all rows whatever it is bound to: it is a superuser, has BYPASSRLS, or owns the schema".to_owned())
        } else if let Some(other) = found.other {
            Some(format!("has the role {other}, which sees all tenants; take it away first: REVOKE {other} FROM …"))
        } else if !found.enqueues {
            Some("has no rights here yet; give it some first: GRANT turnmill_enqueuer TO …".to_owned())
        } else {
            None
        })
    }
}

/// What somebody with more rights than ours types.
fn creation() -> String {
    ROLES.map(|(name, _)| format!("CREATE ROLE {name} NOLOGIN;")).join(" ")
}

async fn give_rights(connection: &mut PgConnection) -> anyhow::Result<bool> {
    let mut tx = connection.begin().await?;
    // One after the other: two that grant on one table at once are an error of one of them.
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended('turnmill.rights', 0))").execute(&mut *tx).await?;
    sqlx::raw_sql(EVERYONE).execute(&mut *tx).await.context("taking rights from PUBLIC")?;
    let names = ROLES.map(|(name, _)| name.to_owned());
    let there: i64 =
        sqlx::query_scalar("SELECT count(*) FROM pg_roles WHERE rolname = ANY ($1)").bind(&names[..]).fetch_one(&mut *tx).await?;
    let all = usize::try_from(there).is_ok_and(|there| there == names.len());
    if all {
        sqlx::raw_sql(RIGHTS).execute(&mut *tx).await.context("giving Turnmill's roles their rights")?;
    }
    tx.commit().await?;
    for table in SECURED.into_iter().filter(|_| all) {
        let policies = POLICIES.replace("{table}", table);
        // A transaction each: with two such locks workers could wait for one, and it for them.
        sqlx::raw_sql(sqlx::AssertSqlSafe(policies)).execute(&mut *connection).await.with_context(|| format!("the policies of {table}"))?;
    }
    Ok(all)
}
