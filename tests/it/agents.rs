//! What users see of agents that fail, each in its own way.

use serde_json::json;
use sqlx::PgPool;
use turnmill::store::PoolChange;

use crate::harness::Running;

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn whatever_an_agent_prints_its_blocks_are_stored_and_the_turn_ends_as_it_should(pool: PgPool) {
    let all = Running::with(pool, |config| config.retry.agent_tries = 1).await;
    let cases = [
        ("tools", None),
        ("hostile", None),
        ("api-error", Some(("overloaded", "529 Overloaded"))),
        ("crash", Some(("agent_killed", "signal 11"))),
        ("garbage", Some(("agent_garbage", "Welcome to some other program!"))),
        (r#"{"steps": [{"text": "a"}, {"torn": "{\"type\":\"assist"}, {"exit": 0}]}"#, Some(("agent_interrupted", "without a result"))),
        (r#"{"steps": [{"text": "a"}, {"exit": 7}]}"#, Some(("agent_crashed", "exit code 7"))),
        (r#"{"foreign": true, "steps": [{"exit": 4}]}"#, Some(("agent_no_output", "exit code 4"))),
    ];
    let mut turns = Vec::new();
    for (script, _) in &cases {
        turns.push(all.fleet.enqueue(&format!("/mock {script}")).await.turn_id);
    }
    for (turn, (script, failure)) in turns.iter().zip(&cases) {
        let ended = all.fleet.ended(turn).await;
        let mut expected = all.fleet.expected(turn, script).await;
        if let Some((code, words)) = failure {
            assert_eq!((ended.status.as_str(), ended.error_code.as_deref()), ("failed", Some(*code)), "{script}");
            let message = ended.error_message.unwrap();
            assert!(message.contains(words), "{script}: {message}");
            expected.push(json!(["content", { "kind": "error", "code": code, "text": message }]));
        } else {
            assert_eq!(ended.status, "completed", "{script}: {:?}", ended.error_message);
        }
        assert_eq!(all.fleet.blocks(turn).await, expected, "{script}");
    }
    assert_eq!(all.agent_starts(), cases.len());
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn an_agent_that_is_not_there_or_says_nothing_fails_with_what_to_do(pool: PgPool) {
    let all = Running::start(pool).await;
    let cases = [
        (vec!["no-such-agent", "-p"], "agent_not_found", "Is it in the pool's template"),
        (
            vec!["bash", "-c", r#"echo "error: unknown option '--thinking-display'" >&2; exit 1"#],
            "agent_refused",
            "build the template with",
        ),
        (vec!["bash", "-c", "echo 'missing flag' >&2; exit 1"], "agent_no_output", "exit code 1 and printed nothing: missing flag"),
        (vec!["bash", "-c", "echo hello; echo world"], "agent_garbage", "\"hello\""),
    ];
    for (agent, code, words) in cases {
        let agent = agent.into_iter().map(str::to_owned).collect();
        all.fleet.store.set_pool("default", &PoolChange { agent: Some(agent), ..PoolChange::default() }).await.unwrap();
        let turn = all.fleet.enqueue("x").await;
        let ended = all.fleet.ended(&turn.turn_id).await;
        assert_eq!(ended.error_code.as_deref(), Some(code));
        let message = ended.error_message.unwrap();
        assert!(message.contains(words), "{message}");
    }
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn the_prompt_reaches_the_agent_as_literal_text_on_its_input_and_options_as_flags(pool: PgPool) {
    let all = Running::start(pool).await;
    // Prints what it was given as one flat event; $0 is the command line's own first word after the script.
    let echo = r#"read -r line; printf '{"type":"tool_use","tool_name":"%s","parameters":%s,"tool_use_id":"x"}\n' "$*" "$line""#;
    let agent = ["bash", "-c", echo, "agent", "--session-id={session}"].map(str::to_owned).to_vec();
    all.fleet.store.set_pool("default", &PoolChange { agent: Some(agent), ..PoolChange::default() }).await.unwrap();
    let prompt = "/clear $(touch /tmp/x) `id` '\"; \\ --version\n@/etc/passwd ü \u{1f600}";
    let turn = turnmill::store::Enqueue {
        prompt: prompt.to_owned(),
        project_id: Some("p1".to_owned()),
        options: Some(json!({ "model": "some model; rm -rf /", "max_turns": 3 })),
        ..turnmill::store::Enqueue::default()
    };
    let turn: crate::harness::Enqueued = all.fleet.store.enqueue(&turn).await.unwrap().into();
    assert_eq!(all.fleet.ended(&turn.turn_id).await.status, "completed");
    let block = &all.fleet.blocks(&turn.turn_id).await[0][1];
    assert_eq!(block["parameters"]["message"]["content"], json!([{ "type": "text", "text": prompt }]));
    assert_eq!(
        (&block["parameters"]["client_composed"], &block["parameters"]["uuid"]),
        (&json!(true), &json!(all.fleet.message_uuid(&turn.turn_id).await))
    );
    let flags = block["tool_name"].as_str().unwrap();
    assert!(
        flags.starts_with("--session-id=") && flags.contains("--model=some model; rm -rf /") && flags.contains("--max-turns=3"),
        "{flags}"
    );
    all.stop().await;
}

/// A pool's agent with `{instructions}` in a word gets the turn's own and the project's as one file, or not the word.
#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn the_project_s_claude_md_and_the_turn_s_own_instructions_reach_the_agent_as_a_file(pool: PgPool) {
    let all = Running::start(pool).await;
    let echo =
        r#"text=$(sed ':a;N;$!ba;s/\n/\\n/g' "${1#--file=}" 2>/dev/null); printf '{"type":"content","text":"%s|%s"}\n' "$#" "$text""#;
    let agent = ["bash", "-c", echo, "agent", "--file={instructions}"].map(str::to_owned).to_vec();
    let change = PoolChange { agent: Some(agent), ..PoolChange::default() };
    all.fleet.store.set_pool("default", &change).await.unwrap();
    let said = async |prepare: &str, options: serde_json::Value| {
        let change = PoolChange { prepare: Some(Some(prepare.to_owned())), ..PoolChange::default() };
        all.fleet.store.set_pool("default", &change).await.unwrap();
        let turn = turnmill::store::Enqueue {
            prompt: "x".to_owned(),
            project_id: Some("p1".to_owned()),
            options: Some(options),
            ..turnmill::store::Enqueue::default()
        };
        let turn = all.fleet.store.enqueue(&turn).await.unwrap().turn_id.unwrap();
        assert_eq!(all.fleet.ended(&turn).await.error_message, None);
        all.fleet.blocks(&turn).await[0][1]["text"].as_str().unwrap().to_owned()
    };
    assert_eq!(said("", json!({})).await, "0|", "there is nothing to add");
    let own = json!({ "append_system_prompt": "Answer $(id) in German." });
    assert_eq!(said("", own.clone()).await, "1|Answer $(id) in German.");
    let project = "echo 'Use `tabs`.' >CLAUDE.md";
    assert_eq!(said(project, json!({})).await, "1|\n# The project's CLAUDE.md\n\nUse `tabs`.");
    assert_eq!(said(project, own).await, "1|Answer $(id) in German.\n\n# The project's CLAUDE.md\n\nUse `tabs`.");
    let unreadable = "mkdir CLAUDE.md; mkdir .claude; ln -s /dev/zero .claude/CLAUDE.md";
    assert_eq!(said(unreadable, json!({})).await, "0|", "no file is no text");
    all.stop().await;
}
