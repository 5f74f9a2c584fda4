//! What the agents do, from the seed: scripts of the stand-in agent, as JSON.

use rand::Rng;
use rand::rngs::StdRng;
use serde_json::{Value, json};

const WORDS: [&str; 8] = ["found it", "é \u{1F600} 漢字", "'); DROP TABLE turns; --", "a\nb\tc", "$(rm -rf /)", "\\u0000", "ok", "…"];

const EXITS: [u8; 4] = [139, 137, 3, 0];

/// One turn's script. `hangs`: it ends only when somebody cancels it.
pub struct Script {
    pub json: Value,
    pub hangs: bool,
}

/// Mostly short and plain; some that fail and go on, some that fail for good, a few that are strange.
pub fn random(rng: &mut StdRng) -> Script {
    let delay_ms = rng.random_range(5..120);
    let count = rng.random_range(1..7);
    let mut steps: Vec<Value> = (0..count).map(|nth| step(rng, nth)).collect();
    let place = rng.random_range(0..=steps.len());
    let mut hangs = false;
    let mut delay_ms: u32 = delay_ms;
    match rng.random_range(0..100) {
        0..60 => {}
        60..72 => {
            delay_ms = rng.random_range(250..900);
            steps.insert(place, json!({ "sleep_ms": rng.random_range(200..2500) }));
        }
        72..80 => steps.insert(place, api_error(rng)),
        80..86 => {
            // With a call that never returns, or a line that is torn, before it dies.
            let exit = json!({ "exit": EXITS[rng.random_range(0..EXITS.len())] });
            let before = [unanswered(rng), json!({ "torn": "{\"type\":\"assistant\",\"mess" }), json!({ "text": "and then" })];
            steps.insert(place, exit);
            steps.insert(place, before[rng.random_range(0..before.len())].clone());
        }
        86..88 => steps.extend((0..4).map(|_| api_error(rng))),
        88..91 => {
            let (error, status) = [("authentication_failed", 401), ("invalid_request", 400)][rng.random_range(0..2)];
            steps.insert(place, json!({ "api_error": { "error": error, "status": status, "message": "no" } }));
            if rng.random() {
                steps.insert(place, unanswered(rng));
            }
        }
        91..94 => {
            hangs = true;
            steps.push(unanswered(rng));
            steps.push(json!("hang"));
        }
        94..97 => {
            let strange = [json!("invalid_utf8"), json!({ "huge": 200_000 }), json!("repeat"), json!({ "raw": "this is no JSON" })];
            steps.extend(strange);
        }
        _ => {
            let lines = ["Welcome to some other program!", "Press any key"].map(|line| json!({ "raw": line }));
            let steps = lines.into_iter().chain([json!({ "exit": 0 })]).collect::<Vec<_>>();
            return Script { json: json!({ "foreign": true, "steps": steps }), hangs: false };
        }
    }
    Script { json: json!({ "delay_ms": delay_ms, "steps": steps }), hangs }
}

fn step(rng: &mut StdRng, nth: usize) -> Value {
    let words = WORDS[rng.random_range(0..WORDS.len())];
    match rng.random_range(0..4) {
        0 => json!({ "thinking": format!("{nth}: {words}") }),
        1 => {
            json!({ "tool": { "name": "Bash", "input": { "command": words, "nth": nth }, "result": words, "failed": rng.random::<bool>() } })
        }
        _ => json!({ "text": format!("{nth}: {words}") }),
    }
}

fn unanswered(rng: &mut StdRng) -> Value {
    json!({ "tool": { "name": "Bash", "input": { "command": "sleep infinity", "nth": rng.random_range(0..1000) }, "result": null } })
}

fn api_error(rng: &mut StdRng) -> Value {
    let (error, status) = [("overloaded", 529), ("rate_limit", 429), ("server_error", 500)][rng.random_range(0..3)];
    json!({ "api_error": { "error": error, "status": status, "message": format!("API Error: {status}") } })
}
