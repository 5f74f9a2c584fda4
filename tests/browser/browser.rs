//! A browser for one test, with a driver and a profile of its own; nothing of it is left when the test ends, however it ends.
//!
//! It reaches loopback and nothing else: all other names are unknown to it.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use axum::http::Method;
use fantoccini::wd::{Capabilities, WebDriverCompatibleCommand};
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;
use turnmill::local::postgres::passable_tempdir;
use url::Url;

use crate::harness::{PATIENCE, sweep};

/// What `press` can press besides characters.
pub const ENTER: char = '\u{e007}';
pub const ESCAPE: char = '\u{e00c}';
pub const SHIFT: char = '\u{e008}';

/// Notes in the page what its policy blocks, from its first moment.
const WATCH: &str = "window.blocked = []; addEventListener('securitypolicyviolation', (event) => \
                     blocked.push(event.effectiveDirective + ' ' + event.blockedURI + ' ' + event.sample));";

/// Chromium with one page.
pub struct Browser {
    pub client: Client,
    driver: Child,
    /// Whoever writes to a closed pipe dies.
    _said: Lines<BufReader<ChildStdout>>,
    home: tempfile::TempDir,
}

impl Browser {
    pub async fn start() -> Self {
        let home = passable_tempdir("turnmill-browser-").unwrap();
        // What it leaves in temporary places is in `home`, and its processes are known by it.
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .env("HOME", home.path())
            .env("TMPDIR", home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("chromedriver starts: make test-browser installs it");
        let mut said = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = timeout(PATIENCE, async {
            while let Some(line) = said.next_line().await.unwrap() {
                if let Some((_, port)) = line.split_once("started successfully on port ") {
                    return port.trim_end_matches('.').to_owned();
                }
            }
            panic!("chromedriver ended at once");
        })
        .await
        .expect("chromedriver says its port");
        let mut connecting = ClientBuilder::new(HttpConnector::new());
        let connecting = connecting.capabilities(capabilities(home.path()));
        let client = connecting.connect(&format!("http://127.0.0.1:{port}")).await.expect("Chromium starts");
        let browser = Self { client, driver, _said: said, home };
        browser.devtools("Page.addScriptToEvaluateOnNewDocument", json!({ "source": WATCH })).await;
        // Its own first page asks for a lot.
        browser.open("about:blank").await;
        browser.requests().await;
        browser
    }

    /// Ends it in order; dropping it ends it as well.
    pub async fn close(self) {
        self.client.clone().close().await.unwrap();
    }

    pub async fn open(&self, url: &str) {
        self.client.goto(url).await.unwrap();
    }

    pub async fn reload(&self) {
        self.client.refresh().await.unwrap();
    }

    /// What an expression is in the page.
    pub async fn value(&self, expression: &str) -> Value {
        self.run(&format!("return {expression}"), json!(null)).await
    }

    /// Runs a script in the page, with one argument.
    pub async fn run(&self, script: &str, argument: Value) -> Value {
        self.client.execute(script, vec![argument]).await.unwrap()
    }

    /// Waits until an expression holds in the page; what it is then.
    pub async fn until(&self, expression: &str) -> Value {
        let script = format!(
            "const done = arguments[arguments.length - 1];
             const look = () => {{
               let found = null;
               try {{ found = {expression} }} catch {{ }}
               if (!found) return;
               clearInterval(timer); watch.disconnect(); done(found);
             }};
             const timer = setInterval(look, 100), watch = new MutationObserver(look);
             watch.observe(document, {{ subtree: true, childList: true, attributes: true, characterData: true }});
             look();"
        );
        let since = Instant::now();
        loop {
            match self.client.execute_async(&script, Vec::new()).await {
                Ok(found) => return found,
                // The page has gone with the script that looked at it: it is looked for in the next one.
                Err(_) if since.elapsed() < PATIENCE => {}
                Err(error) => {
                    self.screenshot("in-vain").await;
                    let shown = self.client.execute("return document.body.innerText", Vec::new()).await.unwrap_or_default();
                    panic!("waited in vain: {expression}\n{error}\n{}", shown.as_str().unwrap_or_default());
                }
            }
        }
    }

    /// The texts of all elements that a selector finds, hidden ones as well.
    pub async fn texts(&self, selector: &str) -> Vec<String> {
        let texts = self.run("return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent)", json!(selector)).await;
        serde_json::from_value(texts).unwrap()
    }

    pub async fn click(&self, selector: &str) {
        self.client.find(Locator::Css(selector)).await.unwrap().click().await.unwrap();
    }

    /// Types into what has the focus, as a keyboard does.
    pub async fn press(&self, keys: &[char]) {
        let text: String = keys.iter().collect();
        self.client.active_element().await.unwrap().send_keys(&text).await.unwrap();
    }

    /// `light` or `dark`, as the user's system asks for.
    pub async fn prefer(&self, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.devtools("Emulation.setEmulatedMedia", json!({ "features": features })).await;
    }

    /// What the page is looked at with, exactly: a window has a least width.
    pub async fn size(&self, width: u32, height: u32) {
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.devtools("Emulation.setDeviceMetricsOverride", metrics).await;
    }

    /// For pictures.
    pub async fn hide_scrollbars(&self) {
        self.devtools("Emulation.setScrollbarsHidden", json!({ "hidden": true })).await;
    }

    /// What was asked for, anywhere, since the last time that this was called; without what the page's policy has stopped.
    pub async fn requests(&self) -> Vec<String> {
        let entries = self.log("performance").await;
        let mut asked = Vec::new();
        for entry in entries {
            let event: Value = serde_json::from_str(entry["message"].as_str().unwrap()).unwrap();
            let (method, params) = (event["message"]["method"].as_str(), &event["message"]["params"]);
            let id = params["requestId"].clone();
            match method {
                Some("Network.requestWillBeSent") => asked.push((id, params["request"]["url"].as_str().unwrap().to_owned())),
                Some("Network.loadingFailed") if params["blockedReason"] == "csp" => asked.retain(|(of, _)| *of != id),
                _ => {}
            }
        }
        asked.into_iter().map(|(_, url)| url).collect()
    }

    /// What was blocked by the page's policy.
    pub async fn blocked(&self) -> Vec<String> {
        serde_json::from_value(self.value("window.blocked").await).unwrap()
    }

    /// Errors of scripts, and what was refused to them, since the last time this was asked.
    pub async fn complaints(&self) -> Vec<String> {
        let entries = self.log("browser").await;
        // "network": answers that are no success, which the page deals with.
        let of = |entry: &Value| (entry["source"] != "network").then(|| entry["message"].as_str().unwrap().to_owned());
        entries.iter().filter_map(of).collect()
    }

    /// What axe-core finds wrong with the page's accessibility; `scripts/test-browser` has fetched it.
    pub async fn axe(&self) -> Vec<String> {
        let path =
            std::env::var("TURNMILL_TEST_AXE").expect("TURNMILL_TEST_AXE names axe-core's axe.min.js: run this with make test-browser");
        self.client.execute(&std::fs::read_to_string(path).unwrap(), Vec::new()).await.unwrap();
        let script = "const done = arguments[arguments.length - 1];
            axe.run(document, { resultTypes: ['violations'] }).then(
              ({ violations }) => done(violations.flatMap(({ id, help, nodes }) => nodes.map((node) => id + ': ' + help + ' ' + node.html + ' ' + node.failureSummary))),
              (error) => done(['axe failed: ' + error]));";
        serde_json::from_value(self.client.execute_async(script, Vec::new()).await.unwrap()).unwrap()
    }

    /// For people: into the directory that `TURNMILL_TEST_SCREENSHOTS` names, if it does.
    pub async fn screenshot(&self, name: &str) {
        if let Ok(dir) = std::env::var("TURNMILL_TEST_SCREENSHOTS") {
            let png = self.client.screenshot().await.unwrap();
            std::fs::write(Path::new(&dir).join(format!("{name}.png")), png).unwrap();
        }
    }

    async fn devtools(&self, command: &str, params: Value) -> Value {
        self.client.issue_cmd(OfChromium("goog/cdp/execute", json!({ "cmd": command, "params": params }))).await.unwrap()
    }

    async fn log(&self, kind: &str) -> Vec<Value> {
        let entries = self.client.issue_cmd(OfChromium("se/log", json!({ "type": kind }))).await.unwrap();
        serde_json::from_value(entries).unwrap()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        drop(self.driver.start_kill());
        // Some of its processes have forgotten their environment; they end with it, but write until then.
        let mut absent = 0;
        for _ in 0..200 {
            sweep(self.home.path());
            drop(std::fs::remove_dir_all(self.home.path()));
            std::thread::sleep(Duration::from_millis(20));
            absent = if self.home.path().exists() { 0 } else { absent + 1 };
            if absent == 5 {
                return;
            }
        }
    }
}

fn capabilities(home: &Path) -> Capabilities {
    let mut arguments = vec![
        "--headless=new".to_owned(),
        "--disable-gpu".to_owned(),
        "--disable-dev-shm-usage".to_owned(),
        "--disable-background-networking".to_owned(),
        "--disable-component-update".to_owned(),
        "--no-first-run".to_owned(),
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1".to_owned(),
        "--window-size=1000,800".to_owned(),
        format!("--user-data-dir={}", home.join("profile").display()),
    ];
    // Chromium refuses to be root with its sandbox.
    if rustix::process::getuid().is_root() {
        arguments.push("--no-sandbox".to_owned());
    }
    let patience_ms = PATIENCE.as_millis();
    let wanted = json!({
        "browserName": "chrome",
        "goog:chromeOptions": { "args": arguments },
        "goog:loggingPrefs": { "performance": "ALL", "browser": "ALL" },
        // A dialog that nobody expected makes the next command fail.
        "unhandledPromptBehavior": "ignore",
        "timeouts": { "script": u64::try_from(patience_ms).unwrap() },
    });
    serde_json::from_value(wanted).unwrap()
}

/// A command that only Chromium's driver has.
#[derive(Debug)]
struct OfChromium(&'static str, Value);

impl WebDriverCompatibleCommand for OfChromium {
    fn endpoint(&self, base: &Url, session: Option<&str>) -> Result<Url, url::ParseError> {
        base.join(&format!("session/{}/{}", session.unwrap_or_default(), self.0))
    }

    fn method_and_body(&self, _: &Url) -> (Method, Option<String>) {
        (Method::POST, Some(self.1.to_string()))
    }
}
