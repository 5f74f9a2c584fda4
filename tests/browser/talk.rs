//! The words in which the tests of `/chat` are written: somebody at the page, with a fleet or a worker's hand behind it.

use serde_json::{Value, json};
use sqlx::PgPool;
use turnmill::config::{self, Config};

use crate::browser::{Browser, ENTER};
use crate::harness::{Fleet, Running};
use crate::site::Site;

/// The page of a server without tokens, open in a browser.
pub struct Talk {
    pub site: Site,
    pub browser: Browser,
}

impl Talk {
    /// At a session's address; an empty one is a new conversation.
    pub async fn in_session(fleet: &Fleet, session: &str) -> Self {
        Self::with(fleet, session, |_| {}).await
    }

    pub async fn with(fleet: &Fleet, session: &str, change: impl Fn(&mut config::Web) + Send + Sync + 'static) -> Self {
        let (site, browser) = tokio::join!(Site::open(fleet.clone(), change), Browser::start());
        let talk = Self { site, browser };
        talk.open(session).await;
        talk
    }

    pub async fn open(&self, session: &str) {
        // From elsewhere: another part of the same page's address is no other page.
        self.browser.open("about:blank").await;
        self.browser.open(&format!("{}/chat#{session}", self.site.url)).await;
        self.browser.until("document.getElementById('turns').ariaBusy === 'false'").await;
    }

    /// Types it and presses Enter.
    pub async fn say(&self, message: &str) {
        let typed: Vec<char> = message.chars().chain([ENTER]).collect();
        self.browser.press(&typed).await;
    }

    /// Waits until so many blocks are on the page.
    pub async fn shows(&self, blocks: usize) {
        self.browser.until(&format!("document.querySelectorAll('[data-seq]').length >= {blocks}")).await;
    }

    /// Waits until so many turns have this status.
    pub async fn has(&self, turns: usize, status: &str) {
        self.browser.until(&format!("document.querySelectorAll('[data-status={status}]').length === {turns}")).await;
    }

    pub async fn connection(&self, state: &str) {
        self.browser.until(&format!("document.querySelector('#connection[data-state={state}]')")).await;
    }

    /// Every block of the page, in its order.
    pub async fn blocks(&self) -> Vec<Shown> {
        let script = "return [...document.querySelectorAll('[data-seq]')].map((block) => ({
            turn: block.closest('.turn').dataset.turn, seq: Number(block.dataset.seq), look: block.className,
            texts: [...block.querySelectorAll('.name, .parameters, pre')].map((one) => one.textContent).concat(
              block.querySelector('pre, .name') ? [] : [block.textContent]) }))";
        serde_json::from_value(self.browser.run(script, json!(null)).await).unwrap()
    }

    /// The texts of all blocks.
    pub async fn texts(&self) -> Vec<String> {
        self.blocks().await.into_iter().flat_map(|block| block.texts).collect()
    }

    pub async fn notice(&self) -> String {
        self.browser.texts("#notice").await.concat()
    }

    /// The session in the page's address.
    pub async fn session(&self) -> String {
        self.browser.value("decodeURIComponent(location.hash.slice(1))").await.as_str().unwrap().to_owned()
    }

    /// The turns of the page, in its order.
    pub async fn turns(&self) -> Vec<String> {
        serde_json::from_value(self.browser.value("[...document.querySelectorAll('.turn')].map((turn) => turn.dataset.turn)").await)
            .unwrap()
    }

    /// Nothing went wrong in the page that it doesn't know of.
    pub async fn close(self) {
        assert_eq!(self.browser.blocked().await, Vec::<String>::new());
        let complaints = self.browser.complaints().await;
        assert_eq!(complaints, Vec::<String>::new());
        self.browser.close().await;
    }
}

/// A block as it is shown.
#[derive(Debug, serde::Deserialize)]
pub struct Shown {
    pub turn: String,
    pub seq: i32,
    pub look: String,
    /// Of a call the name and the parameters; of all others the one.
    pub texts: Vec<String>,
}

/// The page with a whole fleet behind it.
pub struct Chat {
    pub all: Running,
    pub talk: Talk,
}

impl Chat {
    pub async fn start(pool: PgPool) -> Self {
        Self::with(pool, |_| {}).await
    }

    pub async fn with(pool: PgPool, change: impl FnOnce(&mut Config)) -> Self {
        let all = Running::with(pool, change).await;
        let talk = Talk::in_session(&all.fleet, "").await;
        Self { all, talk }
    }

    /// What is on the page is what is in the database: every block once, in order.
    pub async fn all_is_shown(&self) {
        let all = self.talk.blocks().await;
        for turn in self.talk.turns().await {
            let shown: Vec<&Shown> = all.iter().filter(|block| block.turn == turn).collect();
            let seqs: Vec<i32> = shown.iter().map(|block| block.seq).collect();
            let stored = self.all.fleet.blocks(&turn).await;
            assert_eq!(seqs, (0..i32::try_from(stored.len()).unwrap()).collect::<Vec<_>>(), "every block once, in order");
            for (shown, stored) in shown.into_iter().zip(&stored) {
                assert!(read(shown) == said(&stored[1]), "block {} of {turn} is {shown:?}", shown.seq);
            }
        }
    }

    pub async fn stop(self) {
        self.talk.close().await;
        self.all.stop().await;
    }
}

/// What a block says: the same of one in the database …
fn said(content: &Value) -> Vec<Value> {
    if content["tool_name"].is_string() {
        return vec![content["tool_name"].clone(), content["parameters"].clone()];
    }
    let text = [&content["text"], &content["error"], &content["result"]].into_iter().find(|text| text.is_string());
    vec![text.unwrap().clone()]
}

/// … and of one on the page.
fn read(shown: &Shown) -> Vec<Value> {
    match &shown.texts[..] {
        [name, parameters] => vec![json!(name), serde_json::from_str(parameters).unwrap()],
        [text] => vec![json!(text)],
        other => panic!("{other:?}"),
    }
}
