//! No secret is stored or shown, whoever says it and in whatever form: every table, log, page, event and message is searched.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;
use std::process::Stdio;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde_json::{Value, json};
use sqlx::{ConnectOptions as _, PgPool};
use tokio::process::{Child, Command};
use turnmill::keys::Vault;
use turnmill::store::{Bounds, PoolChange};

use crate::harness::{Fleet, LocalE2b, until};
use crate::receiver::{Manner, Receiver};
use crate::site::Site;
use crate::visitor::Visitor;

/// What agents may leak, and what they never have.
const SECRETS: [(&str, &str); 5] = [
    ("first model key", "sk-ant-api03-First/Key+0123456789=="),
    ("second model key", "sk-ant-api03-Second-Key_9876543210"),
    ("project token", "uspark-Token-4711-abcdef"),
    ("E2B key", "e2b_0123456789abcdef0123"),
    ("gateway header", "Gateway-Secret-31337-xyz"),
];

/// Says its key in every form, in each thing that an agent can say, also cut in two; goes on when it is told to, and fails.
const LEAKY: &str = r#"
key=$ANTHROPIC_API_KEY
n=0
event() { n=$((n + 1)); printf '{"type":"%s","uuid":"00000000-0000-4000-8000-%012d","parent_tool_use_id":null,%s}\n' "$1" "$n" "$2"; }
says() { event assistant "\"message\":{\"id\":\"m$n\",\"role\":\"assistant\",\"content\":[$1]}"; }
text() { says "{\"type\":\"text\",\"text\":\"$1\"}"; }
delta() { event stream_event "\"event\":{\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"$1\"}}"; }
lines() { base64 -w "$1" | sed ':a;N;$!ba;s/\n/\\n/g'; }
url() { printf %s "$1" | sed 's/+/%2B/g; s/=/%3D/g; s,/,%2F,g'; }
cd "$HOME"
token=$(cat token)
text "plain $key, as a URL ?k=$(url "$key")&, in lines $(printf 'k=%s' "$key" | lines 20), $(printf 'kk=%s' "$key" | lines 76), $(printf 'kkk=%s-' "$key" | lines 76)"
event stream_event '"event":{"type":"message_start","message":{"id":"p"}}'
event stream_event '"event":{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}'
delta "it begins: ${key:0:9}"
sleep 0.5
delta "${key:9:9}"
sleep 0.5
delta "${key:18} and ends"
sleep 0.5
text "it begins: $key and ends"
says "{\"type\":\"tool_use\",\"id\":\"toolu_1\",\"name\":\"Bash\",\"input\":{\"command\":\"curl -H 'x-api-key: $key'\",\"$key\":\"$token\"}}"
event user "\"message\":{\"role\":\"user\",\"content\":[{\"type\":\"tool_result\",\"tool_use_id\":\"toolu_1\",\"content\":\"$key\\\\n$token\",\"is_error\":true}]}"
until [ -e go ]; do sleep 0.05; done
text "and after that $key"
echo "no line: $key"
echo "fatal: the key $key is refused" >&2
exit 1
"#;

/// The project's token comes to the agent in a file: hooks have it.
const PREPARE: &str = r#"printf %s "$USPARK_TOKEN" >"$HOME/token"; echo "with $USPARK_TOKEN""#;

fn worker(url: &str, e2b: &str, master: &str, key: &str, log: &Path) -> Child {
    let log = std::fs::File::create(log).unwrap();
    Command::new(env!("CARGO_BIN_EXE_turnmill"))
        .arg("worker")
        .envs([("DATABASE_URL", url), ("E2B_API_URL", e2b), ("E2B_SANDBOX_URL", e2b), ("E2B_API_KEY", SECRETS[3].1)])
        .envs([("ANTHROPIC_API_KEY", key), ("USPARK_TOKEN", SECRETS[2].1), ("TURNMILL_KEYS__MASTER", master)])
        .env("TURNMILL_E2B__HEADERS", format!("X-Gateway: {}", SECRETS[4].1))
        .envs([("TURNMILL_WORKER__LEASE", "2s"), ("TURNMILL_WORKER__HEARTBEAT", "300ms"), ("TURNMILL_LOG", "debug")])
        .envs([("TURNMILL_RETRY__AGENT_TRIES", "1"), ("TURNMILL_WEBHOOKS__ALLOW_NETWORKS", "127.0.0.0/8")])
        .kill_on_drop(true)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}

/// All that the database has, a text a table; archives also unpacked.
pub async fn tables(pool: &PgPool) -> BTreeMap<String, String> {
    let names: Vec<String> = sqlx::query_scalar(
        "SELECT table_name::text FROM information_schema.tables WHERE table_schema = 'turnmill' AND table_type = 'BASE TABLE'",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    let mut all = BTreeMap::new();
    for name in names {
        let query = format!("SELECT coalesce(string_agg(t::text, E'\\n'), '') FROM turnmill.\"{name}\" t");
        let text: String = sqlx::query_scalar(sqlx::AssertSqlSafe(query)).fetch_one(pool).await.unwrap();
        all.insert(name, text);
    }
    let packed: Vec<Vec<u8>> = sqlx::query_scalar("SELECT data FROM turnmill.journals").fetch_all(pool).await.unwrap();
    let mut journals = String::new();
    for gzip in packed {
        flate2::read::GzDecoder::new(&*gzip).read_to_string(&mut journals).unwrap();
    }
    all.insert("journals, unpacked".to_owned(), journals);
    all
}

/// Whether a text has it: as it is, as bytes in hexadecimal, percent-encoded, or in base64, with line breaks or without.
fn has(text: &str, secret: &str) -> bool {
    let hex = secret.bytes().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
    let escaped = secret.replace('+', "%2B").replace('=', "%3D").replace('/', "%2F");
    let joined = text.replace("\\\\n", "").replace("\\n", "").replace('\n', "");
    if [secret, &hex, &escaped].iter().any(|form| text.contains(*form) || joined.contains(*form)) {
        return true;
    }
    let in_base64 = |text: &str| {
        let runs = text.split(|c: char| !(c.is_ascii_alphanumeric() || "+/".contains(c))).filter(|run| run.len() >= 12);
        runs.flat_map(|run| (0..4).map(move |skip| &run[skip..])).any(|run| {
            let whole = &run[..run.len() / 4 * 4];
            STANDARD_NO_PAD.decode(whole).is_ok_and(|bytes| bytes.windows(8).any(|part| part == &secret.as_bytes()[2..10]))
        })
    };
    in_base64(text) || in_base64(&joined)
}

fn is_clean(place: &str, text: &str, secrets: &[(&str, &str)]) {
    for (name, secret) in secrets {
        if has(text, secret) {
            let line = text.lines().find(|line| has(line, secret)).unwrap_or(text);
            panic!("{place} has the {name}: {line}");
        }
    }
}

#[test]
fn the_search_finds_what_it_looks_for() {
    let key = SECRETS[0].1;
    let engine = base64::engine::general_purpose::STANDARD;
    for before in ["", "k", "kk", "kkk="] {
        let text = engine.encode(format!("{before}{key} and more"));
        assert!(has(&format!("x {text} y"), key), "{text}");
        assert!(has(&format!("x {}\\n{} y", &text[..20], &text[20..]), key));
    }
    assert!(has(&format!("a{key}b"), key) && !has("nothing of it", key));
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn after_a_run_full_of_leaks_and_failures_no_secret_is_anywhere(pool: PgPool) {
    let url = pool.connect_options().to_url_lossy().to_string();
    let (fleet, e2b, logs) = (Fleet::new(pool), LocalE2b::start().await, tempfile::tempdir().unwrap());
    let agent = ["bash", "-c", LEAKY, "leaky"].map(str::to_owned).to_vec();
    let change = PoolChange { agent: Some(agent), prepare: Some(Some(PREPARE.to_owned())), previews: Some(true), ..PoolChange::default() };
    fleet.store.set_pool("default", &change).await.unwrap();
    let receiver = Receiver::start(Manner::Status(200)).await;
    let told = fleet.endpoint(&receiver.url).await;
    let site = Site::with(fleet.clone(), |_| {}).await;
    let reader = site.token(&["ops:read", "turns:read"], Bounds::default()).await;
    let master = Vault::new_key("k1");
    let master_bytes = master.split_once(':').unwrap().1;

    let turn = site.say("s1", "Say your key.").await;
    let events = site.stream(&format!("/v1/turns/{turn}/stream?previews=true"), None).await;
    let reading = tokio::spawn(events.rest());
    let mut first = worker(&url, &e2b.url, &master, SECRETS[0].1, &logs.path().join("first.log"));
    fleet.has_blocks(&turn, 4).await;
    first.kill().await.unwrap();
    // It has another key, and takes over an agent that has the first.
    let mut second = worker(&url, &e2b.url, &master, SECRETS[1].1, &logs.path().join("second.log"));
    until("it is adopted", || async { (fleet.taken(&turn).await.len() == 2).then_some(()) }).await;
    let homes = std::fs::read_dir(e2b.dir.path()).unwrap().flatten().map(|sandbox| sandbox.path().join("root/home/user"));
    std::fs::write(homes.filter(|home| home.is_dir()).map(|home| home.join("go")).next().unwrap(), "").unwrap();
    let ended = fleet.ended(&turn).await;
    let message = ended.error_message.clone().unwrap();
    assert_eq!((ended.status.as_str(), ended.error_code.as_deref()), ("failed", Some("agent_crashed")), "{message}");
    assert!(message.contains("the key [masked] is refused"), "what the agent said of it is told: {message}");

    let events: Vec<String> = reading.await.unwrap().into_iter().map(|event| format!("{} {}", event.name, event.data)).collect();
    let previews: String = events.iter().filter_map(|event| event.strip_prefix("preview ")).map(text_of).collect();
    assert!(previews.contains("it begins: [masked] and ends") || previews.starts_with("it begins: "), "{previews}");
    let blocks = fleet.blocks(&turn).await;
    assert_eq!(blocks[1][1], json!({ "text": "it begins: [masked] and ends" }), "{blocks:?}");
    assert_eq!(blocks[2][1]["parameters"], json!({ "command": "curl -H 'x-api-key: [masked]'", "[masked]": "[masked]" }));

    let secrets: Vec<_> =
        SECRETS.into_iter().chain([("master key", master_bytes), ("webhook secret", &*told.secret), ("token", &*reader)]).collect();
    for (table, text) in tables(&fleet.pool).await {
        // Without a master key of the server's, which made it, a webhook's secret is not sealed.
        let sought: Vec<_> =
            secrets.iter().copied().filter(|(name, _)| table != "webhook_endpoints" || *name != "webhook secret").collect();
        is_clean(&format!("the table {table}"), &text, &sought);
    }
    is_clean("the stream", &events.join("\n"), &secrets);
    let delivery = receiver.has_got(1).await.remove(0);
    is_clean("the webhook", &format!("{:?} {}", delivery.headers, delivery.json()), &secrets);
    for page in ["", "/blocks", "/stream"] {
        let said = site.get(&format!("/v1/turns/{turn}{page}")).await;
        is_clean(page, &format!("{:?} {}", said.headers, said.body), &secrets);
    }
    let visitor = Visitor::with(&site, &["ops:read"]).await;
    let of_turn = ["", "/said", "/export"].map(|part| format!("/ops/turns/{turn}{part}"));
    for page in ["/ops", "/ops/turns", "/ops/sandboxes", "/ops/workers"].into_iter().chain(of_turn.iter().map(String::as_str)) {
        let shown = visitor.get(page).await.error_for_status().unwrap();
        is_clean(page, &shown.text().await.unwrap(), &secrets);
    }
    second.kill().await.unwrap();
    for log in ["first.log", "second.log"] {
        let text = std::fs::read_to_string(logs.path().join(log)).unwrap();
        assert!(text.contains(&turn), "{log} says something");
        is_clean(log, &text, &secrets);
    }
    e2b.stop().await;
}

fn text_of(data: &str) -> String {
    serde_json::from_str::<Value>(data).unwrap()["text"].as_str().unwrap_or_default().to_owned()
}

/// Where there is no master key nothing can be on record: who adopts a turn masks what it has itself.
#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn without_a_master_key_nothing_is_on_record(pool: PgPool) {
    let url = pool.connect_options().to_url_lossy().to_string();
    let (fleet, e2b, logs) = (Fleet::new(pool), LocalE2b::start().await, tempfile::tempdir().unwrap());
    let agent = ["bash", "-c", "echo '{}'; sleep 60"].map(str::to_owned).to_vec();
    fleet.store.set_pool("default", &PoolChange { agent: Some(agent), ..PoolChange::default() }).await.unwrap();
    let turn = fleet.enqueue("hi").await.turn_id;
    let mut worker = worker(&url, &e2b.url, "", SECRETS[0].1, &logs.path().join("log"));
    until("its agent runs", || async {
        let phase: Option<String> =
            sqlx::query_scalar("SELECT phase FROM turnmill.jobs WHERE turn_id = $1").bind(&turn).fetch_one(&fleet.pool).await.unwrap();
        (phase.as_deref() == Some("agent")).then_some(())
    })
    .await;
    is_clean("the job", &tables(&fleet.pool).await["jobs"], &SECRETS);
    let recorded: i64 = sqlx::query_scalar("SELECT count(*) FROM turnmill.turn_secrets").fetch_one(&fleet.pool).await.unwrap();
    assert_eq!(recorded, 0);
    fleet.store.cancel(&turn, None).await.unwrap();
    fleet.ended(&turn).await;
    worker.kill().await.unwrap();
    e2b.stop().await;
}
