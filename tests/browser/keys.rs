//! `/chat` by keyboard, for every eye, and while one reads what is further up.

use sqlx::PgPool;

use crate::browser::{ENTER, ESCAPE, SHIFT};
use crate::harness::Fleet;
use crate::site::Hand;
use crate::talk::{Chat, Talk};

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn enter_sends_shift_and_enter_begin_a_line_and_escape_stops(pool: PgPool) {
    let chat = Chat::start(pool).await;
    let browser = &chat.talk.browser;
    let typed: Vec<char> = "/mock hang".chars().chain([SHIFT, ENTER, SHIFT]).chain("and wait".chars()).collect();
    browser.press(&typed).await;
    assert_eq!(browser.value("document.getElementById('message').value").await, "/mock hang\nand wait");
    assert_eq!(chat.talk.turns().await.len(), 0);
    browser.press(&[ENTER]).await;
    chat.talk.shows(2).await;
    assert_eq!(browser.texts(".said").await, ["/mock hang\nand wait"]);
    // One that waits behind it is stopped, too.
    chat.talk.say("/mock noop").await;
    chat.talk.has(1, "pending").await;
    browser.press(&[ESCAPE]).await;
    chat.talk.has(2, "cancelled").await;
    chat.talk.say("/mock noop").await;
    chat.talk.has(1, "completed").await;
    // Blanks are nothing to say.
    browser.press(&[' ', ' ', ENTER]).await;
    assert_eq!(browser.value("document.getElementById('message').value").await, "  ");
    assert_eq!(chat.talk.turns().await.len(), 3);
    chat.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn whoever_is_at_the_end_follows_it_and_whoever_has_scrolled_up_stays(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let worker = fleet.worker("a").await;
    fleet.enqueue_in("hi", Some("s1")).await;
    let mut hand = Hand::of(&fleet, &worker).await;
    let talk = Talk::in_session(&fleet, "s1").await;
    let tall = "line\n".repeat(30);
    let at_end = "innerHeight + scrollY > document.documentElement.scrollHeight - 5";
    for blocks in 1..=8 {
        hand.write(&[&tall]).await;
        talk.shows(blocks).await;
        talk.browser.until(at_end).await;
    }
    talk.browser.value("scrollTo(0, 200)").await;
    talk.browser.until("!document.getElementById('newest').hidden").await;
    for blocks in 9..=12 {
        hand.write(&[&tall]).await;
        talk.shows(blocks).await;
    }
    // Two frames later everything that a change brings with it has happened.
    talk.browser
        .run("window.later = 0; requestAnimationFrame(() => requestAnimationFrame(() => (later = 1)))", serde_json::Value::Null)
        .await;
    talk.browser.until("later === 1").await;
    assert_eq!(talk.browser.value("scrollY").await, 200);
    talk.browser.click("#newest").await;
    talk.browser.until(at_end).await;
    hand.write(&[&tall]).await;
    talk.shows(13).await;
    talk.browser.until(at_end).await;
    talk.close().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn the_page_is_accessible_in_both_colour_schemes_empty_and_full(pool: PgPool) {
    let chat = Chat::with(pool, |config| config.retry.agent_tries = 1).await;
    let browser = &chat.talk.browser;
    assert_eq!(browser.axe().await, Vec::<String>::new());
    let long = r#"{"tool": {"name": "Bash", "input": {"command": "seq 99"}, "result": "1\n2\n3\n4\n5\n6\n7\n8\n9\n10"}}"#;
    let failed = r#"{"tool": {"name": "Read", "input": {"file_path": "/nope"}, "result": "no such file", "failed": true}}"#;
    let write = r#"{"write": {"path": "report.txt", "text": "all is well"}}"#;
    chat.talk.say(&format!(r#"/mock {{"steps": [{{"thinking": "Well."}}, {long}, {failed}, {write}, {{"text": "Done."}}]}}"#)).await;
    browser.until("document.querySelector('.files')").await;
    chat.talk.say("/mock api-error").await;
    chat.talk.has(1, "failed").await;
    chat.talk.say("/mock hang").await;
    chat.talk.shows(10).await;
    chat.talk.say("/mock noop").await;
    chat.talk.has(1, "pending").await;
    browser.value("document.querySelector('summary').focus()").await;
    browser.press(&[ENTER]).await;
    browser.until("document.querySelector('details').open").await;
    for scheme in ["light", "dark"] {
        browser.prefer(scheme).await;
        assert_eq!(browser.axe().await, Vec::<String>::new(), "{scheme}");
        browser.screenshot(&format!("chat-{scheme}")).await;
    }
    browser.client.set_window_size(400, 800).await.unwrap();
    browser.value("document.getElementById('newest').click()").await;
    browser.until("innerWidth <= 500 && innerHeight + scrollY > document.documentElement.scrollHeight - 5").await;
    assert_eq!(browser.axe().await, Vec::<String>::new(), "on a phone");
    assert_eq!(browser.value("document.documentElement.scrollWidth <= innerWidth").await, true, "nothing is wider than a phone");
    browser.screenshot("chat-phone").await;
    browser.press(&[ESCAPE]).await;
    chat.talk.has(2, "cancelled").await;
    chat.stop().await;
}
