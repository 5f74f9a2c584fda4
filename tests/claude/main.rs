//! The real Claude Code CLI in local sandboxes, against a Messages API of ours on loopback. `make test-claude`
//! installs it; each test compares what is in Postgres with what the model was made to say.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod api;
mod files;
#[path = "../it/harness.rs"]
mod harness;

mod kept;
mod previews;
mod repository;
#[path = "../it/site.rs"]
mod site;

use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::process::{Child, Command};
use turnmill::store::{Enqueue, PoolChange};

use api::Answer::{Cut, Fail, Hang, Say, Slowly};
use api::Part::{Text, Thinking, Tool};
use api::{Answer, Api, INPUT_TOKENS, OUTPUT_TOKENS};
use harness::{Fleet, LocalE2b, RunningWorker, TURNMILL, config};

/// A model with a known price: 3 and 15 dollars a million tokens.
const MODEL: &str = "claude-sonnet-4-5-20250929";

struct Claude {
    fleet: Fleet,
    e2b: LocalE2b,
    api: Api,
    /// The pool's `agent_env`.
    environment: Value,
}

impl Claude {
    /// Sandboxes with the real CLI in them. It gives an API call up after its first failure: the queue tries again.
    async fn start(pool: PgPool) -> Self {
        let fleet = Fleet::new(pool);
        let api = Api::default();
        let environment = json!({
            "ANTHROPIC_BASE_URL": api.serve().await, "ANTHROPIC_API_KEY": "sk-none", "CLAUDE_CODE_MAX_RETRIES": "0",
            "CLAUDE_CODE_DISABLE_BACKGROUND_TASKS": "1", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_AUTOUPDATER": "1",
        });
        let change = PoolChange { cap: Some(4), agent_env: Some(environment.clone()), ..PoolChange::default() };
        fleet.store.set_pool("default", &change).await.unwrap();
        Self { fleet, e2b: LocalE2b::start().await, api, environment }
    }

    async fn worker(&self) -> RunningWorker {
        self.worker_with_tries(1).await
    }

    async fn worker_with_tries(&self, tries: u32) -> RunningWorker {
        let mut config = config(&self.e2b.url);
        config.retry.agent_tries = tries;
        RunningWorker::with(&self.fleet, config).await
    }

    async fn enqueue(&self, script: &str, answers: Vec<Answer>) -> String {
        self.enqueue_with(None, script, answers).await
    }

    async fn enqueue_in(&self, session: &str, script: &str, answers: Vec<Answer>) -> String {
        self.enqueue_with(Some(session.to_owned()), script, answers).await
    }

    async fn enqueue_with(&self, session_id: Option<String>, script: &str, answers: Vec<Answer>) -> String {
        self.api.script(script, answers);
        let turn = Enqueue {
            prompt: format!("[script {script}]"),
            project_id: Some("p1".to_owned()),
            session_id,
            options: Some(json!({ "model": MODEL })),
            ..Enqueue::default()
        };
        self.fleet.store.enqueue(&turn).await.unwrap().turn_id.unwrap()
    }

    async fn stop(self, worker: RunningWorker) {
        self.fleet.no_slot_held().await;
        worker.stop().await;
        self.e2b.stop().await;
    }

    /// The end of a turn that should have completed, with its blocks.
    async fn completed(&self, turn: &str) -> Vec<Value> {
        let ended = self.fleet.ended(turn).await;
        assert_eq!(ended.status, "completed", "{:?} {:?}", ended.error_message, self.fleet.blocks(turn).await);
        short(&self.fleet.blocks(turn).await)
    }
}

/// Blocks by what readers see of them.
fn short(blocks: &[Value]) -> Vec<Value> {
    blocks
        .iter()
        .map(|block| match block[0].as_str().unwrap() {
            "tool_use" => json!(["tool_use", block[1]["tool_use_id"], block[1]["tool_name"], block[1]["parameters"]["command"]]),
            "tool_result" => json!(["tool_result", block[1]["tool_use_id"], block[1]["result"], block[1]["error"]]),
            kind => json!([kind, block[1]["text"]]),
        })
        .collect()
}

fn bash(id: &'static str, command: &str) -> api::Part {
    Tool(id, "Bash", json!({ "command": command, "description": "a step" }))
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn what_the_model_says_and_its_tools_do_is_in_postgres_with_what_it_cost(pool: PgPool) {
    let claude = Claude::start(pool).await;
    let worker = claude.worker().await;
    let turn = claude
        .enqueue(
            "tools",
            vec![
                Say(vec![Thinking("A file first."), Text("I'll make one."), bash("toolu_01", "printf 'a\\nb\\n' > made.txt; echo made")]),
                Say(vec![bash("toolu_02", "wc -l < made.txt"), bash("toolu_03", "cat no-such-file")]),
                Say(vec![Text("It has two lines. \u{1f600}")]),
            ],
        )
        .await;
    let blocks = claude.completed(&turn).await;
    assert_eq!(
        blocks[..5],
        [
            json!(["thinking", "A file first."]),
            json!(["content", "I'll make one."]),
            json!(["tool_use", "toolu_01", "Bash", "printf 'a\\nb\\n' > made.txt; echo made"]),
            json!(["tool_result", "toolu_01", "made", null]),
            json!(["tool_use", "toolu_02", "Bash", "wc -l < made.txt"]),
        ]
    );
    // Two calls at once may return in any order.
    let mut parallel = blocks[5..8].to_vec();
    parallel.sort_by_key(Value::to_string);
    assert_eq!(parallel[0], json!(["tool_result", "toolu_02", "2", null]));
    assert_eq!((&parallel[1][1], &parallel[2]), (&json!("toolu_03"), &json!(["tool_use", "toolu_03", "Bash", "cat no-such-file"])));
    assert!(parallel[1][3].as_str().unwrap().contains("No such file"), "{}", parallel[1]);
    assert_eq!(blocks[8..], [json!(["content", "It has two lines. \u{1f600}"])]);
    let (usage, cost): (Value, String) =
        sqlx::query_as("SELECT usage, cost_usd::text FROM turnmill.turns").fetch_one(&claude.fleet.pool).await.unwrap();
    assert_eq!((&usage["input_tokens"], &usage["output_tokens"]), (&json!(3 * INPUT_TOKENS), &json!(3 * OUTPUT_TOKENS)));
    assert_eq!(cost, "0.013500", "3 × (1000 × $3 + 100 × $15) a million");
    // The prompt arrived as it was written.
    assert!(claude.api.requests("tools")[0]["messages"].to_string().contains("[script tools]"));
    claude.stop(worker).await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn every_failure_of_the_api_has_its_own_code(pool: PgPool) {
    let claude = Claude::start(pool).await;
    let worker = claude.worker().await;
    let cases = [
        ("e400", Fail(400, "invalid_request_error"), "invalid_request"),
        ("e401", Fail(401, "authentication_error"), "authentication_failed"),
        ("e404", Fail(404, "not_found_error"), "model_not_found"),
        ("e429", Fail(429, "rate_limit_error"), "rate_limit"),
        ("e500", Fail(500, "api_error"), "server_error"),
        ("e529", Fail(529, "overloaded_error"), "overloaded"),
    ];
    let mut turns = Vec::new();
    for (script, answer, code) in cases {
        turns.push((claude.enqueue(script, vec![Say(vec![bash("toolu_01", "echo one")]), answer]).await, code));
    }
    for (turn, code) in turns {
        let ended = claude.fleet.ended(&turn).await;
        assert_eq!(ended.error_code.as_deref(), Some(code), "{:?}", ended.error_message);
        let blocks = short(&claude.fleet.blocks(&turn).await);
        assert_eq!(blocks[1], json!(["tool_result", "toolu_01", "one", null]), "what was said is kept");
        assert_eq!(blocks.len(), 3, "{blocks:?}");
    }
    claude.stop(worker).await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_cut_stream_is_healed_and_a_slow_answer_is_waited_for(pool: PgPool) {
    let claude = Claude::start(pool).await;
    let worker = claude.worker().await;
    let cut = claude.enqueue("cut", vec![Cut(vec![Text("The first half of")]), Say(vec![Text("Whole again.")])]).await;
    let slow = claude.enqueue("slow", vec![Slowly(Duration::from_millis(400), vec![Thinking("Hm."), Text("Slowly.")])]).await;
    let healed = claude.completed(&cut).await;
    assert_eq!(healed.last().unwrap(), &json!(["content", "Whole again."]), "{healed:?}");
    assert_eq!(claude.completed(&slow).await, [json!(["thinking", "Hm."]), json!(["content", "Slowly."])]);
    claude.stop(worker).await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_failed_attempt_is_resumed_without_doing_a_finished_call_again(pool: PgPool) {
    let claude = Claude::start(pool).await;
    let worker = claude.worker_with_tries(3).await;
    let overloaded = claude
        .enqueue(
            "resume",
            vec![
                Say(vec![bash("toolu_01", "echo x >> count.txt; echo counted")]),
                Fail(529, "overloaded_error"),
                Say(vec![bash("toolu_02", "wc -l < count.txt")]),
                Say(vec![Text("Once.")]),
            ],
        )
        .await;
    // The agent is killed by what its own tool does; the call has no end.
    let killed = claude
        .enqueue(
            "killed",
            vec![
                Say(vec![bash("toolu_01", "echo x >> count.txt; echo counted")]),
                Say(vec![bash("toolu_02", "kill -9 $PPID; sleep 5")]),
                Say(vec![bash("toolu_03", "wc -l < count.txt")]),
                Say(vec![Text("Once.")]),
            ],
        )
        .await;
    let count = json!(["tool_use", "toolu_01", "Bash", "echo x >> count.txt; echo counted"]);
    let counted = json!(["tool_result", "toolu_01", "counted", null]);
    assert_eq!(
        claude.completed(&overloaded).await,
        [
            count.clone(),
            counted.clone(),
            json!(["tool_use", "toolu_02", "Bash", "wc -l < count.txt"]),
            json!(["tool_result", "toolu_02", "1", null]),
            json!(["content", "Once."])
        ]
    );
    // The resumed conversation has the finished call, once.
    let third = &claude.api.requests("resume")[2]["messages"];
    assert_eq!(third.to_string().matches(r#""tool_use_id":"toolu_01""#).count(), 1, "{third}");
    assert_eq!(claude.fleet.turn(&overloaded).await.attempt, 2);
    let (usage, cost): (Value, String) = sqlx::query_as("SELECT usage, cost_usd::text FROM turnmill.turns WHERE id = $1")
        .bind(&overloaded)
        .fetch_one(&claude.fleet.pool)
        .await
        .unwrap();
    assert_eq!((cost.as_str(), &usage["input_tokens"]), ("0.013500", &json!(3 * INPUT_TOKENS)), "both attempts, nothing twice: {usage}");

    let blocks = claude.completed(&killed).await;
    assert_eq!(blocks[..2], [count, counted]);
    assert_eq!(blocks[2], json!(["tool_use", "toolu_02", "Bash", "kill -9 $PPID; sleep 5"]));
    assert_eq!(blocks[3], json!(["tool_result", "toolu_02", "", "the agent failed before this call returned"]));
    assert_eq!(blocks.last().unwrap(), &json!(["content", "Once."]));
    assert!(blocks.contains(&json!(["tool_result", "toolu_03", "1", null])), "{blocks:?}");
    claude.stop(worker).await;
}

/// Every option that a turn may have, as the CLI takes it.
#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_turn_s_options_reach_the_model_and_its_limits_hold(pool: PgPool) {
    let claude = Claude::start(pool).await;
    let worker = claude.worker().await;
    let answers = || vec![Say(vec![bash("toolu_01", "echo one")]), Say(vec![bash("toolu_02", "echo two")]), Say(vec![Text("Done.")])];
    let appended = "Answer like $(a) \"pirate\".";
    for (script, options, code) in [
        ("max-turns", json!({ "max_turns": 1, "append_system_prompt": appended }), "max_turns"),
        ("max-budget", json!({ "max_budget_usd": 0.001 }), "budget_exhausted"),
    ] {
        claude.api.script(script, answers());
        let mut all = json!({ "model": MODEL });
        all.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
        let turn =
            Enqueue { prompt: format!("[script {script}]"), project_id: Some("p1".to_owned()), options: Some(all), ..Enqueue::default() };
        let turn = claude.fleet.store.enqueue(&turn).await.unwrap().turn_id.unwrap();
        let ended = claude.fleet.ended(&turn).await;
        assert_eq!(ended.error_code.as_deref(), Some(code), "{:?}", ended.error_message);
        let request = &claude.api.requests(script)[0];
        assert_eq!(request["model"], MODEL);
        assert_eq!(request["system"].to_string().contains(&appended.replace('"', "\\\"")), script == "max-turns", "{}", request["system"]);
        // A call that was cut short by a limit has an end too.
        let blocks = claude.fleet.blocks(&turn).await;
        let count = |kind: &str| blocks.iter().filter(|block| block[0] == kind).count();
        assert!(count("tool_use") > 0 && count("tool_use") == count("tool_result"), "{blocks:?}");
    }
    claude.stop(worker).await;
}

/// Two ends that nobody saw: after the answer, and before the conversation was saved.
#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn an_answer_is_asked_for_once_and_a_conversation_that_is_not_there_is_begun_anew(pool: PgPool) {
    let claude = Claude::start(pool).await;
    let flags = claude.fleet.store.pools().await.unwrap().remove(0).agent.split_off(1);
    let once = r#"once() { [ -e "$HOME/once" ] || { : >"$HOME/once"; kill -9 $$; }; }"#;
    for (script, run, attempts) in [("after", r#"claude "$@"; once"#, 2), ("before", r#"once; exec claude "$@""#, 3)] {
        let agent = ["bash", "-c", &format!("{once}; {run}"), "agent"].map(str::to_owned).into_iter().chain(flags.clone()).collect();
        claude.fleet.store.set_pool("default", &PoolChange { agent: Some(agent), ..PoolChange::default() }).await.unwrap();
        let worker = claude.worker_with_tries(3).await;
        let turn = claude.enqueue(script, vec![Say(vec![Text("Done.")])]).await;
        assert_eq!(claude.completed(&turn).await, [json!(["content", "Done."])], "{script}");
        assert_eq!((claude.api.requests(script).len(), claude.fleet.turn(&turn).await.attempt), (1, attempts), "{script}");
        claude.fleet.no_slot_held().await;
        worker.stop().await;
    }
    claude.e2b.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_cancelled_turn_ends_at_once_and_keeps_what_was_said(pool: PgPool) {
    let claude = Claude::start(pool).await;
    let worker = claude.worker().await;
    let thinking = claude.enqueue("hang", vec![Say(vec![bash("toolu_01", "echo one")]), Hang]).await;
    let working = claude.enqueue("sleeper", vec![Say(vec![bash("toolu_01", "sleep 300")])]).await;
    claude.fleet.has_blocks(&thinking, 2).await;
    claude.fleet.has_blocks(&working, 1).await;
    for turn in [&thinking, &working] {
        claude.fleet.store.cancel(turn, Some("changed my mind")).await.unwrap();
    }
    for turn in [&thinking, &working] {
        let ended = claude.fleet.ended(turn).await;
        assert_eq!((ended.status.as_str(), ended.error_message.as_deref()), ("cancelled", Some("changed my mind")));
    }
    assert_eq!(short(&claude.fleet.blocks(&thinking).await)[1], json!(["tool_result", "toolu_01", "one", null]));
    let blocks = short(&claude.fleet.blocks(&working).await);
    assert_eq!((blocks.len(), &blocks[1][1]), (2, &json!("toolu_01")), "the call has an end: {blocks:?}");
    claude.stop(worker).await;
}

fn worker_process(claude: &Claude, database_url: &str) -> Child {
    let url = &claude.e2b.url;
    let mut command = Command::new(TURNMILL);
    command.arg("worker").env("DATABASE_URL", database_url).env("E2B_API_URL", url).env("E2B_SANDBOX_URL", url).env("E2B_API_KEY", "local");
    command.env("TURNMILL_WORKER__LEASE", "2s").env("TURNMILL_WORKER__HEARTBEAT", "300ms").env_remove("ANTHROPIC_API_KEY");
    command.kill_on_drop(true).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_worker_killed_in_the_middle_costs_a_pause_and_no_request(pool: PgPool) {
    use sqlx::ConnectOptions as _;
    let url = pool.connect_options().to_url_lossy().to_string();
    let claude = Claude::start(pool).await;
    let mut first = worker_process(&claude, &url);
    let turn = claude
        .enqueue(
            "survivor",
            vec![
                Say(vec![Text("Before."), bash("toolu_01", "until [ -e go ]; do sleep 0.1; done; echo went")]),
                Slowly(Duration::from_millis(100), vec![Thinking("Still here."), Text("After.")]),
            ],
        )
        .await;
    claude.fleet.has_blocks(&turn, 2).await;
    first.kill().await.unwrap();
    // Nobody follows, and the agent goes on.
    let homes = std::fs::read_dir(claude.e2b.dir.path()).unwrap().flatten().map(|sandbox| sandbox.path().join("root/home/user"));
    let go = homes.filter(|home| home.is_dir()).map(|home| home.join("go")).next().unwrap();
    std::fs::write(go, "").unwrap();
    let mut second = worker_process(&claude, &url);
    assert_eq!(
        claude.completed(&turn).await,
        [
            json!(["content", "Before."]),
            json!(["tool_use", "toolu_01", "Bash", "until [ -e go ]; do sleep 0.1; done; echo went"]),
            json!(["tool_result", "toolu_01", "went", null]),
            json!(["thinking", "Still here."]),
            json!(["content", "After."])
        ]
    );
    assert_eq!(claude.fleet.taken(&turn).await, ["claimed", "adopted"]);
    assert_eq!(claude.api.requests("survivor").len(), 2, "no second bill");
    claude.fleet.no_slot_held().await;
    second.kill().await.unwrap();
    claude.e2b.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_command_line_that_the_cli_refuses_says_so(pool: PgPool) {
    let claude = Claude::start(pool).await;
    let agent = "claude -p --input-format=stream-json --output-format=stream-json --no-such-flag".split(' ').map(str::to_owned).collect();
    claude.fleet.store.set_pool("default", &PoolChange { agent: Some(agent), ..PoolChange::default() }).await.unwrap();
    let worker = claude.worker().await;
    let turn = claude.enqueue("flags", vec![Hang]).await;
    let ended = claude.fleet.ended(&turn).await;
    assert_eq!(ended.error_code.as_deref(), Some("agent_refused"));
    let message = ended.error_message.unwrap();
    assert!(message.contains("--no-such-flag") && message.contains("build the template with"), "{message}");
    claude.stop(worker).await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_conversation_goes_on_in_new_sandboxes_and_a_lost_one_is_said(pool: PgPool) {
    let claude = Claude::start(pool).await;
    let worker = claude.worker().await;
    let first = claude.enqueue_in("chat", "one", vec![Say(vec![Text("I am the first answer.")])]).await;
    assert_eq!(claude.completed(&first).await, [json!(["content", "I am the first answer."])]);
    let second =
        claude.enqueue_in("chat", "two", vec![Say(vec![bash("toolu_01", "echo second")]), Say(vec![Text("I am the second.")])]).await;
    claude.completed(&second).await;
    let third = claude.enqueue_in("chat", "three", vec![Say(vec![Text("I am the third.")])]).await;
    assert_eq!(claude.completed(&third).await, [json!(["content", "I am the third."])]);
    // What the model was sent: each message and answer of the conversation, once.
    let sent = claude.api.requests("three")[0]["messages"].to_string();
    for said in ["[script one]", "I am the first answer.", "[script two]", "toolu_01", "I am the second.", "[script three]"] {
        assert!(sent.contains(said), "{said} is missing in {sent}");
    }
    assert_eq!(claude.e2b.acts("create").await.len(), 3, "each in a sandbox of its own");

    claude.fleet.sql("DELETE FROM turnmill.transcripts WHERE session_id = $1", "chat").await;
    let fourth = claude.enqueue_in("chat", "four", vec![Say(vec![Text("Who are you?")])]).await;
    let blocks = claude.completed(&fourth).await;
    assert!(blocks[0][1].as_str().unwrap().contains("I don't remember"), "{blocks:?}");
    assert!(!claude.api.requests("four")[0]["messages"].to_string().contains("first answer"));
    claude.stop(worker).await;
}
