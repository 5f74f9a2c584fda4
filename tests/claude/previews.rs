//! The CLI's partial messages are what the parser takes them for.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use sqlx::PgPool;
use turnmill::store::PoolChange;

use super::Claude;
use super::api::Answer::Typed;
use super::api::Part::{Text, Thinking};
use super::bash;
use super::site::Site;

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn what_the_model_is_saying_is_seen_before_it_is_a_block(pool: PgPool) {
    let claude = Claude::start(pool).await;
    claude.fleet.store.set_pool("default", &PoolChange { previews: Some(true), ..PoolChange::default() }).await.unwrap();
    let worker = claude.worker().await;
    let site = Site::with(claude.fleet.clone(), |_| {}).await;
    let slow = Duration::from_millis(120);
    let answers = vec![
        Typed(
            slow,
            vec![Thinking("Let me see."), Text("I'll look at what there is in this directory."), bash("toolu_01", "echo 'made by hand'")],
        ),
        Typed(slow, vec![Text("There is nothing at all in it, as far as I can see.")]),
    ];
    let turn = claude.enqueue("typed", answers).await;
    let mut events = site.stream(&format!("/v1/turns/{turn}/stream?previews=true"), None).await;
    // Per type the growing text, and how often it grew until its block came.
    let mut growing: BTreeMap<String, (String, usize)> = BTreeMap::new();
    let mut seen = Vec::new();
    while let Some(event) = events.next().await {
        let kind = event.data["type"].as_str().unwrap_or_default().to_owned();
        match event.name.as_str() {
            "preview" => {
                assert_eq!(event.data["withdrawn"], Value::Null, "{event:?}");
                let (text, times) = growing.entry(kind).or_default();
                assert_eq!(event.data["at"], json!(text.chars().count()));
                text.push_str(event.data["text"].as_str().unwrap());
                *times += 1;
            }
            "block" => {
                if let Some((text, times)) = growing.remove(&kind) {
                    let content = &event.data["content"];
                    // The keys of an object come in the model's order first, and sorted in the end.
                    let good =
                        if kind == "tool_use" { text.starts_with('{') } else { content["text"].as_str().unwrap().starts_with(&text) };
                    assert!(good, "{text:?} is no beginning of {content}");
                    seen.push((kind, times));
                }
            }
            _ => {}
        }
    }
    let texts: Vec<_> = seen.iter().filter(|(kind, _)| kind == "content").collect();
    assert!(texts.len() == 2 && texts.iter().all(|(_, times)| *times >= 3), "both texts were seen to grow: {seen:?}");
    assert!(seen.iter().any(|(kind, _)| kind == "tool_use"), "{seen:?}");
    let blocks = claude.completed(&turn).await;
    assert_eq!(blocks.len(), 5, "{blocks:?}");
    claude.stop(worker).await;
}
