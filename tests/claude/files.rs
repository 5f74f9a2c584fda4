//! Files, as the real CLI sees them.

use super::*;

/// One real pixel.
const PNG: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg==";

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn an_attached_image_reaches_the_model_and_a_file_the_next_turn(pool: PgPool) {
    let claude = Claude::start(pool).await;
    let worker = claude.worker().await;
    claude.api.script("image", vec![Say(vec![bash("toolu_01", "cat data/notes.txt; echo made > made.txt")]), Say(vec![Text("A pixel.")])]);
    let turn = Enqueue {
        prompt: "[script image]".to_owned(),
        project_id: Some("p1".to_owned()),
        session_id: Some("chat".to_owned()),
        options: Some(json!({ "model": MODEL })),
        attachments: Some(json!([{ "path": "pixel.png", "base64": PNG }, { "path": "data/notes.txt", "text": "read me" }])),
        ..Enqueue::default()
    };
    let first = claude.fleet.store.enqueue(&turn).await.unwrap().turn_id.unwrap();
    let blocks = claude.completed(&first).await;
    assert_eq!(blocks[1], json!(["tool_result", "toolu_01", "read me", null]));
    let sent = claude.api.requests("image")[0]["messages"].clone();
    let parts: Vec<Value> =
        sent.as_array().unwrap().iter().flat_map(|message| message["content"].as_array().cloned().unwrap_or_default()).collect();
    let image = parts.iter().find(|part| part["type"] == "image").unwrap_or_else(|| panic!("no image in {sent}"));
    assert_eq!(image["source"]["type"], "base64");
    assert!(image["source"]["media_type"].as_str().unwrap().starts_with("image/") && image["source"]["data"].as_str().unwrap().len() > 40);
    assert!(sent.to_string().contains("- data/notes.txt (text/plain, 7 bytes)"), "{sent}");
    let made = claude.fleet.store.artifacts(&first).await.unwrap().unwrap().rows;
    assert_eq!(made.iter().map(|row| row.path.as_str()).collect::<Vec<_>>(), ["made.txt"], "nothing of the CLI's own");

    let second = claude
        .enqueue_in(
            "chat",
            "two",
            vec![Say(vec![bash("toolu_02", "cat made.txt data/notes.txt; ls pixel.png")]), Say(vec![Text("Still here.")])],
        )
        .await;
    let blocks = claude.completed(&second).await;
    assert_eq!(blocks[1], json!(["tool_result", "toolu_02", "made\nread mepixel.png", null]));
    // The conversation has the image too.
    assert!(claude.api.requests("two")[0]["messages"].to_string().contains(r#""type":"image""#));
    assert_eq!(claude.e2b.acts("create").await.len(), 2, "each in a sandbox of its own");
    claude.stop(worker).await;
}
