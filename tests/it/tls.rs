//! What the URL says of TLS is done, by the connections that statements take and by the one that listens: against a Postgres that
//! takes no others.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;
use std::process::Command;

use turnmill::local::postgres::{self, Postgres, passable_tempdir};
use turnmill::store::{self, Store};

/// A Postgres whose certificate is for `localhost`, by a CA of its own.
struct Secured {
    home: tempfile::TempDir,
    postgres: Postgres,
}

fn openssl(dir: &Path, arguments: &str) {
    let output = Command::new("openssl").args(arguments.split(' ')).current_dir(dir).output().expect("openssl is installed");
    assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A new authority, as `NAME.pem` and `NAME.key`.
fn authority(dir: &Path, name: &str) {
    openssl(
        dir,
        &format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN={name} -keyout {name}.key -out {name}.pem"
        ),
    );
}

impl Secured {
    async fn start() -> Self {
        turnmill::tls::install();
        let home = passable_tempdir("turnmill-test-").unwrap();
        let dir = home.path();
        authority(dir, "ca");
        authority(dir, "another");
        openssl(dir, "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost -keyout server.key -out server.csr");
        fs::write(dir.join("extensions"), "subjectAltName=DNS:localhost\n").unwrap();
        openssl(dir, "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile extensions -out server.crt");
        let data = dir.join("postgres").join("data");
        let mut postgres = Postgres::start(&dir.join("postgres"), postgres::Options::default()).await.unwrap();
        let owner = fs::metadata(&data).unwrap();
        for file in ["server.key", "server.crt"] {
            let to = data.join(file);
            fs::copy(dir.join(file), &to).unwrap();
            fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).unwrap();
            chown(&to, Some(owner.uid()), Some(owner.gid())).unwrap();
        }
        fs::write(data.join("pg_hba.conf"), "hostssl all all 127.0.0.1/32 scram-sha-256\n").unwrap();
        let plain = Store::connect(&store::Options::new(&postgres.url(), 1), store::PATIENCE).await.unwrap();
        plain.migrate().await.unwrap();
        sqlx::query("ALTER SYSTEM SET ssl = on").execute(plain.pool()).await.unwrap();
        // Started again with it, so that nobody gets in by what was before.
        postgres.crash().await.unwrap();
        postgres.recover().await.unwrap();
        Self { home, postgres }
    }

    /// As it is said to `turnmill`, at this name of the host.
    fn url(&self, host: &str, more: &str) -> String {
        let more = more.replace("ca=", &format!("sslrootcert={}/", self.home.path().display()));
        format!("{}?{more}", self.postgres.url().replace("127.0.0.1", host))
    }
}

async fn open(url: &str) -> anyhow::Result<Store> {
    Store::connect(&store::Options::new(url, 2), store::PATIENCE).await
}

async fn refused(url: &str) -> String {
    format!("{:#}", open(url).await.expect_err("this should be refused"))
}

#[tokio::test]
async fn what_the_url_says_of_tls_is_done_by_every_connection() {
    let secured = Secured::start().await;
    for good in [
        secured.url("127.0.0.1", "sslmode=require"),
        secured.url("127.0.0.1", "sslmode=verify-ca&ca=ca.pem"),
        secured.url("localhost", "sslmode=verify-full&ca=ca.pem"),
    ] {
        let store = open(&good).await.unwrap_or_else(|error| panic!("{good}: {error:#}"));
        let _listens = store.listen().await.unwrap();
        let plain: Vec<String> = sqlx::query_scalar(
            "SELECT query FROM pg_stat_activity JOIN pg_stat_ssl USING (pid) WHERE backend_type = 'client backend' AND NOT ssl",
        )
        .fetch_all(store.pool())
        .await
        .unwrap();
        assert_eq!(plain, Vec::<String>::new(), "{good}");
        let listening: i64 =
            sqlx::query_scalar("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'").fetch_one(store.pool()).await.unwrap();
        assert!(listening >= 1);
    }
    let full = |host, ca| secured.url(host, &format!("sslmode=verify-full&ca={ca}"));
    for (bad, words) in [
        (full("localhost", "another.pem"), ["certificate", "sslrootcert"]),
        (full("127.0.0.1", "ca.pem"), ["not valid for name", "sslmode=verify-full"]),
        (secured.url("localhost", "sslmode=verify-full"), ["certificate", "sslrootcert"]),
        (secured.url("localhost", "sslmode=verify-ca&ca=another.pem"), ["certificate", "sslrootcert"]),
        (full("localhost", "nowhere.pem"), ["a file that can't be read: sslrootcert", "No such file"]),
        (secured.url("127.0.0.1", "sslmode=disable"), ["no encryption", "sslmode"]),
    ] {
        let said = refused(&bad).await;
        assert!(words.iter().all(|word| said.contains(word)), "{bad}: {said}");
        assert!(!said.contains(&secured.postgres.url()[20..37]), "no password is told: {said}");
    }
    secured.postgres.stop().await.unwrap();
}

/// The connection that listens has a URL of its own where there is a PgBouncer: what that one says is done as well.
#[tokio::test]
async fn who_listens_checks_the_server_by_its_own_url() {
    let secured = Secured::start().await;
    let listen = async |direct: String| {
        let options = store::Options {
            direct_url: Some(direct),
            ..store::Options::new(&secured.url("localhost", "sslmode=verify-full&ca=ca.pem"), 2)
        };
        let store = Store::connect(&options, store::PATIENCE).await.unwrap();
        store.listen().await.map(drop).map_err(|error| format!("{error:#}"))
    };
    assert_eq!(listen(secured.url("localhost", "sslmode=verify-full&ca=ca.pem")).await, Ok(()));
    let said = listen(secured.url("localhost", "sslmode=verify-full&ca=another.pem")).await.unwrap_err();
    assert!(said.contains("certificate"), "{said}");
    let said = listen(secured.url("127.0.0.1", "sslmode=disable")).await.unwrap_err();
    assert!(said.contains("no encryption"), "{said}");
    secured.postgres.stop().await.unwrap();
}

/// Who asks for TLS does not get a connection without.
#[tokio::test]
async fn a_server_without_tls_is_refused_to_who_asks_for_it() {
    turnmill::tls::install();
    let home = passable_tempdir("turnmill-test-").unwrap();
    let postgres = Postgres::start(&home.path().join("postgres"), postgres::Options::default()).await.unwrap();
    let said = refused(&format!("{}?sslmode=require", postgres.url())).await;
    assert!(said.contains("server does not support TLS"), "{said}");
    postgres.stop().await.unwrap();
}
