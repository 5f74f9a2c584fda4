//! The second lane: who asks sees blocks grow before they are there; who doesn't costs nothing; and the first lane is the
//! same with and without.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use sqlx::PgPool;
use turnmill::block::BlockKind;
use turnmill::store::{Answer, PoolChange, PreviewPiece, PreviewWrite, Settle};
use turnmill::turn::Ending;

use crate::harness::{Fleet, Holding as _, Running, RunningWorker, append, config, ending, until};
use crate::site::{Shown, Site, Sse};

/// Blocks that take a second each to be said, or nearly.
const SLOW: &str = r#"{"delay_ms": 900, "steps": [
    {"thinking": "Let me think about that for a while, word by word: né, 思考, 🦀."},
    {"tool": {"name": "Bash", "input": {"command": "cargo test --all-targets"}, "result": "ok"}},
    {"text": "It is all right: every test that there is has passed, and none was left out of it."}]}"#;

fn slow() -> String {
    format!("/mock {}", SLOW.replace('\n', " "))
}

async fn with_previews(all: &Running) {
    all.fleet.store.set_pool("default", &PoolChange { previews: Some(true), ..PoolChange::default() }).await.unwrap();
}

/// A client that shows previews as the documentation says.
#[derive(Default)]
struct Watching {
    shown: Shown,
    growing: BTreeMap<(String, Option<String>), (Value, String)>,
    /// Types and texts of the previews that a block took the place of, with the block's.
    replaced: Vec<(String, String, Value)>,
    pieces: usize,
    withdrawn: usize,
}

impl Watching {
    fn take(&mut self, event: &Sse) {
        let turn = event.data["turn_id"].as_str().unwrap_or_default().to_owned();
        let key = (turn.clone(), event.data["parent_tool_use_id"].as_str().map(str::to_owned));
        match event.name.as_str() {
            "preview" if event.data["withdrawn"] == true => {
                self.withdrawn += 1;
                assert!(self.growing.remove(&key).is_some(), "only what was told is withdrawn");
            }
            "preview" => {
                assert_eq!(event.id, None, "no position");
                let last = self.shown.blocks.iter().filter(|(of, ..)| *of == turn).map(|(_, seq, _)| *seq).next_back();
                assert_eq!(event.data["after"], last.unwrap_or(-1), "it is behind the last block: {event:?}");
                let (data, text) = self.growing.entry(key).or_insert_with(|| (event.data.clone(), String::new()));
                assert_eq!(event.data["at"].as_u64().unwrap(), text.chars().count() as u64, "no gap: {event:?}");
                assert_eq!(data["type"], event.data["type"]);
                text.push_str(event.data["text"].as_str().unwrap());
                self.pieces += 1;
            }
            "block" => {
                if let Some((data, text)) = self.growing.remove(&key) {
                    assert_eq!(data["type"], event.data["type"], "{event:?}");
                    self.replaced.push((data["type"].as_str().unwrap().to_owned(), text, event.data["content"].clone()));
                }
            }
            "end" | "generation" => self.growing.retain(|(of, _), _| *of != turn),
            _ => {}
        }
        self.shown.take(event);
    }

    fn texts_are_beginnings(&self) {
        for (kind, text, content) in &self.replaced {
            let whole = match kind.as_str() {
                "tool_use" => content["parameters"].to_string(),
                _ => content["text"].as_str().unwrap().to_owned(),
            };
            assert!(whole.starts_with(text.as_str()), "{text:?} is no beginning of {whole:?}");
        }
    }
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn who_asks_sees_each_block_grow_and_then_the_block(pool: PgPool) {
    let all = Running::start(pool).await;
    with_previews(&all).await;
    let site = Site::with(all.fleet.clone(), |_| {}).await;
    let turn = site.say("s1", &slow()).await;
    let mut events = site.stream("/v1/sessions/s1/stream?previews=true", None).await;
    let mut plain = site.stream(&format!("/v1/turns/{turn}/stream"), None).await;
    let mut watching = Watching::default();
    while watching.shown.ended.is_empty() {
        watching.take(&events.next().await.unwrap());
    }
    watching.texts_are_beginnings();
    let kinds: Vec<_> = watching.replaced.iter().map(|(kind, ..)| kind.as_str()).collect();
    assert_eq!(kinds, ["thinking", "tool_use", "content"], "each was seen before it was there");
    assert!(watching.pieces >= 6, "and grew: {} pieces", watching.pieces);
    assert_eq!(watching.withdrawn, 0);
    let mut names = Vec::new();
    while let Some(event) = plain.next().await {
        names.push(event.name);
    }
    assert!(!names.contains(&"preview".to_owned()), "who does not ask is not told: {names:?}");
    assert_eq!(all.fleet.blocks(&turn).await, all.fleet.expected(&turn, SLOW).await, "the blocks are as without");
    until("nothing is left behind", || async {
        let left: i64 = sqlx::query_scalar("SELECT count(*) FROM turnmill.previews").fetch_one(&all.fleet.pool).await.unwrap();
        (left == 0).then_some(())
    })
    .await;
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn while_nobody_watches_nothing_is_written(pool: PgPool) {
    let all = Running::start(pool).await;
    with_previews(&all).await;
    let site = Site::with(all.fleet.clone(), |_| {}).await;
    // Any row that is ever written stays here.
    sqlx::raw_sql(
        "CREATE TABLE written (text text);
         CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN INSERT INTO written VALUES (new.turn_id); RETURN new; END $$;
         CREATE TRIGGER note AFTER INSERT ON turnmill.previews FOR EACH ROW EXECUTE FUNCTION note();
         CREATE TRIGGER note AFTER INSERT ON turnmill.preview_watches FOR EACH ROW EXECUTE FUNCTION note();",
    )
    .execute(&all.fleet.pool)
    .await
    .unwrap();
    let written = async || -> i64 { sqlx::query_scalar("SELECT count(*) FROM written").fetch_one(&all.fleet.pool).await.unwrap() };
    let turn = site.say("s1", &slow()).await;
    let rest = site.stream(&format!("/v1/turns/{turn}/stream"), None).await.rest().await;
    assert_eq!(rest.last().unwrap().name, "end");
    assert_eq!(written().await, 0, "a reader that has not asked is no reason");
    let turn = site.say("s1", &slow()).await;
    site.stream(&format!("/v1/turns/{turn}/stream?previews=true"), None).await.rest().await;
    assert!(written().await > 0, "the trap works");
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn whoever_has_left_watches_no_more_though_others_are_there(pool: PgPool) {
    let all = Running::start(pool).await;
    with_previews(&all).await;
    let site = Site::with(all.fleet.clone(), |config| config.poll = Duration::from_millis(200)).await;
    let other = site.say("other", "/mock hang").await;
    let mut stays = site.stream(&format!("/v1/turns/{other}/stream"), None).await;
    stays.until("block").await;
    let turn = site.say("s1", "/mock hang").await;
    let mut leaves = site.stream(&format!("/v1/turns/{turn}/stream?previews=true"), None).await;
    leaves.until("block").await;
    let watched = async || -> Option<f64> {
        sqlx::query_scalar("SELECT extract(epoch FROM until - clock_timestamp())::float8 FROM turnmill.preview_watches WHERE turn_id = $1")
            .bind(&turn)
            .fetch_optional(&all.fleet.pool)
            .await
            .unwrap()
    };
    until("it is watched", || async { watched().await.filter(|left| *left > 0.0) }).await;
    drop(leaves);
    // It is renewed well before it runs out, for as long as somebody is there.
    until("it is watched no more", || async { watched().await.is_none_or(|left| left < 0.0).then_some(()) }).await;
    for turn in [&turn, &other] {
        site.as_who(&site.token, "POST", &format!("/v1/turns/{turn}/cancel"), None).await.ok();
        all.fleet.ended(turn).await;
    }
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_pool_without_previews_has_none(pool: PgPool) {
    let all = Running::start(pool).await;
    let site = Site::with(all.fleet.clone(), |_| {}).await;
    let turn = site.say("s1", &slow()).await;
    let rest = site.stream(&format!("/v1/turns/{turn}/stream?previews=true"), None).await.rest().await;
    assert!(rest.iter().all(|event| event.name != "preview"), "{rest:?}");
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn another_worker_goes_on_in_the_middle_of_a_block(pool: PgPool) {
    let all = Running::start(pool).await;
    with_previews(&all).await;
    let site = Site::with(all.fleet.clone(), |_| {}).await;
    let text = "One word after the other, for as long as it takes to see the worker go. ".repeat(4);
    let script = json!({ "delay_ms": 4000, "steps": [{ "text": text }] });
    let turn = site.say("s1", &format!("/mock {script}")).await;
    let mut events = site.stream(&format!("/v1/turns/{turn}/stream?previews=true"), None).await;
    let mut watching = Watching::default();
    while watching.pieces < 3 {
        watching.take(&events.next().await.unwrap());
    }
    let Running { fleet, e2b, worker } = all;
    worker.stop().await;
    let second = RunningWorker::with(&fleet, config(&e2b.url)).await;
    while watching.shown.ended.is_empty() {
        watching.take(&events.next().await.unwrap());
    }
    watching.texts_are_beginnings();
    assert_eq!(watching.withdrawn, 1, "what the first had said is said anew");
    assert_eq!((watching.replaced.len(), watching.shown.texts()), (1, vec![text.as_str()]));
    assert_eq!(fleet.taken(&turn).await, ["claimed", "adopted"]);
    second.stop().await;
    e2b.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_preview_needs_the_fence_and_the_place(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let store = &fleet.store;
    let worker = fleet.worker("a").await;
    let turn = fleet.enqueue("hi").await.turn_id;
    let job = worker.claim_one().await;
    assert_eq!(append(store, job.append_of(0, 10, &["one"])).await, Answer::Done);
    let piece =
        PreviewPiece { preview: 1, kind: BlockKind::Content, tool_name: None, parent_tool_use_id: None, at: 0, text: "tw".to_owned() };
    let write = PreviewWrite { turn_id: turn.clone(), epoch: job.epoch, journal_offset: 10, n: 1, pieces: vec![piece], open: vec![1] };
    for wrong in [
        PreviewWrite { journal_offset: 0, ..write.clone() },
        PreviewWrite { epoch: job.epoch - 1, ..write.clone() },
        PreviewWrite { turn_id: "turn_of_nobody".to_owned(), ..write.clone() },
    ] {
        assert!(store.write_previews(&[wrong]).await.unwrap().is_empty());
    }
    assert!(store.previews(&[(turn.clone(), 0, 0)]).await.unwrap().is_empty());
    assert_eq!(store.write_previews(std::slice::from_ref(&write)).await.unwrap(), std::slice::from_ref(&turn));
    let rows = store.previews(&[(turn.clone(), 0, 0)]).await.unwrap();
    assert_eq!((rows.len(), rows[0].after_seq, rows[0].ordinal, rows[0].text.as_deref()), (1, 0, 1, Some("tw")));
    assert!(store.previews(&[(turn.clone(), rows[0].epoch, rows[0].n)]).await.unwrap().is_empty(), "that is all");
    store.tidy().await.unwrap();
    assert_eq!(store.previews(&[(turn.clone(), 0, 0)]).await.unwrap().len(), 1, "it goes on");

    // Over: its pieces go. And all that a worker left goes with its turn.
    let over = PreviewWrite { n: 2, pieces: Vec::new(), open: Vec::new(), ..write };
    store.write_previews(&[over]).await.unwrap();
    let rows = store.previews(&[(turn.clone(), 0, 0)]).await.unwrap();
    assert_eq!((rows.len(), rows[0].preview), (1, None));
    let end = Settle { journal_offset: 10, ..ending(Ending::Completed) };
    store.settle(&job, &end, Duration::from_secs(30)).await.unwrap().unwrap();
    store.tidy().await.unwrap();
    assert!(store.previews(&[(turn, 0, 0)]).await.unwrap().is_empty());
}
