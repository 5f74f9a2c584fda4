//! The numbers below the verdict.

use super::look;
use super::now::Now;
use super::spend;
use crate::store::{Minute, PoolRoom};

/// One number with its name.
pub struct Tile {
    /// What.
    pub name: &'static str,
    /// How much.
    pub value: String,
    /// Of what.
    pub note: String,
    /// Of the style: alarm, warn or nothing.
    pub class: &'static str,
}

/// Of the last five minutes whose counts are final, and of the last hour.
pub(super) fn of(now: &Now) -> Vec<Tile> {
    let minutes: Vec<&Minute> = now.minutes.value.iter().flat_map(|all| all.iter()).filter(|minute| minute.closed).collect();
    let last: Vec<&&Minute> = minutes.iter().rev().take(5).collect();
    let rate = |of: fn(&Minute) -> i32| {
        let sum: i32 = last.iter().map(|minute| of(minute)).sum();
        u32::try_from(last.len()).ok().filter(|n| *n > 0).map_or("–".to_owned(), |n| format!("{:.1}", f64::from(sum) / f64::from(n)))
    };
    let rooms = now.rooms.value.as_deref();
    let sum = |of: fn(&PoolRoom) -> i64| rooms.map_or(0, |rooms| rooms.iter().map(of).sum::<i64>());
    let (held, cap) = (sum(|room| room.held), sum(|room| i64::from(room.cap)));
    let reported = rooms.and_then(|rooms| rooms.iter().map(|room| room.reported.map(i64::from)).sum::<Option<i64>>());
    let orphans = sum(|room| room.orphans);
    let waiting: i64 = now.waits.value.iter().flat_map(|waits| waits.iter()).map(|wait| wait.turns).sum();
    let behind: i64 = now
        .waits
        .value
        .iter()
        .flat_map(|waits| waits.iter())
        .filter(|w| w.reason.as_deref() == Some("session_busy"))
        .map(|w| w.turns)
        .sum();
    let (tries, failed): (i32, i32) = last.iter().fold((0, 0), |(tries, failed), m| (tries + m.tries, failed + m.tries_failed));
    let hour: f64 = minutes.iter().rev().take(60).map(|minute| minute.cost_usd).sum();
    let sandboxes = rooms.map_or(0.0, |rooms| spend::sandboxes_an_hour(rooms));
    let running = now.cells.value.iter().flat_map(|cells| cells.iter()).filter(|cell| cell.phase.is_some()).count();
    let per_minute = "per minute, last 5".to_owned();
    vec![
        Tile { name: "Running", value: look::count(i64::try_from(running).unwrap_or(0)), note: "turns".to_owned(), class: "" },
        Tile {
            name: "Slots held",
            value: format!("{} / {}", look::count(held), look::count(cap)),
            note: match reported {
                Some(reported) if orphans > 0 => format!("E2B reports {}, {orphans} unknown", look::count(reported)),
                Some(reported) => format!("E2B reports {}", look::count(reported)),
                None => "E2B not asked yet".to_owned(),
            },
            class: if orphans > 0 {
                "alarm"
            } else if held >= cap && cap > 0 {
                "warn"
            } else {
                ""
            },
        },
        Tile { name: "Waiting", value: look::count(waiting), note: format!("{} behind their session", look::count(behind)), class: "" },
        Tile { name: "Enqueued", value: rate(|m| m.enqueued), note: per_minute.clone(), class: "" },
        Tile { name: "Started", value: rate(|m| m.started), note: per_minute.clone(), class: "" },
        Tile { name: "Ended", value: rate(|m| m.completed + m.failed + m.cancelled), note: per_minute, class: "" },
        Tile {
            name: "Failing",
            value: if tries == 0 && failed == 0 {
                "–".to_owned()
            } else {
                look::percent(i64::from(failed), i64::from(tries.max(failed)))
            },
            note: format!("{failed} of {tries} attempts"),
            class: if failed >= 5 && failed * 5 >= tries { "alarm" } else { "" },
        },
        Tile {
            name: "Cost per hour",
            value: look::dollars(hour + sandboxes),
            note: format!("models {}, sandboxes {}", look::dollars(hour), look::dollars(sandboxes)),
            class: "",
        },
    ]
}
