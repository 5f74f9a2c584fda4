//! `/chat`: blocks as they come, reloads, cuts, restarts, failures: nothing is missing, nothing comes twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use serde_json::json;
use sqlx::PgPool;
use turnmill::block::{Block, BlockKind};
use turnmill::config;
use turnmill::store::{Append, PoolChange};
use turnmill::turn::Ending;

use crate::browser::ESCAPE;
use crate::harness::{Fleet, Holding as _, append};
use crate::site::Hand;
use crate::talk::{Chat, Talk};

const WORKS: &str = r#"/mock {"delay_ms": 50, "steps": [
    {"thinking": "Where is it?"},
    {"text": "I look for it."},
    {"tool": {"name": "Bash", "input": {"command": "ls"}, "result": "Cargo.toml\nsrc"}},
    {"tool": {"name": "Read", "input": {"file_path": "/nope"}, "result": "File does not exist.", "failed": true}},
    {"hang": null}]}"#;

/// A script is one line.
fn line(script: &str) -> String {
    script.split('\n').map(str::trim).collect()
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn blocks_are_shown_while_the_turn_runs_and_stop_cancels_it(pool: PgPool) {
    let chat = Chat::start(pool).await;
    chat.talk.say(&line(WORKS)).await;
    // It hangs: all of these come before its end.
    chat.talk.shows(6).await;
    let blocks = chat.talk.blocks().await;
    let looks: Vec<&str> = blocks.iter().map(|block| block.look.as_str()).collect();
    assert_eq!(looks, ["block thinking", "block content", "block tool", "block result", "block tool", "block result failed"]);
    let texts = ["Where is it?", "I look for it.", "Bash", r#"{"command":"ls"}"#, "Cargo.toml\nsrc", "Read"];
    assert_eq!(chat.talk.texts().await[..6], texts);
    chat.talk.has(1, "in_progress").await;
    assert_eq!(chat.talk.browser.texts(".status").await, ["works"]);
    assert_eq!(chat.talk.browser.texts(".said").await, [line(WORKS)]);
    chat.talk.browser.click("#stop").await;
    chat.talk.has(1, "cancelled").await;
    assert_eq!(chat.talk.browser.texts(".status").await, ["cancelled while it ran"]);
    chat.talk.browser.until("document.getElementById('stop').hidden").await;
    let turn = chat.talk.turns().await.remove(0);
    assert_eq!(chat.all.fleet.ended(&turn).await.status, "cancelled");
    chat.all_is_shown().await;
    chat.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn the_second_message_remembers_the_first_and_a_new_conversation_remembers_nothing(pool: PgPool) {
    let chat = Chat::start(pool).await;
    let first = chat.talk.session().await;
    let recall = r#"/mock {"steps": [{"recall": null}]}"#;
    chat.talk.say("/mock noop").await;
    chat.talk.has(1, "completed").await;
    chat.talk.say(recall).await;
    chat.talk.has(2, "completed").await;
    assert_eq!(chat.talk.texts().await, ["Done.", "/mock noop"]);
    chat.talk.browser.click("#new").await;
    chat.talk.browser.until("document.querySelector('#connection[data-state=new]') && !document.querySelector('.turn')").await;
    assert_ne!(chat.talk.session().await, first);
    chat.talk.say(recall).await;
    chat.talk.has(1, "completed").await;
    assert_eq!(chat.talk.texts().await, [""]);
    // The first is where it was.
    chat.talk.browser.client.back().await.unwrap();
    chat.talk.has(2, "completed").await;
    assert_eq!(chat.talk.session().await, first);
    assert_eq!(chat.talk.texts().await, ["Done.", "/mock noop"]);
    chat.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_reload_in_the_middle_and_one_at_the_end_miss_nothing(pool: PgPool) {
    let chat = Chat::start(pool).await;
    let steps: Vec<_> = (0..30).map(|nth| json!({ "text": format!("step {nth}") })).collect();
    chat.talk.say(&format!("/mock {}", json!({ "delay_ms": 100, "steps": steps }))).await;
    for shown in [3, 9, 15] {
        chat.talk.shows(shown).await;
        chat.talk.browser.reload().await;
    }
    chat.talk.has(1, "completed").await;
    assert_eq!(chat.talk.texts().await, (0..30).map(|nth| format!("step {nth}")).collect::<Vec<_>>());
    chat.talk.say("/mock tools").await;
    chat.talk.has(2, "completed").await;
    chat.all_is_shown().await;
    chat.talk.browser.reload().await;
    chat.talk.has(2, "completed").await;
    chat.all_is_shown().await;
    chat.talk.browser.until("[...document.querySelectorAll('.said')].every((one) => one.textContent.startsWith('/mock '))").await;
    chat.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_server_that_is_restarted_costs_the_page_a_pause(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let worker = fleet.worker("a").await;
    let turn = fleet.enqueue_in("hi", Some("s1")).await.turn_id;
    let mut hand = Hand::of(&fleet, &worker).await;
    hand.write(&["0", "1"]).await;
    let mut talk = Talk::in_session(&fleet, "s1").await;
    talk.shows(2).await;
    talk.browser.run("window.same = true", json!(null)).await;
    talk.site.stop().await;
    talk.connection("away").await;
    hand.write(&["2"]).await;
    talk.site.restart().await;
    talk.shows(3).await;
    talk.connection("live").await;
    hand.write(&["3"]).await;
    talk.shows(4).await;
    hand.end(Ending::Completed).await;
    talk.has(1, "completed").await;
    assert_eq!(talk.texts().await, ["0", "1", "2", "3"]);
    assert_eq!(talk.turns().await, [turn]);
    assert_eq!(talk.browser.value("window.same").await, true, "by itself: nobody has reloaded it");
    talk.close().await;
}

/// After such an answer a browser doesn't come back by itself.
#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_server_that_takes_no_more_readers_is_asked_again_and_goes_on_where_the_page_is(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let worker = fleet.worker("a").await;
    fleet.enqueue_in("hi", Some("s1")).await;
    let mut hand = Hand::of(&fleet, &worker).await;
    hand.write(&["0", "1"]).await;
    let full = Arc::new(AtomicBool::new(false));
    let is_full = full.clone();
    let no_seat = move |config: &mut config::Web| config.readers_max = if is_full.load(Relaxed) { 0 } else { 10 };
    let mut talk = Talk::with(&fleet, "s1", no_seat).await;
    talk.shows(2).await;
    full.store(true, Relaxed);
    talk.site.restart().await;
    // It was refused, and asks whether the session is there before it tries again.
    talk.browser.until("performance.getEntriesByType('resource').filter((one) => one.name.endsWith('/v1/sessions/s1')).length >= 3").await;
    talk.connection("away").await;
    hand.write(&["2"]).await;
    full.store(false, Relaxed);
    talk.site.restart().await;
    talk.shows(3).await;
    talk.connection("live").await;
    hand.end(Ending::Completed).await;
    talk.has(1, "completed").await;
    assert_eq!(talk.texts().await, ["0", "1", "2"]);
    talk.close().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_block_is_seen_to_grow_and_takes_the_place_of_what_was_seen_of_it(pool: PgPool) {
    let chat = Chat::start(pool).await;
    chat.all.fleet.store.set_pool("default", &PoolChange { previews: Some(true), ..PoolChange::default() }).await.unwrap();
    let words = (0..60).map(|nth| format!("word{nth}")).collect::<Vec<_>>().join(" ");
    chat.talk
        .say(&format!("/mock {}", json!({ "delay_ms": 3000, "steps": [{ "thinking": "Hm." }, { "text": words }, { "hang": null }] })))
        .await;
    let part = "document.querySelector('.growing.content')?.textContent";
    chat.talk.browser.until(&format!("/^word0 .*word10/.test({part}) && !{part}.includes('word59')")).await;
    assert_eq!(chat.talk.texts().await, ["Hm."], "what grows is no block yet");
    chat.talk.shows(2).await;
    assert_eq!(chat.talk.texts().await, ["Hm.", words.as_str()]);
    assert_eq!(chat.talk.browser.texts(".growing").await, Vec::<String>::new());
    chat.talk.browser.press(&[ESCAPE]).await;
    chat.talk.has(1, "cancelled").await;
    chat.all_is_shown().await;
    chat.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn an_answer_that_starts_over_replaces_what_was_shown(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let worker = fleet.worker("a").await;
    fleet.enqueue_in("hi", Some("s1")).await;
    let mut hand = Hand::of(&fleet, &worker).await;
    hand.write(&["lost", "as well"]).await;
    let talk = Talk::in_session(&fleet, "s1").await;
    talk.shows(2).await;
    let mut hand = hand.start_over(&worker).await;
    hand.write(&["once more"]).await;
    hand.end(Ending::Completed).await;
    talk.has(1, "completed").await;
    assert_eq!(talk.texts().await, ["once more"]);
    talk.close().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_turn_that_fails_says_why(pool: PgPool) {
    let chat = Chat::with(pool, |config| config.retry.agent_tries = 1).await;
    chat.talk.say("/mock api-error").await;
    chat.talk.has(1, "failed").await;
    assert_eq!(chat.talk.browser.texts(".status").await, ["failed: overloaded"]);
    assert_eq!(chat.talk.browser.texts(".error").await, ["the agent failed: API Error: 529 Overloaded"]);
    assert_eq!(chat.talk.browser.value("document.getElementById('stop').hidden").await, true);
    chat.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn blocks_that_are_no_word_of_the_agent_s_look_different(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let worker = fleet.worker("a").await;
    fleet.enqueue_in("hi", Some("s1")).await;
    let job = worker.claim_one().await;
    let content = |content| Block::new(BlockKind::Content, content);
    let inner = Block { parent_tool_use_id: Some("t1".to_owned()), ..content(json!({ "text": "a helper's" })) };
    let blocks = vec![
        content(json!({ "text": "wrong" })),
        content(json!({ "text": "", "kind": "retraction", "places_back": 1 })),
        content(json!({ "text": "cut", "kind": "warning" })),
        Block::context_lost(&["files"], "the disk may be full"),
        content(json!({ "text": "", "kind": "unknown", "block": { "type": "new" } })),
        inner,
        Block::lost_call("t1", None, "it never came back"),
    ];
    append(&fleet.store, Append { blocks, ..job.append_of(0, 1, &[]) }).await;
    let talk = Talk::in_session(&fleet, "s1").await;
    talk.shows(6).await;
    let blocks = talk.blocks().await;
    let shown: Vec<(&str, &str)> = blocks.iter().map(|block| (block.look.as_str(), block.texts[0].as_str())).collect();
    let expected = [
        ("block content retracted", "wrong"),
        ("block warning", "cut"),
        ("block context_lost", "I don't remember all of what was before: the disk may be full"),
        ("block thinking", r#"{"type":"new"}"#),
        ("block content inner", "a helper's"),
        ("block result failed", "it never came back"),
    ];
    assert_eq!(shown, expected);
    talk.close().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn files_that_a_turn_changed_are_listed_and_can_be_had(pool: PgPool) {
    let chat = Chat::start(pool).await;
    let script = r#"/mock {"steps": [{"write": {"path": "docs/a file.txt", "text": "what it says"}}, {"text": "Written."}]}"#;
    chat.talk.say(script).await;
    chat.talk.browser.until("document.querySelector('.files li')").await;
    assert_eq!(chat.talk.browser.texts(".files li").await, ["createddocs/a file.txt"]);
    assert_eq!(chat.talk.browser.value("document.querySelector('.files a').download").await, "a file.txt");
    let link = chat.talk.browser.value("document.querySelector('.files a').href").await;
    assert_eq!(reqwest::get(link.as_str().unwrap()).await.unwrap().text().await.unwrap(), "what it says");
    chat.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn what_could_not_be_sent_is_sent_when_the_server_is_back_and_before_what_was_said_since(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let mut talk = Talk::in_session(&fleet, "").await;
    talk.site.stop().await;
    talk.say("hello").await;
    talk.browser.until("document.getElementById('notice').textContent.startsWith('Not sent yet')").await;
    talk.say("and then").await;
    talk.site.restart().await;
    talk.has(2, "pending").await;
    assert_eq!((talk.notice().await.as_str(), talk.browser.texts(".said").await), ("", vec!["hello".to_owned(), "and then".to_owned()]));
    assert_eq!(talk.browser.texts(".status").await[0], "waits: no worker is running");
    talk.close().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn an_answer_lost_on_the_way_makes_no_second_turn(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let talk = Talk::in_session(&fleet, "").await;
    // The first request arrives, its answer doesn't.
    let lose = "const real = fetch; let lost = false; window.fetch = async (...how) => {
                  const answer = await real(...how);
                  if (how[1]?.method === 'POST' && !lost) { lost = true; throw new TypeError('the network is gone'); }
                  return answer; }";
    talk.browser.run(lose, json!(null)).await;
    talk.say("hello").await;
    talk.browser.until("document.getElementById('notice').textContent.startsWith('Not sent yet: the network is gone')").await;
    talk.say("more").await;
    talk.has(2, "pending").await;
    let prompts: Vec<String> = fleet.store.turns_of(&talk.session().await, None, 10).await.unwrap().into_iter().map(|t| t.prompt).collect();
    assert_eq!(prompts, ["more", "hello"], "newest first, each once");
    talk.close().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn an_address_without_a_session_and_a_session_that_is_gone_are_said(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let worker = fleet.worker("a").await;
    fleet.enqueue_in("hi", Some("s1")).await;
    let mut hand = Hand::of(&fleet, &worker).await;
    hand.write(&["hello"]).await;
    hand.end(Ending::Completed).await;
    let mut talk = Talk::in_session(&fleet, "%E0%A4").await;
    assert_eq!(talk.notice().await, "The address names no session, so this is a new conversation.");
    talk.connection("new").await;
    talk.open("s1").await;
    talk.has(1, "completed").await;
    assert!(fleet.store.forget_session("s1").await.unwrap());
    talk.site.restart().await;
    talk.connection("gone").await;
    assert_eq!(talk.notice().await, "This conversation is no longer there. Begin a new one.");
    assert_eq!(talk.texts().await, ["hello"], "what is there to read stays");
    talk.browser.close().await;
}
