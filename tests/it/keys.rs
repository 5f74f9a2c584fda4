//! Where agents' keys come from: the order of the sources, Bedrock's tokens by a role, users' own keys; and what is said when
//! there is none.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse as _;
use axum::routing::post;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use sqlx::PgPool;
use turnmill::config::Config;
use turnmill::keys::{Environment, OwnKey, Vault, seal_of_own, seal_of_secrets};
use turnmill::store::{Enqueue, PoolChange};

use crate::harness::{Fleet, LocalE2b, Running, RunningWorker, config, until, use_mock};

/// Says which keys it has, as the seed's agents speak; spelled, or they would be masked.
const AGENT: &str = r#"printf '{"type":"content","text":"%s"}\n' "$(printf '%s|%s|%s' "${ANTHROPIC_API_KEY:-none}" "${CLAUDE_CODE_OAUTH_TOKEN:-none}" "${AWS_BEARER_TOKEN_BEDROCK:-none} ${CLAUDE_CODE_USE_BEDROCK:-} ${AWS_REGION:-} ${ANTHROPIC_MODEL:-} ${ANTHROPIC_DEFAULT_HAIKU_MODEL:-} ${AWS_ACCESS_KEY_ID:-}${AWS_SECRET_ACCESS_KEY:-}${AWS_SESSION_TOKEN:-}${AWS_ROLE_ARN:-}" | sed 's/./&^/g')""#;

const MODEL: &str = "us.anthropic.claude-sonnet-4-5-20250929-v1:0";

/// What the seed has, and the role.
const AWS: [(&str, &str); 5] = [
    ("AWS_ACCESS_KEY_ID", "AKIAEXAMPLEOFWORKER"),
    ("AWS_SECRET_ACCESS_KEY", "the-worker-s-own-secret"),
    ("AWS_REGION", "us-east-1"),
    ("BEDROCK_MODEL_ID", MODEL),
    ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/agents"),
];

pub fn environment(variables: &[(&str, &str)]) -> Environment {
    Environment::read(&|name| Some((*variables.iter().find(|(known, _)| *known == name)?.1).to_owned()), None).unwrap()
}

/// A fleet whose worker has these variables.
async fn start(pool: PgPool, variables: &[(&str, &str)], change: impl FnOnce(&mut Config)) -> Running {
    let fleet = Fleet::new(pool);
    let e2b = LocalE2b::start().await;
    use_mock(&fleet.store, &e2b.agent_ledger()).await;
    let agent = ["bash", "-c", AGENT].map(str::to_owned).to_vec();
    fleet.store.set_pool("default", &PoolChange { agent: Some(agent), ..PoolChange::default() }).await.unwrap();
    let mut config = Config { environment: environment(variables), ..config(&e2b.url) };
    change(&mut config);
    let worker = RunningWorker::with_keys(&fleet, config).await;
    Running { fleet, e2b, worker }
}

/// What the agent of a turn in this user's session says that it has.
async fn keys_of(fleet: &Fleet, user: Option<&str>, tenant: Option<&str>) -> String {
    let turn = Enqueue {
        prompt: "x".to_owned(),
        project_id: Some("p1".to_owned()),
        user_id: user.map(str::to_owned),
        tenant_id: tenant.map(str::to_owned),
        ..Enqueue::default()
    };
    let turn = fleet.store.enqueue(&turn).await.unwrap().turn_id.unwrap();
    assert_eq!(fleet.ended(&turn).await.error_message, None);
    fleet.blocks(&turn).await[0][1]["text"].as_str().unwrap().replace('^', "")
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_turn_gets_its_user_s_own_key_or_its_tenant_s_or_the_fixed_one_in_the_order_that_is_set(pool: PgPool) {
    let master = Vault::new_key("m1");
    let all = start(pool, &[("CLAUDE_API_KEY", "sk-ant-fixed")], |config| {
        config.keys.order = "user, fixed".to_owned();
        config.keys.master = master.clone().into();
    })
    .await;
    let vault = Vault::new(&master).unwrap();
    let give = async |tenant: &str, user: &str, key: &str| {
        let sealed = vault.seal(&seal_of_own(tenant, user), key.as_bytes().to_vec());
        let own = OwnKey { tenant_id: tenant.to_owned(), user_id: user.to_owned(), sealed };
        all.fleet.store.set_own_key(&own).await.unwrap();
    };
    give("", "ann", "sk-ant-api-ann").await;
    give("acme", "", "sk-ant-api-acme").await;
    give("acme", "ann", "sk-ant-oat01-ann-of-acme").await;
    for (user, tenant, keys) in [
        (Some("ann"), None, "sk-ant-api-ann|none|"),
        (Some("ann"), Some("acme"), "none|sk-ant-oat01-ann-of-acme|"),
        (Some("bob"), Some("acme"), "sk-ant-api-acme|none|"),
        (None, Some("acme"), "sk-ant-api-acme|none|"),
        (Some("bob"), None, "sk-ant-fixed|none|"),
        (Some("ann"), Some("other"), "sk-ant-fixed|none|"),
        (None, None, "sk-ant-fixed|none|"),
    ] {
        let said = keys_of(&all.fleet, user, tenant).await;
        assert!(said.starts_with(keys), "{user:?} {tenant:?}: {said}");
    }
    assert!(all.fleet.store.forget_own_key("", "ann").await.unwrap());
    assert!(keys_of(&all.fleet, Some("ann"), None).await.starts_with("sk-ant-fixed"));
    let rows: Vec<Vec<u8>> = sqlx::query_scalar("SELECT data FROM turnmill.user_keys").fetch_all(&all.fleet.pool).await.unwrap();
    assert!(!rows.iter().any(|row| row.windows(6).any(|part| part == b"sk-ant")), "sealed at rest");
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_key_that_can_t_be_opened_is_an_error_and_not_the_next_source_s_bill(pool: PgPool) {
    let all = start(pool, &[("ANTHROPIC_API_KEY", "sk-ant-fixed")], |config| {
        config.keys.order = "user, fixed".to_owned();
        config.keys.master = Vault::new_key("m1").into();
        config.retry.startup_tries = 1;
    })
    .await;
    for (master, words) in [("m0", "sealed under key \"m0\", which this worker does not have"), ("m1", "its seal is broken")] {
        let vault = Vault::new(&Vault::new_key(master)).unwrap();
        let sealed = vault.seal(&seal_of_own("", "ann"), b"sk-ant-api-ann".to_vec());
        all.fleet.store.set_own_key(&OwnKey { tenant_id: String::new(), user_id: "ann".to_owned(), sealed }).await.unwrap();
        let turn =
            Enqueue { prompt: "x".to_owned(), project_id: Some("p1".to_owned()), user_id: Some("ann".to_owned()), ..Enqueue::default() };
        let turn = all.fleet.store.enqueue(&turn).await.unwrap().turn_id.unwrap();
        let ended = all.fleet.ended(&turn).await;
        assert_eq!(ended.error_code.as_deref(), Some("key_sealed"));
        let message = ended.error_message.unwrap();
        assert!(message.contains(words) && !message.contains("sk-ant"), "{message}");
    }
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn without_any_key_a_turn_of_claude_s_fails_before_a_sandbox_is_made(pool: PgPool) {
    let all = start(pool, &[], |_| {}).await;
    let claude = Some(vec!["/usr/local/bin/claude".to_owned()]);
    all.fleet.store.set_pool("default", &PoolChange { agent: claude, ..PoolChange::default() }).await.unwrap();
    let turn = all.fleet.enqueue("x").await.turn_id;
    let ended = all.fleet.ended(&turn).await;
    assert_eq!((ended.status.as_str(), ended.error_code.as_deref()), ("failed", Some("no_credentials")));
    let message = ended.error_message.unwrap();
    for words in ["ANTHROPIC_API_KEY", "BEDROCK_MODEL_ID, AWS_REGION, AWS_ROLE_ARN", "turnmill keys set"] {
        assert!(message.contains(words), "{message}");
    }
    assert_eq!(all.fleet.history(&turn).await.len(), 1, "tried once");
    all.fleet.no_slot_held().await;
    assert_eq!(all.e2b.acts("create").await.len(), 0);
    // A pool that brings its own is left alone.
    let change = PoolChange { agent_env: Some(json!({ "ANTHROPIC_API_KEY": "sk-of-the-pool" })), ..PoolChange::default() };
    all.fleet.store.set_pool("default", &change).await.unwrap();
    let turn = all.fleet.enqueue("x").await.turn_id;
    assert_eq!(all.fleet.ended(&turn).await.error_code.as_deref(), Some("agent_not_found"));
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn on_bedrock_an_agent_gets_a_token_of_a_role_for_its_models_and_nothing_of_the_worker_s(pool: PgPool) {
    let sts = Sts::start(None).await;
    let all = start(pool, &AWS, |config| config.keys.sts_url.clone_from(&sts.url)).await;
    let turns = [all.fleet.enqueue("x").await.turn_id, all.fleet.enqueue("x").await.turn_id, all.fleet.enqueue("x").await.turn_id];
    let mut tokens = Vec::new();
    for turn in &turns {
        assert_eq!(all.fleet.ended(turn).await.error_message, None);
        let said = all.fleet.blocks(turn).await[0][1]["text"].as_str().unwrap().replace('^', "");
        let (token, rest) = said.strip_prefix("none|none|").unwrap().split_once(' ').unwrap();
        assert_eq!(rest, format!("1 us-east-1 {MODEL} {MODEL} "), "no key of the worker's");
        tokens.push(token.to_owned());
    }
    tokens.dedup();
    assert_eq!((tokens.len(), sts.asked()), (1, 1), "one token for all of them, asked for once");
    let signed = String::from_utf8(BASE64.decode(tokens[0].strip_prefix("bedrock-api-key-").unwrap()).unwrap()).unwrap();
    assert!(signed.starts_with("bedrock.amazonaws.com/?Action=CallWithBearerToken&") && signed.ends_with("&Version=1"), "{signed}");
    for part in
        ["X-Amz-Credential=ASIAOFTHEROLE%2F", "%2Fus-east-1%2Fbedrock%2Faws4_request", "X-Amz-Expires=3600", "X-Amz-Security-Token=session"]
    {
        assert!(signed.contains(part), "{signed}");
    }
    let asked = sts.last();
    assert_eq!((asked["Action"].as_str(), asked["DurationSeconds"].as_str()), (Some("AssumeRole"), Some("3600")));
    assert_eq!(asked["RoleArn"], "arn:aws:iam::123456789012:role/agents");
    let policy: Value = serde_json::from_str(asked["Policy"].as_str().unwrap()).unwrap();
    let profile = format!("arn:aws:bedrock:us-east-1:123456789012:inference-profile/{MODEL}");
    assert_eq!(policy["Statement"][0]["Resource"], json!([profile]));
    assert_eq!(
        policy["Statement"][1]["Resource"],
        json!(["arn:aws:bedrock:*::foundation-model/anthropic.claude-sonnet-4-5-20250929-v1:0"])
    );
    assert_eq!(policy["Statement"][1]["Condition"]["StringEquals"]["bedrock:InferenceProfileArn"], json!([profile]));
    assert_eq!(policy["Statement"].as_array().unwrap().len(), 3);

    // Another model than the role may call, and a turn that would outlive its key.
    let other = Enqueue {
        prompt: "x".to_owned(),
        project_id: Some("p1".to_owned()),
        options: Some(json!({ "model": "us.anthropic.claude-opus-4-1-20250805-v1:0" })),
        ..Enqueue::default()
    };
    let other = all.fleet.store.enqueue(&other).await.unwrap().turn_id.unwrap();
    let ended = all.fleet.ended(&other).await;
    assert_eq!(ended.error_code.as_deref(), Some("bedrock_model"));
    assert!(ended.error_message.unwrap().contains("keys.bedrock_models"));
    all.fleet.sql("UPDATE turnmill.pools SET turn_timeout_s = 7200 WHERE name = $1", "default").await;
    let long = all.fleet.enqueue("x").await.turn_id;
    let ended = all.fleet.ended(&long).await;
    assert_eq!(ended.error_code.as_deref(), Some("bedrock_session_too_short"));
    assert!(ended.error_message.unwrap().contains("lasts for 3600 s at most: lower the pool's turn_timeout_s"));
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn what_sts_refuses_is_said_with_what_to_do_and_without_a_secret(pool: PgPool) {
    let sts = Sts::start(Some(("AccessDenied", "User: x is not authorized"))).await;
    let all = start(pool, &AWS, |config| {
        config.keys.sts_url.clone_from(&sts.url);
        config.retry.startup_tries = 2;
        config.retry.startup_delay = std::time::Duration::from_millis(10);
    })
    .await;
    let cases = [
        ("AccessDenied", "User: x is not authorized", "bedrock_refused", "see the role's trust policy"),
        (
            "SignatureDoesNotMatch",
            "Signature expired: 20261126T050000Z is now earlier than 20261126T055500Z\nsession-token-of-the-worker",
            "bedrock_clock",
            "this worker's clock is wrong",
        ),
        (
            "InvalidClientTokenId",
            "The security token included in the request is invalid.",
            "bedrock_refused",
            "this worker's own credentials",
        ),
        (
            "ValidationError",
            "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining.",
            "bedrock_session_too_short",
            "keys.bedrock_session_max",
        ),
    ];
    for (code, said, expected, words) in cases {
        sts.refuse(code, said);
        // A refusal is everybody's answer for a moment: that of the case before may be this turn's.
        let message = until(expected, || async {
            let ended = all.fleet.ended(&all.fleet.enqueue("x").await.turn_id).await;
            let message = ended.error_message.unwrap();
            (ended.error_code.as_deref() == Some(expected) && message.contains(code)).then_some(message)
        })
        .await;
        assert!(message.contains(words), "{message}");
        assert!(!message.contains("the-worker-s-own-secret") && !message.contains("session-token-of-the-worker"), "{message}");
    }
    assert_eq!(all.e2b.acts("create").await.len(), 0);
    all.stop().await;
}

#[tokio::test]
async fn half_a_configuration_of_bedrock_is_said_in_one_sentence() {
    let without = |name: &str| AWS.into_iter().filter(|(known, _)| *known != name).collect::<Vec<_>>();
    let with = |name: &'static str, value: &'static str| {
        let mut all = without(name);
        all.push((name, value));
        all
    };
    let refused = |variables: &[(&str, &str)], change: fn(&mut Config)| {
        let mut config = Config { environment: environment(variables), ..Config::load(None).unwrap() };
        change(&mut config);
        turnmill::keys::Keyring::new(&config).unwrap_err().to_string()
    };
    let cases = [
        (refused(&without("AWS_ROLE_ARN"), |_| {}), "AWS_ROLE_ARN is missing"),
        (refused(&without("AWS_REGION"), |_| {}), "AWS_REGION is missing"),
        (refused(&without("AWS_SECRET_ACCESS_KEY"), |_| {}), "AWS_SECRET_ACCESS_KEY is missing, which belongs to AWS_ACCESS_KEY_ID"),
        (refused(&[("CLAUDE_CODE_USE_BEDROCK", "1")], |_| {}), "BEDROCK_MODEL_ID is missing"),
        (refused(&with("AWS_ROLE_ARN", "agents"), |_| {}), "is no role's ARN"),
        (refused(&with("BEDROCK_MODEL_ID", "anthropic.claude-3-opus-20240229-v1:0"), |_| {}), "is retired"),
        (refused(&with("BEDROCK_MODEL_ID", "us.anthropic.claude-3-7-sonnet-20250219-v1:0"), |_| {}), "is retired"),
        (
            refused(&with("BEDROCK_MODEL_ID", "anthropic.claude-sonnet-4-5-20250929-v1:0"), |_| {}),
            "give an inference profile of it, as us.anthropic.claude-sonnet-4-5",
        ),
        (refused(&with("BEDROCK_MODEL_ID", "gpt-5"), |_| {}), "is no inference profile of an Anthropic model"),
        (refused(&with("BEDROCK_MODEL_ID", "arn:aws:bedrock:us-east-1::foundation-model/x"), |_| {}), "is no inference profile's ARN"),
        (refused(&AWS, |config| config.keys.bedrock_session_max = std::time::Duration::from_secs(60)), "between 15m and 12h"),
        (refused(&AWS, |config| config.keys.order = "fixed, vertex".to_owned()), "keys.order has \"vertex\""),
        (refused(&AWS, |config| config.keys.required = "yes".to_owned()), "it is auto, always or never"),
        (refused(&[("CLAUDE_API_KEY", "changeme")], |_| {}), "CLAUDE_API_KEY is a word that anybody would try"),
        (refused(&[("USPARK_TOKEN", "tok")], |_| {}), "USPARK_TOKEN has fewer than 8 characters"),
        (refused(&[("ANTHROPIC_BASE_URL", "gateway.example")], |_| {}), "ANTHROPIC_BASE_URL is no http:// or https:// URL"),
        (refused(&[("ANTHROPIC_BASE_URL", "https://me:hunter22@gateway")], |_| {}), "has a name or a password in it"),
    ];
    for (said, words) in cases {
        assert!(said.contains(words), "expected {words:?} in: {said}");
        assert!(!said.contains("the-worker-s-own-secret") && !said.contains("hunter22"), "{said}");
    }
    // What is never asked does no harm.
    let mut half = without("AWS_ROLE_ARN");
    half.push(("ANTHROPIC_API_KEY", "sk-ant-fixed"));
    let config = Config { environment: environment(&half), ..Config::load(None).unwrap() };
    let keyring = turnmill::keys::Keyring::new(&config).unwrap();
    assert_eq!(keyring.source().as_deref(), Some("ANTHROPIC_API_KEY"));
    let credentials = keyring.for_hooks(keyring.fixed().unwrap());
    assert_eq!(credentials.secrets().map(ExposeSecret::expose_secret).collect::<Vec<_>>(), ["sk-ant-fixed"]);
}

/// The worker before had other keys: what its agent says of them must be known for what it is.
#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn whoever_adopts_a_turn_can_know_what_it_was_started_with_and_nobody_afterwards(pool: PgPool) {
    let master = Vault::new_key("m1");
    let vault = Vault::new(&master).unwrap();
    let all = start(pool, &[("ANTHROPIC_API_KEY", "sk-ant-the-first"), ("USPARK_TOKEN", "tok-the-first")], |config| {
        config.keys.master = master.clone().into();
    })
    .await;
    let go = all.e2b.dir.path().join("go");
    let agent = format!("echo '{{\"type\":\"content\",\"text\":\"x\"}}'; until [ -e {} ]; do sleep 0.05; done", go.display());
    let change = PoolChange { agent: Some(["bash", "-c", &agent].map(str::to_owned).to_vec()), ..PoolChange::default() };
    all.fleet.store.set_pool("default", &change).await.unwrap();
    let turn = all.fleet.enqueue_in("x", Some("s1")).await.turn_id;
    let session = "s1".to_owned();
    all.fleet.has_blocks(&turn, 1).await;
    let noted = async || {
        let rows = all.fleet.store.noted_secrets(&session).await.unwrap();
        let open = |(turn, sealed): (String, _)| String::from_utf8(vault.open(&seal_of_secrets(&turn), sealed).unwrap()).unwrap();
        rows.into_iter().map(open).collect::<Vec<_>>()
    };
    assert_eq!(noted().await, ["sk-ant-the-first\0tok-the-first\0"]);
    all.worker.stop().await;
    let mut second = Config { environment: environment(&[("ANTHROPIC_API_KEY", "sk-ant-the-second")]), ..config(&all.e2b.url) };
    second.keys.master = master.clone().into();
    let worker = RunningWorker::with_keys(&all.fleet, second).await;
    until("the adopter knows both", || async { (noted().await == ["sk-ant-the-first\0sk-ant-the-second\0tok-the-first\0"]).then_some(()) })
        .await;
    std::fs::write(&go, "").unwrap();
    assert_eq!(all.fleet.ended(&turn).await.error_message, None);
    until("they are forgotten", || async { noted().await.is_empty().then_some(()) }).await;
    Running { worker, fleet: all.fleet, e2b: all.e2b }.stop().await;
}

/// A sandbox that is kept remembers what its turns were given, whatever the next one is given.
#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn what_a_kept_sandbox_was_told_by_turns_before_is_masked_in_those_after_them(pool: PgPool) {
    let master = Vault::new_key("m1");
    let all = start(pool, &[("ANTHROPIC_API_KEY", "sk-ant-the-first-1")], |config| config.keys.master = master.clone().into()).await;
    let agent = r#"printf '{"type":"content","text":"%s"}\n' "before$(cat note 2>/dev/null), now $ANTHROPIC_API_KEY"; printf ' %s' "$ANTHROPIC_API_KEY" >>note"#;
    let agent = Some(["bash", "-c", agent].map(str::to_owned).to_vec());
    all.fleet.store.set_pool("default", &PoolChange { agent, release: Some((600, 0)), ..PoolChange::default() }).await.unwrap();
    let ended = async |fleet: &Fleet| {
        let turn = fleet.enqueue_in("x", Some("s1")).await.turn_id;
        assert_eq!(fleet.ended(&turn).await.error_message, None);
        fleet.blocks(&turn).await[0][1]["text"].as_str().unwrap().to_owned()
    };
    assert_eq!(ended(&all.fleet).await, "before, now [masked]");
    // The workers' upkeep forgets what nobody needs any more.
    all.fleet.store.forget_old().await.unwrap();
    all.worker.stop().await;
    let mut second = Config { environment: environment(&[("ANTHROPIC_API_KEY", "sk-ant-the-second-2")]), ..config(&all.e2b.url) };
    second.keys.master = master.into();
    let worker = RunningWorker::with_keys(&all.fleet, second).await;
    assert_eq!(ended(&all.fleet).await, "before [masked], now [masked]");
    assert_eq!(ended(&all.fleet).await, "before [masked] [masked], now [masked]");
    assert_eq!(all.fleet.store.noted_secrets("s1").await.unwrap().len(), 2, "what is known already is not noted again");
    worker.stop().await;
    all.e2b.stop().await;
}

/// An STS that gives the same to everybody, or refuses.
struct Sts {
    url: String,
    state: Arc<StsState>,
}

#[derive(Default)]
struct StsState {
    asked: AtomicUsize,
    last: std::sync::Mutex<Value>,
    refuses: std::sync::Mutex<Option<(String, String)>>,
}

impl Sts {
    async fn start(refuses: Option<(&str, &str)>) -> Self {
        let state = Arc::new(StsState::default());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let app = Router::new().route("/", post(answer)).with_state(state.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        let sts = Self { url, state };
        if let Some((code, said)) = refuses {
            sts.refuse(code, said);
        }
        sts
    }

    fn refuse(&self, code: &str, said: &str) {
        *self.state.refuses.lock().unwrap() = Some((code.to_owned(), said.to_owned()));
    }

    fn asked(&self) -> usize {
        self.state.asked.load(Ordering::Relaxed)
    }

    fn last(&self) -> Value {
        self.state.last.lock().unwrap().clone()
    }
}

async fn answer(State(state): State<Arc<StsState>>, body: String) -> axum::response::Response {
    state.asked.fetch_add(1, Ordering::Relaxed);
    let pairs: Vec<(String, String)> = serde_urlencoded::from_str(&body).unwrap();
    *state.last.lock().unwrap() = pairs.into_iter().map(|(name, value)| (name, Value::from(value))).collect();
    if let Some((code, said)) = state.refuses.lock().unwrap().clone() {
        let text = format!(
            "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type><Code>{code}</Code>\
             <Message>{said}</Message></Error><RequestId>r</RequestId></ErrorResponse>"
        );
        return (StatusCode::FORBIDDEN, [("content-type", "text/xml")], text).into_response();
    }
    let text = "<AssumeRoleResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><AssumeRoleResult><Credentials>\
         <AccessKeyId>ASIAOFTHEROLE</AccessKeyId><SecretAccessKey>secret-of-the-role</SecretAccessKey>\
         <SessionToken>session</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleResult>\
         <ResponseMetadata><RequestId>r</RequestId></ResponseMetadata></AssumeRoleResponse>";
    ([("content-type", "text/xml")], text).into_response()
}
