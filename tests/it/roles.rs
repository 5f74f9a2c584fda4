//! Who may do what in the database: each role exactly what is written down, a login that is bound to a tenant only its rows.
//!
//! That workers and web servers need no more is shown by all other tests: theirs run with `turnmill_worker` and `turnmill_web`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde_json::json;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, Connection as _, PgPool};
use turnmill::local::postgres::{self, Postgres, passable_tempdir};
use turnmill::store::{Enqueue, ROLES, Settle};
use turnmill::turn::Ending;

use crate::commands::{fails, said, turnmill};
use crate::harness::{Fleet, Holding as _, append, ending};

/// What can be granted, on what; a letter each, as in the snapshot.
const ON_TABLES: [(&str, char); 7] =
    [("SELECT", 'r'), ("INSERT", 'a'), ("UPDATE", 'w'), ("DELETE", 'd'), ("TRUNCATE", 'D'), ("REFERENCES", 'x'), ("TRIGGER", 't')];

/// A login of this test's own with one of our roles, until it is `gone`.
struct Login {
    name: String,
    connection: PgConnection,
    owner: PgPool,
}

impl Login {
    async fn of(fleet: &Fleet, role: &str, suffix: &str) -> Self {
        // Databases of tests have names that are as long as a role's may be.
        Self::named(fleet, role, format!("{suffix}_{:08x}", rand::random::<u32>())).await
    }

    async fn named(fleet: &Fleet, role: &str, name: String) -> Self {
        let to = fleet.pool.connect_options();
        let make = format!("CREATE ROLE \"{name}\" LOGIN PASSWORD 'x' IN ROLE {role}");
        sqlx::raw_sql(AssertSqlSafe(make)).execute(&fleet.pool).await.unwrap();
        let to: PgConnectOptions = to.as_ref().clone().username(&name).password("x");
        Self { connection: PgConnection::connect_with(&to).await.unwrap(), name, owner: fleet.pool.clone() }
    }

    /// What it gets, as text, null as nothing; or the error's code.
    async fn ask(&mut self, statement: &str) -> Result<Vec<String>, String> {
        let rows = sqlx::query_scalar::<_, Option<String>>(AssertSqlSafe(statement.to_owned())).fetch_all(&mut self.connection).await;
        let rows = rows.map_err(|error| error.into_database_error().unwrap().code().unwrap().into_owned())?;
        Ok(rows.into_iter().flatten().collect())
    }

    /// Does it, and then not.
    async fn tries(&mut self, statement: &str) -> Result<(), String> {
        let mut tx = self.connection.begin().await.unwrap();
        let done = sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&mut *tx).await;
        tx.rollback().await.unwrap();
        done.map(drop).map_err(|error| {
            let error = error.into_database_error().unwrap();
            format!("{} {}", error.code().unwrap_or_default(), error.message())
        })
    }

    /// It has no right to it.
    async fn may_not(&mut self, statement: &str) {
        let said = self.tries(statement).await;
        assert!(said.as_ref().is_err_and(|said| said.starts_with("42501 ")), "{}: {statement}: {said:?}", self.name);
    }

    async fn gone(self) {
        self.connection.close().await.unwrap();
        let drop = format!("DROP ROLE \"{}\"", self.name);
        sqlx::raw_sql(AssertSqlSafe(drop)).execute(&self.owner).await.unwrap();
    }
}

async fn roles(pool: PgPool) -> Fleet {
    let fleet = Fleet::new(pool);
    fleet.store.create_roles().await.unwrap();
    fleet
}

/// A table's rights of one role: whole, and where it has only some columns, those.
async fn rights_on_table(pool: &PgPool, role: &str, table: &str) -> String {
    let mut whole = String::new();
    let mut parts = String::new();
    for (privilege, letter) in ON_TABLES {
        let has: bool = sqlx::query_scalar("SELECT has_table_privilege($1, $2, $3)")
            .bind(role)
            .bind(table)
            .bind(privilege)
            .fetch_one(pool)
            .await
            .unwrap();
        if has {
            whole.push(letter);
        } else if matches!(privilege, "SELECT" | "INSERT" | "UPDATE" | "REFERENCES") {
            let columns: Vec<String> = sqlx::query_scalar(
                "SELECT attname::text FROM pg_attribute WHERE attrelid = $2::regclass AND attnum > 0 AND NOT attisdropped
                   AND has_column_privilege($1, attrelid, attnum, $3) ORDER BY attnum",
            )
            .bind(role)
            .bind(table)
            .bind(privilege)
            .fetch_all(pool)
            .await
            .unwrap();
            if !columns.is_empty() {
                write!(parts, " {letter}({})", columns.join(", ")).unwrap();
            }
        }
    }
    format!("{whole}{parts}")
}

/// Every table, view, sequence and function of the schema with the rights of each role and of PUBLIC.
async fn all_rights(pool: &PgPool) -> String {
    let mut text = String::new();
    let names = |query: &'static str| sqlx::query_scalar::<_, String>(query).fetch_all(pool);
    let mut line = |thing: &str, rights: &BTreeMap<&str, String>| {
        writeln!(text, "{thing}").unwrap();
        for (role, rights) in rights.iter().filter(|(_, rights)| !rights.is_empty()) {
            writeln!(text, "    {role}: {}", rights.trim_start()).unwrap();
        }
    };
    let roles = || ROLES.iter().map(|(role, _)| *role).chain(["public"]);
    for table in names(
        "SELECT c.oid::regclass::text FROM pg_class c WHERE relnamespace = 'turnmill'::regnamespace AND relkind IN ('r', 'v', 'm', 'p', 'f')
         ORDER BY 1",
    )
    .await
    .unwrap()
    {
        let mut rights = BTreeMap::new();
        for role in roles() {
            rights.insert(role, rights_on_table(pool, role, &table).await);
        }
        line(&table, &rights);
    }
    let others = [
        (
            "sequence",
            "SELECT oid::regclass::text FROM pg_class WHERE relnamespace = 'turnmill'::regnamespace AND relkind = 'S' ORDER BY 1",
            "SELECT has_sequence_privilege($1, $2, 'USAGE, SELECT, UPDATE')",
        ),
        (
            "function",
            "SELECT oid::regprocedure::text FROM pg_proc WHERE pronamespace = 'turnmill'::regnamespace ORDER BY 1",
            "SELECT has_function_privilege($1, $2, 'EXECUTE')",
        ),
        ("schema", "SELECT 'turnmill'", "SELECT has_schema_privilege($1, $2, 'USAGE')"),
        ("schema, to make things in it,", "SELECT 'turnmill'", "SELECT has_schema_privilege($1, $2, 'CREATE')"),
    ];
    for (kind, all, has) in others {
        for thing in names(all).await.unwrap() {
            let mut may = Vec::new();
            for role in roles() {
                if sqlx::query_scalar::<_, bool>(has).bind(role).bind(&thing).fetch_one(pool).await.unwrap() {
                    may.push(role);
                }
            }
            line(&format!("{kind} {thing}"), &BTreeMap::from([("may use it", may.join(", "))]));
        }
    }
    text
}

/// A new table, column or function is in here or the test fails: somebody has decided who may do what with it.
#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn each_role_has_exactly_the_rights_that_are_written_down(pool: PgPool) {
    let fleet = roles(pool).await;
    insta::assert_snapshot!("rights", all_rights(&fleet.pool).await);
}

/// What runs with the owner's rights finds its names where the owner has them, whatever the caller's search_path is.
#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn what_runs_with_the_owner_s_rights_looks_names_up_in_no_schema_of_the_caller_s(pool: PgPool) {
    let loose: Vec<String> = sqlx::query_scalar(
        "SELECT oid::regprocedure::text FROM pg_proc WHERE pronamespace = 'turnmill'::regnamespace AND prosecdef
           AND NOT coalesce('search_path=pg_catalog, pg_temp' = ANY (proconfig), false)",
    )
    .fetch_all(&pool)
    .await
    .unwrap();
    assert_eq!(loose, Vec::<String>::new());
}

/// Rights that somebody gave by hand are taken back, those that somebody took are given again.
#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_migration_gives_everybody_the_rights_that_are_theirs_and_no_others(pool: PgPool) {
    let fleet = roles(pool).await;
    let before = all_rights(&fleet.pool).await;
    sqlx::raw_sql(
        "GRANT ALL ON turnmill.user_keys TO turnmill_viewer; GRANT UPDATE (prompt) ON turnmill.turns TO turnmill_enqueuer;
         GRANT EXECUTE ON FUNCTION turnmill.promote TO PUBLIC; GRANT SELECT ON turnmill.api_tokens TO PUBLIC;
         REVOKE SELECT ON turnmill.jobs FROM turnmill_worker; GRANT CREATE ON SCHEMA turnmill TO turnmill_worker;
         CREATE FUNCTION turnmill.a_new_one() RETURNS integer LANGUAGE sql AS 'SELECT 1'; DROP FUNCTION turnmill.a_new_one();",
    )
    .execute(&fleet.pool)
    .await
    .unwrap();
    assert_ne!(all_rights(&fleet.pool).await, before);
    assert!(fleet.store.migrate().await.unwrap());
    assert_eq!(all_rights(&fleet.pool).await, before);
}

/// Two tenants of one project, with a turn each that has said something, made and got a file.
struct Tenants {
    fleet: Fleet,
    acme: String,
    other: String,
}

impl Tenants {
    async fn new(pool: PgPool) -> Self {
        let fleet = roles(pool).await;
        let acme = Self::turn_of(&fleet, "acme").await;
        let other = Self::turn_of(&fleet, "other").await;
        Self { fleet, acme, other }
    }

    async fn turn_of(fleet: &Fleet, tenant: &str) -> String {
        let turn = Enqueue {
            prompt: format!("{tenant}'s message"),
            project_id: Some("shared".to_owned()),
            session_id: Some(format!("{tenant}-session")),
            tenant_id: Some(tenant.to_owned()),
            idempotency_key: Some(format!("{tenant}-key")),
            attachments: Some(json!([{ "path": "a.txt", "text": format!("{tenant}'s file") }])),
            ..Enqueue::default()
        };
        let turn = fleet.store.enqueue(&turn).await.unwrap().turn_id.unwrap();
        let job = fleet.worker("w").await.claim_one().await;
        append(&fleet.store, job.append_of(0, 10, &[&format!("{tenant}'s answer")])).await;
        fleet
            .sql("INSERT INTO turnmill.artifacts (turn_id, n, path, change, bytes, sha256, content) VALUES ($1, 0, 'out.txt', 'created', 1, sha256('x'), 'x')", &turn)
            .await;
        let settle = Settle { journal_offset: 10, ..ending(Ending::Completed) };
        fleet.store.settle(&job, &settle, Duration::from_secs(30)).await.unwrap().unwrap();
        turn
    }
}

/// Each public function for a thing of another tenant answers as for one that is nowhere, and each table shows none of it.
#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_login_that_is_bound_to_a_tenant_sees_and_writes_its_rows_only(pool: PgPool) {
    let Tenants { fleet, acme, other } = Tenants::new(pool).await;
    let mut login = Login::of(&fleet, "turnmill_enqueuer", "acme").await;
    // To no tenant, it sees all.
    assert_eq!(login.ask("SELECT count(*)::text FROM turnmill.turns").await.unwrap(), ["2"]);
    fleet.store.bind_login(&login.name, "acme").await.unwrap();

    for (table, column) in [
        ("sessions", "id"),
        ("turns", "session_id"),
        ("blocks", "turn_id"),
        ("answers", "turn_id"),
        ("artifacts", "turn_id"),
        ("attachments", "turn_id"),
    ] {
        let own = if matches!(column, "turn_id") { acme.as_str() } else { "acme-session" };
        let seen = login.ask(&format!("SELECT DISTINCT {column} FROM turnmill.{table}")).await.unwrap();
        assert_eq!(seen, [own], "{table}");
    }
    for call in [
        "read_turn('$')",
        "wait_reason('$')",
        "cancel_turn('$')",
        "retry_turn('$')",
        "edit_turn('$', 'x')",
        "withdraw_turn('$')",
        "artifact('$', 'out.txt')",
    ] {
        let of = |id: &str| format!("SELECT turnmill.{}::text", call.replace('$', id));
        let nowhere = login.tries(&of("nowhere")).await.map_err(|said| said.replace("nowhere", &other));
        assert_eq!(login.tries(&of(&other)).await, nowhere, "{call}");
        assert_ne!(login.ask(&of(&acme)).await, Err("TM404".to_owned()), "{call} of its own");
        assert_eq!(login.ask(&of(&other)).await.is_ok(), call.starts_with("wait_reason"), "{call}");
    }
    for call in ["set_session('$', 'reject')", "fork_session('$')"] {
        let of = |id: &str| format!("SELECT turnmill.{}::text", call.replace('$', id));
        let nowhere = login.tries(&of("nowhere")).await.map_err(|said| said.replace("nowhere", "other-session"));
        assert_eq!(login.tries(&of("other-session")).await, nowhere, "{call}");
        assert!(nowhere.is_err_and(|said| said.starts_with("TM404 ")), "{call}");
        login.ask(&of("acme-session")).await.unwrap_or_else(|code| panic!("{call} of its own: {code}"));
    }
    // Enqueueing: into its own sessions, in its own name, not before others.
    let enqueue = |rest: &str| format!("SELECT turn_id FROM turnmill.enqueue_turn('hi', 'shared'{rest})");
    let made = login.ask(&enqueue(", session_id => 'new'")).await.unwrap().remove(0);
    let of: Option<String> =
        sqlx::query_scalar("SELECT tenant_id FROM turnmill.sessions WHERE id = 'new'").fetch_one(&fleet.pool).await.unwrap();
    assert_eq!(of.as_deref(), Some("acme"));
    assert_eq!(login.ask(&format!("SELECT id FROM turnmill.turns WHERE id = '{made}'")).await.unwrap(), [made.as_str()]);
    login.ask(&enqueue(", session_id => 'acme-session', tenant_id => 'acme'")).await.unwrap();
    for (rest, code) in [
        (", session_id => 'other-session'", "TM404"),
        (", tenant_id => 'other'", "TM400"),
        (", priority => 1", "TM400"),
        (", idempotency_key => 'other-key'", "TM409"),
    ] {
        assert_eq!(login.ask(&enqueue(rest)).await, Err(code.to_owned()), "{rest}");
    }
    assert_eq!(login.ask("SELECT id FROM turnmill.create_session('other-session', 'shared')").await, Err("TM404".to_owned()));
    // Nor can it loosen itself, or write the tables.
    for statement in [
        "DELETE FROM turnmill.tenant_logins",
        "SELECT tenant_id FROM turnmill.tenant_logins",
        "INSERT INTO turnmill.tenant_logins VALUES ('turnmill_enqueuer', 'other')",
        "UPDATE turnmill.sessions SET tenant_id = 'acme'",
        "ALTER TABLE turnmill.turns DISABLE ROW LEVEL SECURITY",
        "DROP POLICY of_session ON turnmill.turns",
        "CREATE TABLE turnmill.mine (x integer)",
        "SELECT turnmill.reaches_turn('x')",
        "SET SESSION AUTHORIZATION postgres",
        "SET ROLE turnmill_worker",
    ] {
        login.may_not(statement).await;
    }
    assert!(fleet.store.unbind_login(&login.name).await.unwrap());
    assert_eq!(login.ask("SELECT count(DISTINCT session_id)::text FROM turnmill.turns").await.unwrap(), ["3"]);
    login.gone().await;
}

/// A session that nobody pays for is nobody's: a bound login can't take it over.
#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_session_without_a_tenant_is_none_of_a_bound_login_s(pool: PgPool) {
    let fleet = roles(pool).await;
    fleet.enqueue_in("hi", Some("nobody-s")).await;
    let mut login = Login::of(&fleet, "turnmill_enqueuer", "acme").await;
    fleet.store.bind_login(&login.name, "acme").await.unwrap();
    let taken = login.ask("SELECT turn_id FROM turnmill.enqueue_turn('mine now', 'p1', session_id => 'nobody-s')").await;
    assert_eq!(taken, Err("TM404".to_owned()));
    assert_eq!(login.ask("SELECT id FROM turnmill.sessions").await.unwrap(), Vec::<String>::new());

    // Made again, as by a script that drops it first, it is bound as before.
    let name = login.name.clone();
    login.gone().await;
    let mut again = Login::named(&fleet, "turnmill_enqueuer", name.clone()).await;
    assert_eq!(again.ask("SELECT id FROM turnmill.sessions").await.unwrap(), Vec::<String>::new());
    assert!(fleet.store.unbind_login(&name).await.unwrap());
    assert_eq!(again.ask("SELECT id FROM turnmill.sessions").await.unwrap(), ["nobody-s"]);
    again.gone().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_login_that_would_see_all_rows_nevertheless_can_t_be_bound(pool: PgPool) {
    let fleet = roles(pool).await;
    let viewer = Login::of(&fleet, "turnmill_viewer", "viewer").await;
    let refused = async |login: &str| fleet.store.bind_login(login, "acme").await.unwrap_err().to_string();
    assert!(refused(&viewer.name).await.contains("turnmill_viewer, which sees all tenants; take it away first"));
    assert!(refused("postgres").await.contains("sees all rows whatever it is bound to"));
    assert!(refused("nobody-like-that").await.contains("CREATE ROLE"));
    assert!(refused("turnmill_enqueuer").await.contains("bind the login itself"));
    assert_eq!(fleet.store.bound_logins().await.unwrap(), []);
    viewer.gone().await;
}

/// What each role is not for, really tried.
#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_role_is_refused_what_it_is_not_for(pool: PgPool) {
    let Tenants { fleet, .. } = Tenants::new(pool).await;
    let mut enqueuer = Login::of(&fleet, "turnmill_enqueuer", "enqueuer").await;
    for statement in [
        "SELECT data FROM turnmill.user_keys",
        "SELECT id FROM turnmill.api_tokens",
        "SELECT secret FROM turnmill.webhook_endpoints",
        "SELECT turn_id FROM turnmill.jobs",
        "UPDATE turnmill.turns SET prompt = 'x'",
        "INSERT INTO turnmill.jobs (turn_id) VALUES ('x')",
        "DELETE FROM turnmill.blocks",
        "SELECT turnmill.promote('x')",
        "SELECT turnmill.set_tenant('acme', 100)",
        "SELECT turnmill.set_fleet_budget(1)",
        "SELECT turnmill.stop_fleet('x')",
        "SELECT turnmill.kill_sandbox('x')",
        "SELECT turnmill.drain_worker('x')",
        "SELECT nextval('turnmill.epochs')",
        "SELECT turnmill.receipt_of('x', true)",
    ] {
        enqueuer.may_not(statement).await;
    }
    let mut viewer = Login::of(&fleet, "turnmill_viewer", "viewer").await;
    for table in sqlx::query_scalar::<_, String>(
        "SELECT c.oid::regclass::text FROM pg_class c WHERE relnamespace = 'turnmill'::regnamespace AND relkind = 'r'",
    )
    .fetch_all(&fleet.pool)
    .await
    .unwrap()
    {
        for statement in
            [format!("INSERT INTO {table} DEFAULT VALUES"), format!("DELETE FROM {table}"), format!("TRUNCATE {table} CASCADE")]
        {
            viewer.may_not(&statement).await;
        }
    }
    for secret in [
        "api_tokens.hash",
        "user_keys.data",
        "webhook_endpoints.secret",
        "webhook_endpoints.old_secret",
        "turn_secrets.data",
        "transcripts.data",
        "workspaces.data",
        "journals.data",
        "artifacts.content",
        "attachments.content",
        "pools.agent_env",
        "ops_visits.hash",
    ] {
        let (table, column) = secret.split_once('.').unwrap();
        viewer.may_not(&format!("SELECT {column} FROM turnmill.{table}")).await;
    }
    viewer.may_not("SELECT turnmill.cancel_turn('x')").await;
    viewer.may_not("SELECT turnmill.enqueue_turn('x')").await;
    let mut worker = Login::of(&fleet, "turnmill_worker", "worker").await;
    for statement in [
        "SELECT turnmill.enqueue_turn('x')",
        "UPDATE turnmill.turns SET prompt = 'x'",
        "UPDATE turnmill.sessions SET tenant_id = 'x'",
        "UPDATE turnmill.pools SET agent = '{sh}'",
        "UPDATE turnmill.user_keys SET data = ''",
        "SELECT hash FROM turnmill.api_tokens",
        "DELETE FROM turnmill.turns",
        "DELETE FROM turnmill.blocks",
        "UPDATE turnmill.audit SET reason = 'x'",
        "ALTER TABLE turnmill.jobs ADD x integer",
        "SELECT turnmill.stop_fleet('x')",
    ] {
        worker.may_not(statement).await;
    }
    let mut web = Login::of(&fleet, "turnmill_web", "web").await;
    for statement in [
        "SELECT data FROM turnmill.user_keys",
        "SELECT secret FROM turnmill.webhook_endpoints",
        "SELECT data FROM turnmill.turn_secrets",
        "SELECT data FROM turnmill.transcripts",
        "UPDATE turnmill.pools SET agent = '{sh}'",
        "UPDATE turnmill.pools SET prepare = 'x'",
        "UPDATE turnmill.turns SET status = 'completed'",
        "UPDATE turnmill.jobs SET priority = 1",
        "UPDATE turnmill.slots SET state = 'free'",
        "UPDATE turnmill.api_tokens SET scopes = '{ops:act}'",
        "UPDATE turnmill.api_tokens SET revoked_at = NULL",
        "DELETE FROM turnmill.audit",
        "UPDATE turnmill.webhook_endpoints SET secret = ''",
    ] {
        web.may_not(statement).await;
    }
    for login in [enqueuer, viewer, worker, web] {
        login.gone().await;
    }
}

/// Row security costs those who serve all tenants nothing: they see the same plan as the tables' owner.
#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn row_security_changes_no_plan_of_a_worker(pool: PgPool) {
    let fleet = roles(pool).await;
    let mut worker = Login::of(&fleet, "turnmill_worker", "worker").await;
    for statement in [
        "UPDATE turnmill.turns t SET attempt = 1 FROM turnmill.jobs j WHERE j.turn_id = t.id AND j.epoch = 1",
        "INSERT INTO turnmill.blocks (turn_id, seq, generation, attempt, type, content) SELECT turn_id, 0, 1, 1, 'content', '{}' FROM turnmill.jobs",
        "SELECT t.prompt, s.tenant_id FROM turnmill.turns t JOIN turnmill.sessions s ON s.id = t.session_id WHERE t.id = 'x'",
        "SELECT content FROM turnmill.blocks WHERE turn_id = 'x' AND seq > 3 AND content->>'text' LIKE 'a%' ORDER BY seq",
        "SELECT content FROM turnmill.attachments WHERE turn_id = 'x'",
    ] {
        let explain = format!("EXPLAIN (COSTS OFF, VERBOSE) {statement}");
        let its = worker.ask(&explain).await.unwrap();
        let owner_s: Vec<String> = sqlx::query_scalar(AssertSqlSafe(explain)).fetch_all(&fleet.pool).await.unwrap();
        assert_eq!(its, owner_s);
    }
    worker.gone().await;
}

/// Who owns the schema need not be allowed to make roles, which are all databases'.
#[tokio::test]
async fn an_owner_who_may_make_no_roles_migrates_and_is_told_who_must_make_them() {
    let home = passable_tempdir("turnmill-test-").unwrap();
    let postgres = Postgres::start(&home.path().join("postgres"), postgres::Options::default()).await.unwrap();
    let admin = PgPool::connect(&postgres.url()).await.unwrap();
    for statement in ["CREATE ROLE mill LOGIN PASSWORD 'x'", "CREATE DATABASE mill OWNER mill"] {
        sqlx::raw_sql(statement).execute(&admin).await.unwrap();
    }
    let place = postgres.url().rsplit('@').next().unwrap().replace("/postgres", "/mill");
    let url = format!("postgres://mill:x@{place}");
    let command = |args: &[&str]| {
        let mut command = turnmill(args);
        command.env("DATABASE_URL", &url);
        command
    };
    let migrated = said(&command(&["migrate"]).output().await.unwrap());
    assert!(migrated.contains("up to date") && migrated.contains("make them: turnmill roles create"), "{migrated}");
    fails(&mut command(&["roles", "create"]), &["somebody who may make roles can: CREATE ROLE turnmill_enqueuer NOLOGIN; CREATE"]).await;
    for (role, _) in ROLES {
        sqlx::raw_sql(AssertSqlSafe(format!("CREATE ROLE {role} NOLOGIN"))).execute(&admin).await.unwrap();
    }
    let migrated = said(&command(&["migrate"]).output().await.unwrap());
    assert_eq!(migrated.trim(), "The schema is up to date.");
    sqlx::raw_sql("CREATE ROLE app LOGIN PASSWORD 'x' IN ROLE turnmill_enqueuer").execute(&admin).await.unwrap();
    let bound = said(&command(&["roles", "bind", "app", "--tenant", "acme"]).output().await.unwrap());
    assert!(bound.contains("app is bound to tenant acme") && bound.contains("nobody's; GRANT turnmill_viewer TO …"), "{bound}");
    let app = PgPool::connect(&url.replace("mill:x", "app:x")).await.unwrap();
    sqlx::query("SELECT turnmill.enqueue_turn('hi', 'shop')").execute(&app).await.unwrap();
    assert_eq!(sqlx::query_scalar::<_, String>("SELECT tenant_id FROM turnmill.sessions").fetch_one(&app).await.unwrap(), "acme");
    let denied = said(&turnmill(&["pool"]).env("DATABASE_URL", url.replace("mill:x", "app:x")).output().await.unwrap());
    assert!(denied.contains("this login of the database has no right to that") && denied.contains("turnmill roles"), "{denied}");
    app.close().await;
    postgres.stop().await.unwrap();
}
