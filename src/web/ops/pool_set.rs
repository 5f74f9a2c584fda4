//! What is set of a pool: its cap, how fast it creates, how long sandboxes are kept. First what would change, then it is
//! changed; a setting that was not touched is not written, so that two people who change different ones don't undo each
//! other's.

use axum::extract::{Query, State};
use axum::response::Response;
use serde::Deserialize;

use super::super::App;
use super::super::problem::Problem;
use super::super::request::Id;
use super::deed::{Ask, Deed, Field};
use super::enter::{Viewer, may_not_act};
use super::frame::Fault;
use super::look;
use super::pools::{card, done, duration, keeps, typed};
use crate::store::{PoolCard, PoolChange};

/// Most sandboxes of a pool.
const CAP_MAX: i32 = 10_000;

/// Longest time that a sandbox is kept running.
const WARM_MAX_S: i32 = 86_400;

/// What a form has; a setting that is not in it stays.
#[derive(Debug, Default, Deserialize)]
pub struct Settings {
    cap: Option<String>,
    rate: Option<String>,
    burst: Option<String>,
    warm: Option<String>,
    paused: Option<String>,
}

/// Creates a second; `None`: no limit of ours.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Rate(Option<f64>);

/// The same, understood.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Wished {
    cap: Option<i32>,
    rate: Option<Rate>,
    burst: Option<i32>,
    warm_s: Option<i32>,
    paused_s: Option<i32>,
}

fn whole(name: &'static str, words: &str, text: &str, least: i32, most: i32) -> Result<i32, Problem> {
    let number = text.trim().parse().ok().filter(|n| (least..=most).contains(n));
    number.ok_or_else(|| {
        Problem::body(format!("/{name}"), format!("{words} is a whole number from {least} to {most}, not “{}”.", text.trim()))
    })
}

fn rate(text: &str) -> Result<Rate, Problem> {
    let text = text.trim();
    if text.is_empty() || text == "none" {
        return Ok(Rate(None));
    }
    let rate = text.parse().ok().filter(|rate: &f64| *rate > 0.0 && rate.is_finite());
    rate.map(|rate| Rate(Some(rate))).ok_or_else(|| {
        Problem::body("/rate", format!("Creates per second is a number above 0, or nothing for no limit of ours, not “{text}”."))
    })
}

fn seconds(name: &'static str, words: &str, text: &str, most: i32) -> Result<i32, Problem> {
    let text = text.trim();
    if text.is_empty() || text == "0" {
        return Ok(0);
    }
    let read = humantime::parse_duration(text).ok().and_then(|time| i32::try_from(time.as_secs()).ok()).filter(|s| *s <= most);
    let limit = if most == i32::MAX { String::new() } else { format!(", {} at most", duration(most)) };
    read.ok_or_else(|| Problem::body(format!("/{name}"), format!("{words} is 0 or a time as 5m, 12h or 7days{limit}, not “{text}”.")))
}

impl Settings {
    fn read(&self) -> Result<Wished, Problem> {
        let (cap, burst) = (self.cap.as_deref(), self.burst.as_deref());
        Ok(Wished {
            cap: cap.map(|text| whole("cap", "Cap", text, 0, CAP_MAX)).transpose()?,
            rate: self.rate.as_deref().map(rate).transpose()?,
            burst: burst.map(|text| whole("burst", "Creates at once", text, 1, i32::MAX)).transpose()?,
            warm_s: self.warm.as_deref().map(|text| seconds("warm", "Kept warm", text, WARM_MAX_S)).transpose()?,
            paused_s: self.paused.as_deref().map(|text| seconds("paused", "Kept paused", text, i32::MAX)).transpose()?,
        })
    }
}

impl Wished {
    /// Without what is so already.
    fn changes(self, card: &PoolCard) -> Self {
        let kept = self.warm_s.is_some_and(|s| s != card.warm_s) || self.paused_s.is_some_and(|s| s != card.paused_s);
        Self {
            cap: self.cap.filter(|cap| *cap != card.cap),
            rate: self.rate.filter(|rate| rate.0 != card.create_rate),
            burst: self.burst.filter(|burst| *burst != card.create_burst),
            // Together: they are one setting.
            warm_s: kept.then_some(self.warm_s.unwrap_or(card.warm_s)),
            paused_s: kept.then_some(self.paused_s.unwrap_or(card.paused_s)),
        }
    }

    fn change(self) -> PoolChange {
        PoolChange {
            cap: self.cap,
            create_rate: self.rate.map(|rate| rate.0),
            create_burst: self.burst,
            release: self.warm_s.zip(self.paused_s),
            ..PoolChange::default()
        }
    }

    /// As fields of a form.
    fn fields(self) -> Vec<Field> {
        let text = |n: i32| n.to_string();
        let all = [
            ("cap", self.cap.map(text)),
            ("rate", self.rate.map(|Rate(rate)| rate.map_or("none".to_owned(), |rate| rate.to_string()))),
            ("burst", self.burst.map(text)),
            ("warm", self.warm_s.map(typed)),
            ("paused", self.paused_s.map(typed)),
        ];
        all.into_iter().filter_map(|(name, value)| Some(Field::hidden(name, value?))).collect()
    }

    fn command(self, pool: &str) -> String {
        let release = self.warm_s.zip(self.paused_s).map(|(warm, paused)| {
            let time = |s: i32| duration(s).replace(' ', "");
            let parts = [(warm > 0).then(|| format!("warm:{}", time(warm))), (paused > 0).then(|| format!("pause:{}", time(paused)))];
            let parts: Vec<String> = parts.into_iter().flatten().collect();
            if parts.is_empty() { "kill".to_owned() } else { parts.join(",") }
        });
        let flags = [
            ("cap", self.cap.map(|n| n.to_string())),
            ("create-rate", self.rate.map(|Rate(rate)| rate.map_or("none".to_owned(), |rate| rate.to_string()))),
            ("create-burst", self.burst.map(|n| n.to_string())),
            ("release", release),
        ];
        let flags: String = flags.into_iter().filter_map(|(name, value)| Some(format!(" --{name} {}", value?))).collect();
        format!("turnmill pool set {pool}{flags}")
    }

    /// What each change comes to.
    fn consequences(self, card: &PoolCard) -> Vec<String> {
        let cap = self.cap.map(|cap| cap_means(cap, card));
        let rate = self.rate.map(|Rate(rate)| {
            let words = |rate: Option<f64>| rate.map_or("no limit of ours".to_owned(), |rate| format!("{rate} a second"));
            let theirs = if rate.is_none() { " E2B's own limit still holds." } else { "" };
            format!("Creates: {} → {}.{theirs}", words(card.create_rate), words(rate))
        });
        let burst = self.burst.map(|burst| format!("Creates at once after a pause: {} → {burst}.", card.create_burst));
        let kept = self.warm_s.zip(self.paused_s).map(|(warm, paused)| {
            format!(
                "After its turn a sandbox is {} (it was {}). Those that are kept now stay until they are due.",
                keeps(warm, paused),
                keeps(card.warm_s, card.paused_s)
            )
        });
        [cap, rate, burst, kept].into_iter().flatten().collect()
    }
}

fn cap_means(cap: i32, card: &PoolCard) -> String {
    let (held, change) = (card.held(), format!("Cap: {} → {cap}.", card.cap));
    if i64::from(cap) < held {
        return format!(
            "{change} {} sandboxes are held now: none is killed, and no turn starts in a new one until fewer than {cap} are.",
            look::count(held)
        );
    }
    if cap < card.cap {
        return format!("{change} {} of them are held now; only free slots go away.", look::count(held));
    }
    let theirs = card.account_cap.filter(|account| *account < cap);
    let theirs =
        theirs.map(|n| format!(" E2B has said that the account's own limit is {n}: it refuses what is above.")).unwrap_or_default();
    format!("{change} {} more sandboxes at once.{theirs}", look::count(i64::from(cap - card.cap)))
}

/// Says what would change.
pub async fn ask(viewer: Viewer, State(app): State<App>, Id(name): Id, Query(settings): Query<Settings>) -> Result<Response, Fault> {
    if !viewer.may_act {
        return Err(may_not_act());
    }
    let card = card(&app, &name).await?;
    let changes = settings.read()?.changes(&card);
    let nothing = changes == Wished::default();
    let path = look::encoded(&name);
    Ok(Ask {
        title: format!("Change pool {name}?"),
        about: if nothing { "All of it is so already. Nothing would change.".to_owned() } else { changes.consequences(&card).join("\n\n") },
        fields: changes.fields(),
        button: "Change the pool".to_owned(),
        nothing,
        shell: (!nothing).then(|| changes.command(&name)),
        ..Ask::of(&viewer, "/ops/pools", format!("/ops/pools/{path}/set"), format!("/ops/pools/{path}"))
    }
    .show())
}

/// Changes it.
pub async fn set(State(app): State<App>, Id(name): Id, deed: Deed<Settings>) -> Result<Response, Fault> {
    let changes = deed.what.read()?.changes(&card(&app, &name).await?);
    if changes == Wished::default() {
        return Err(Problem::new("conflict", format!("Pool {name} is so already. Nothing was changed.")).into());
    }
    let answer = app.store.change_pool_by(&deed.actor, &name, "set", &["active", "paused", "blocked"], &changes.change()).await?;
    done(&app, &name, &answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_understood_or_refused_with_what_to_give() {
        let one = |set: fn(&mut Settings, String), text: &str| {
            let mut settings = Settings::default();
            set(&mut settings, text.to_owned());
            settings.read().map_err(|problem| problem.detail)
        };
        assert_eq!(one(|s, v| s.cap = Some(v), " 20 ").unwrap().cap, Some(20));
        assert_eq!(one(|s, v| s.rate = Some(v), "").unwrap().rate, Some(Rate(None)));
        assert_eq!(one(|s, v| s.rate = Some(v), "0.5").unwrap().rate, Some(Rate(Some(0.5))));
        assert_eq!(one(|s, v| s.warm = Some(v), "5m").unwrap().warm_s, Some(300));
        assert_eq!(one(|s, v| s.paused = Some(v), "7days").unwrap().paused_s, Some(604_800));
        for wrong in ["-1", "10001", "many", "", "1.5"] {
            assert!(one(|s, v| s.cap = Some(v), wrong).unwrap_err().contains("from 0 to 10000"), "{wrong}");
        }
        for wrong in ["0", "-1", "inf", "NaN", "fast"] {
            assert!(one(|s, v| s.rate = Some(v), wrong).unwrap_err().contains("above 0"), "{wrong}");
        }
        for wrong in ["2days", "soon", "-5m"] {
            assert!(one(|s, v| s.warm = Some(v), wrong).unwrap_err().contains("1day at most"), "{wrong}");
        }
    }
}
