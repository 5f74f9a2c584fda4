//! Users' own keys, as they are given and kept; and another master key for all that is kept sealed.

use std::process::{Output, Stdio};

use serde_json::{Value, json};
use sqlx::{ConnectOptions as _, PgPool};
use tokio::io::AsyncWriteExt as _;
use turnmill::files::seal_of_workspace;
use turnmill::keys::{Closed, OwnKey, Sealed, Vault, rotate, seal_of_own, seal_of_secrets};
use turnmill::store::{Bounds, SealedKind};
use turnmill::transcript::{pack, unpack};
use turnmill::webhooks::seal_of_endpoint;

use crate::commands::{said, turnmill};
use crate::harness::Fleet;
use crate::site::{Said, Site};

const KEY: &str = "sk-ant-api03-of-somebody-else";

async fn keys(pool: &PgPool, master: &str, args: &[&str], input: &str) -> Output {
    let mut command = turnmill(&[&["keys"], args].concat());
    command.env("DATABASE_URL", pool.connect_options().to_url_lossy().to_string()).env("TURNMILL_KEYS__MASTER", master);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It may not want to know.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes()).await;
    let output = child.wait_with_output().await.unwrap();
    assert!(!said(&output).contains(KEY), "{}", said(&output));
    output
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_key_is_given_on_standard_input_or_in_a_file_and_never_shown_again(pool: PgPool) {
    let master = Vault::new_key("m1");
    let fleet = Fleet::new(pool.clone());
    let given = keys(&pool, &master, &["set", "--user", "ann"], &format!("{KEY}\n")).await;
    assert!(given.status.success() && said(&given).contains("sealed under \"m1\""), "{}", said(&given));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("key");
    std::fs::write(&file, KEY).unwrap();
    let given = keys(&pool, &master, &["set", "--tenant", "acme", "--file", file.to_str().unwrap()], "").await;
    assert!(given.status.success(), "{}", said(&given));
    let listed = said(&keys(&pool, &master, &["list"], "").await);
    for words in
        ["user ann  sealed under \"m1\"", "tenant acme  sealed under \"m1\"", "2 keys of users and tenants  under \"m1\", the newest"]
    {
        assert!(listed.contains(words), "{listed}");
    }
    let session = fleet.enqueue("x").await.turn_id;
    sqlx::query("UPDATE turnmill.sessions SET user_id = 'ann' WHERE id = (SELECT session_id FROM turnmill.turns WHERE id = $1)")
        .bind(&session)
        .execute(&pool)
        .await
        .unwrap();
    let session = fleet.turn(&session).await.session_id;
    let own = fleet.store.own_key(&session).await.unwrap().unwrap();
    let (_, key) = own.open(&Vault::new(&master).unwrap()).unwrap();
    assert_eq!(secrecy::ExposeSecret::expose_secret(&key), KEY);

    let refused = [
        (keys(&pool, "", &["set", "--user", "ann"], KEY).await, "there is no master key"),
        (keys(&pool, &master, &["set", "--user", "ann"], "password").await, "begin with sk-ant-"),
        (keys(&pool, &master, &["set", "--user", "ann"], "").await, "begin with sk-ant-"),
        (keys(&pool, &master, &["set", "--user", "ann"], "sk-ant-api03-two words").await, "more than the key was copied"),
        (keys(&pool, &master, &["set"], KEY).await, "--user"),
        (keys(&pool, &master, &["set", "--user", ""], KEY).await, "--user"),
        (keys(&pool, &master, &["set", "--user", "ann", "--file", "/nowhere"], "").await, "/nowhere"),
        (keys(&pool, &master, &["forget", "--user", "bob"], "").await, "there is no such key"),
        (keys(&pool, "m1:c2hvcnQ=", &["list"], "").await, "key 1 of keys.master is not ID:BASE64"),
    ];
    for (output, words) in refused {
        assert!(!output.status.success() && said(&output).contains(words), "{}", said(&output));
    }
    assert!(keys(&pool, &master, &["forget", "--user", "ann"], "").await.status.success());
    assert!(fleet.store.own_key(&session).await.unwrap().is_none());
}

async fn put(site: &Site, at: &str, token: &str, body: &Value) -> Said {
    site.as_who(token, "PUT", at, Some(body.clone())).await
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn over_http_a_key_can_be_given_and_forgotten_but_not_read(pool: PgPool) {
    let master = Vault::new_key("m1");
    let mut site = Site::start(pool.clone()).await.that_seals(&master).await;
    let at = "/v1/users/ann%2Fb/key";
    let given = put(&site, at, &site.token, &json!({ "key": KEY })).await;
    assert_eq!(given.status.as_u16(), 200, "{:?}", given.body);
    assert_eq!((&given.body["user_id"], &given.body["tenant_id"], &given.body["key_id"]), (&json!("ann/b"), &json!(null), &json!("m1")));
    assert!(!given.body.to_string().contains(KEY));
    let read = site.get(at).await;
    assert_eq!((read.status.as_u16(), &read.body), (200, &given.body));

    // Of a tenant's users, who may have the same ids, its own token only.
    let bound = |project: Option<&str>, tenant: Option<&str>| Bounds {
        project_id: project.map(str::to_owned),
        tenant_id: tenant.map(str::to_owned),
        session_id: None,
    };
    let acme = site.token(&["keys:write"], bound(None, Some("acme"))).await;
    assert_eq!(put(&site, at, &acme, &json!({ "key": KEY })).await.body["tenant_id"], "acme");
    assert_eq!(put(&site, &format!("{at}?tenant_id=other"), &acme, &json!({ "key": KEY })).await.status.as_u16(), 400);
    let of_project = site.token(&["keys:write"], bound(Some("p1"), None)).await;
    assert_eq!(put(&site, at, &of_project, &json!({ "key": KEY })).await.status.as_u16(), 403);
    let other = site.token(&["turns:write"], Bounds::default()).await;
    assert_eq!(put(&site, at, &other, &json!({ "key": KEY })).await.status.as_u16(), 403);
    for wrong in ["password", "", "sk-ant-x", "sk-ant-api03-two words", "sk-ant-api03-abc\u{0}def"] {
        let refused = put(&site, at, &site.token, &json!({ "key": wrong })).await;
        assert_eq!(
            (refused.status.as_u16(), &refused.body["code"], &refused.body["errors"][0]["pointer"]),
            (400, &json!("invalid_request"), &json!("/key"))
        );
        assert!(wrong.is_empty() || !refused.body["errors"].to_string().contains(wrong), "{:?}", refused.body);
    }
    let rows: Vec<(String, String)> =
        sqlx::query_as("SELECT tenant_id, user_id FROM turnmill.user_keys ORDER BY 1").fetch_all(&pool).await.unwrap();
    assert_eq!(rows, [(String::new(), "ann/b".to_owned()), ("acme".to_owned(), "ann/b".to_owned())]);
    assert_eq!(site.as_who(&site.token, "DELETE", at, None).await.status.as_u16(), 204);
    assert_eq!((site.get(at).await.status.as_u16(), site.as_who(&site.token, "DELETE", at, None).await.status.as_u16()), (404, 404));
    assert_eq!(site.get(&format!("{at}?tenant_id=acme")).await.status.as_u16(), 200);
    site.stop().await;

    let mut site = Site::start(pool).await;
    let refused = put(&site, at, &site.token, &json!({ "key": KEY })).await;
    assert_eq!((refused.status.as_u16(), &refused.body["code"]), (409, &json!("no_master_key")));
    site.stop().await;
}

/// Something sealed of every kind; three of each, the third as it is where that can be.
async fn seal_some(fleet: &Fleet, vault: &Vault) -> Vec<String> {
    let mut turns = Vec::new();
    for nth in 0..3 {
        let turn = fleet.enqueue("x").await.turn_id;
        let open = Vault::default();
        let vault = if nth == 2 { &open } else { vault };
        let conversation = pack(vault, &turn, b"{}\n");
        let workspace = vault.seal(&seal_of_workspace(&turn), b"tar".to_vec());
        for (table, sealed) in [
            ("transcripts (turn_id, session_id, ordinal, bytes, ", conversation),
            ("workspaces (kind, turn_id, session_id, ordinal, ", workspace),
        ] {
            let values = if table.starts_with('t') { "id, session_id, ordinal, 3, " } else { "'saved', id, session_id, ordinal, " };
            let sql = format!("INSERT INTO turnmill.{table}data, key_id) SELECT {values}$2, $3 FROM turnmill.turns WHERE id = $1");
            sqlx::query(sqlx::AssertSqlSafe(sql)).bind(&turn).bind(sealed.data).bind(sealed.key_id).execute(&fleet.pool).await.unwrap();
        }
        let endpoint = format!("whe_{nth}");
        let secret = vault.seal(&seal_of_endpoint(&endpoint), b"secret".to_vec());
        sqlx::query(
            "INSERT INTO turnmill.webhook_endpoints (id, url, secret, secret_key_id, old_secret, old_secret_key_id, old_secret_until)
             VALUES ($1, 'https://x.example', $2, $3, $2, $3, clock_timestamp())",
        )
        .bind(&endpoint)
        .bind(&secret.data)
        .bind(&secret.key_id)
        .execute(&fleet.pool)
        .await
        .unwrap();
        if nth < 2 {
            let own = OwnKey::seal(vault, "acme", &format!("u{nth}"), &KEY.into()).unwrap();
            fleet.store.set_own_key(&own).await.unwrap();
            let sealed = vault.seal(&seal_of_secrets(&turn), b"secret\0".to_vec());
            let sql = "INSERT INTO turnmill.turn_secrets (turn_id, attempt, data, key_id) VALUES ($1, 1, $2, $3)";
            sqlx::query(sql).bind(&turn).bind(sealed.data).bind(sealed.key_id).execute(&fleet.pool).await.unwrap();
        }
        turns.push(turn);
    }
    turns
}

async fn all_open(fleet: &Fleet, vault: &Vault, turns: &[String]) {
    for turn in turns {
        let sealed = fleet.store.transcript(turn).await.unwrap().unwrap();
        assert_eq!(unpack(vault, turn, sealed), Ok(b"{}\n".to_vec()));
    }
    let one = |sql: &'static str| sqlx::query_as::<_, (String, String, Vec<u8>, String)>(sql).fetch_all(&fleet.pool);
    for (turn, _, data, key_id) in one("SELECT turn_id, '', data, key_id FROM turnmill.workspaces").await.unwrap() {
        assert_eq!(vault.open(&seal_of_workspace(&turn), Sealed { key_id: Some(key_id), data }), Ok(b"tar".to_vec()));
    }
    for (tenant, user, data, key_id) in one("SELECT tenant_id, user_id, data, key_id FROM turnmill.user_keys").await.unwrap() {
        assert_eq!(vault.open(&seal_of_own(&tenant, &user), Sealed { key_id: Some(key_id), data }), Ok(KEY.into()));
    }
    for (turn, _, data, key_id) in one("SELECT turn_id, '', data, key_id FROM turnmill.turn_secrets").await.unwrap() {
        assert_eq!(vault.open(&seal_of_secrets(&turn), Sealed { key_id: Some(key_id), data }), Ok(b"secret\0".to_vec()));
    }
    for sql in [
        "SELECT id, '', secret, secret_key_id FROM turnmill.webhook_endpoints",
        "SELECT id, '', old_secret, old_secret_key_id FROM turnmill.webhook_endpoints",
    ] {
        for (id, _, data, key_id) in one(sql).await.unwrap() {
            assert_eq!(vault.open(&seal_of_endpoint(&id), Sealed { key_id: Some(key_id), data }), Ok(b"secret".to_vec()));
        }
    }
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn everything_sealed_is_sealed_anew_by_two_at_once_each_row_by_one_of_them(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let (old, new) = (Vault::new_key("old"), Vault::new_key("new"));
    let turns = seal_some(&fleet, &Vault::new(&old).unwrap()).await;
    let both = Vault::new(&format!("{new} {old}")).unwrap();
    let (one, other) = tokio::join!(rotate(&fleet.store, &both, "new", |_| {}), rotate(&fleet.store, &both, "new", |_| {}));
    let done: u64 = one.unwrap().iter().chain(&other.unwrap()).map(|kind| kind.done).sum();
    let rest: u64 = rotate(&fleet.store, &both, "new", |_| {}).await.unwrap().iter().map(|kind| kind.done).sum();
    assert_eq!(done + rest, 16, "3 each of four kinds, 2 keys, what 2 turns were given");
    all_open(&fleet, &Vault::new(&new).unwrap(), &turns).await;
    assert!(fleet.store.sealed().await.unwrap().iter().all(|row| row.key_id.as_deref() == Some("new")));
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_rotation_leaves_alone_what_it_can_t_open_says_so_and_goes_on_when_it_can(pool: PgPool) {
    let fleet = Fleet::new(pool.clone());
    let (oldest, new) = (Vault::new_key("oldest"), Vault::new_key("new"));
    let turns = seal_some(&fleet, &Vault::new(&oldest).unwrap()).await;
    let before = fleet.store.transcript(&turns[0]).await.unwrap().unwrap();
    assert_eq!(Vault::new(&new).unwrap().open("x", before.clone()), Err(Closed::UnknownKey("oldest".to_owned())));
    let part = keys(&pool, &new, &["rotate"], "").await;
    let text = said(&part);
    assert_eq!(part.status.code(), Some(1), "{text}");
    for words in ["2 conversations can't be opened", "2 keys of users and tenants can't be opened", "4 sealed anew under \"new\", 12 left."]
    {
        assert!(text.contains(words), "{text}");
    }
    assert_eq!(fleet.store.transcript(&turns[0]).await.unwrap(), Some(before), "as it was");
    // A row that somebody holds is nobody's loss: it is left for the next time.
    let mut held = pool.begin().await.unwrap();
    sqlx::query("SELECT FROM turnmill.transcripts WHERE turn_id = $1 FOR UPDATE").bind(&turns[0]).execute(&mut *held).await.unwrap();
    let both = format!("{new} {oldest}");
    let text = said(&keys(&pool, &both, &["rotate"], "").await);
    assert!(text.contains("11 sealed anew under \"new\", 1 left."), "{text}");
    held.rollback().await.unwrap();
    let whole = keys(&pool, &both, &["rotate"], "").await;
    assert!(whole.status.success() && said(&whole).contains("1 sealed anew under \"new\", 0 left."), "{}", said(&whole));
    all_open(&fleet, &Vault::new(&new).unwrap(), &turns).await;
    assert_eq!(SealedKind::ALL.len(), 6);
    let none = keys(&pool, "", &["rotate"], "").await;
    assert!(!none.status.success() && said(&none).contains("there is no master key"), "{}", said(&none));
}
