//! A turn's time axis: a lane for each thing that takes time, and a seam wherever it changed hands. Pure.

use chrono::{DateTime, Utc};

use super::look;
use crate::store::{OpsTurn, Period};

/// A stretch of a lane, in thousandths of the axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Bar {
    /// Where it begins.
    pub x: String,
    /// How long it is.
    pub width: String,
    /// Of the style.
    pub class: &'static str,
    /// What it is, with its time.
    pub title: String,
}

/// A row of the axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Lane {
    /// What it shows.
    pub name: &'static str,
    /// What is in it.
    pub bars: Vec<Bar>,
    /// Altogether.
    pub total: String,
    /// Where it is in the picture.
    pub y: usize,
}

/// Where a turn changed hands, or began anew.
#[derive(Debug, Clone, PartialEq)]
pub struct Seam {
    /// Where on the axis.
    pub x: String,
    /// When.
    pub at: DateTime<Utc>,
    /// Of the style.
    pub class: &'static str,
    /// What happened, in a sentence.
    pub text: String,
}

/// A mark on the axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Tick {
    /// Where.
    pub x: String,
    /// Where, of a hundred.
    pub percent: String,
    /// How long after the beginning.
    pub text: String,
}

/// The whole picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Lanes {
    /// From top to bottom.
    pub rows: Vec<Lane>,
    /// From left to right.
    pub seams: Vec<Seam>,
    /// Marks below it.
    pub ticks: Vec<Tick>,
    /// Its height.
    pub height: usize,
    /// The same for what is below the lanes.
    pub foot: usize,
}

/// Height of a lane.
const ROW: usize = 26;

/// Even a moment can be seen.
const LEAST: f64 = 2.5;

/// From when to when the axis goes.
struct Axis {
    from: DateTime<Utc>,
    seconds: f64,
}

impl Axis {
    fn at(&self, at: DateTime<Utc>) -> f64 {
        (look::between(self.from, at) / self.seconds * 1000.0).clamp(0.0, 1000.0)
    }

    fn bar(&self, from: DateTime<Utc>, to: DateTime<Utc>, class: &'static str, what: &str) -> Bar {
        let x = self.at(from).min(1000.0 - LEAST);
        let width = (self.at(to) - x).max(LEAST);
        let title = format!("{what}: {}, from {} to {}", look::age(look::between(from, to)), look::clock(from), look::clock(to));
        Bar { x: format!("{x:.1}"), width: format!("{width:.1}"), class, title }
    }
}

/// Draws a turn.
pub fn draw(turn: &OpsTurn, periods: &[Period]) -> Lanes {
    let end = turn.completed_at.unwrap_or(turn.now);
    let axis = Axis { from: turn.created_at, seconds: look::between(turn.created_at, end).max(0.001) };
    let lane = |name, spans: Vec<(DateTime<Utc>, DateTime<Utc>, &'static str, String)>| {
        let total: f64 = spans.iter().map(|(from, to, ..)| look::between(*from, *to).max(0.0)).sum();
        let bars = spans.iter().map(|(from, to, class, what)| axis.bar(*from, *to, class, what)).collect();
        Lane { name, bars, total: look::age(total), y: 0 }
    };
    let ended = |period: &Period| period.ended_at.unwrap_or(end);
    let mut lanes = vec![
        lane("Queue", queue(turn, periods, end)),
        lane("Worker", hands(periods, end)),
        lane(
            "Sandbox",
            periods.iter().map(|p| (p.taken_at, p.sandbox_at.unwrap_or_else(|| ended(p)), "l-sandbox", sandbox_words(p))).collect(),
        ),
        lane(
            "Prepare",
            periods
                .iter()
                .filter_map(|p| {
                    Some((
                        p.sandbox_at?,
                        p.agent_at.unwrap_or_else(|| ended(p)),
                        "l-prepare",
                        "files, conversation, start of the agent".to_owned(),
                    ))
                })
                .collect(),
        ),
        lane("Agent", agents(periods, end)),
        lane("First block", first_block(turn, periods)),
        lane("Finish", finish(periods)),
    ];
    lanes.retain(|lane| !lane.bars.is_empty());
    for (nth, lane) in lanes.iter_mut().enumerate() {
        lane.y = nth * ROW;
    }
    let foot = lanes.len() * ROW;
    Lanes { seams: seams(&axis, turn, periods), ticks: ticks(&axis), height: foot + 4, foot, rows: lanes }
}

type Spans = Vec<(DateTime<Utc>, DateTime<Utc>, &'static str, String)>;

/// Until the first claim, and between tries.
fn queue(turn: &OpsTurn, periods: &[Period], end: DateTime<Utc>) -> Spans {
    let mut spans = Vec::new();
    let mut from = Some((turn.created_at, "l-wait", "waited for its first claim".to_owned()));
    for period in periods {
        if let (Some((since, class, what)), true) = (from.take(), period.taken == "claimed") {
            spans.push((since, period.taken_at, class, what));
        }
        if period.ended.as_deref() == Some("retry") {
            from = period.ended_at.map(|at| (at, "l-backoff", "waited for its next try".to_owned()));
        }
    }
    if let Some((since, class, what)) = from.filter(|_| turn.job_state.is_some() || periods.is_empty()) {
        spans.push((since, end, class, what));
    }
    spans
}

/// Who had it, and when nobody had.
fn hands(periods: &[Period], end: DateTime<Utc>) -> Spans {
    let mut spans = Vec::new();
    for (nth, period) in periods.iter().enumerate() {
        let next = periods.get(nth + 1).filter(|next| next.taken == "adopted");
        let until = period.heard_at.filter(|_| next.is_some()).or(period.ended_at).unwrap_or(end);
        let class = if nth % 2 == 0 { "l-worker" } else { "l-worker l-other" };
        spans.push((period.taken_at, until.max(period.taken_at), class, format!("worker {}", period.worker_id)));
        if let Some(next) = next
            && next.taken_at > until
        {
            spans.push((until, next.taken_at, "l-nobody", "nobody copied; the agent went on".to_owned()));
        }
    }
    spans
}

/// An agent runs on while its turn changes hands.
fn agents(periods: &[Period], end: DateTime<Utc>) -> Spans {
    let mut spans: Vec<(i32, DateTime<Utc>, DateTime<Utc>)> = Vec::new();
    for period in periods {
        let until = period.ended_at.unwrap_or(end);
        match (spans.last_mut(), period.agent_at) {
            (Some((attempt, _, to)), _) if *attempt == period.attempt => *to = until,
            (_, Some(at)) => spans.push((period.attempt, at, until)),
            _ => {}
        }
    }
    spans.into_iter().map(|(attempt, from, to)| (from, to, "l-agent", format!("agent, attempt {attempt}"))).collect()
}

fn first_block(turn: &OpsTurn, periods: &[Period]) -> Spans {
    let first = periods.iter().find_map(|period| period.first_block_at);
    turn.started_at
        .zip(first)
        .map(|(from, to)| (from, to, "l-first", "from the first claim to the first block".to_owned()))
        .into_iter()
        .collect()
}

/// What is after the last block of a turn that was settled: files brought out, conversation saved.
fn finish(periods: &[Period]) -> Spans {
    let last = periods.last().filter(|period| period.ended.as_deref() == Some("settled") && period.agent_at.is_some());
    let span = last.and_then(|period| Some((period.last_block_at?.max(period.taken_at), period.ended_at?)));
    span.filter(|(from, to)| to > from)
        .map(|(from, to)| (from, to, "l-finish", "after the last block: files and conversation saved".to_owned()))
        .into_iter()
        .collect()
}

fn sandbox_words(period: &Period) -> String {
    match period.sandbox.as_deref() {
        Some("warm") => "its session's warm sandbox".to_owned(),
        Some("paused") => "its session's paused sandbox, woken".to_owned(),
        Some(_) => "a new sandbox".to_owned(),
        None => "the sandbox found again".to_owned(),
    }
}

fn seams(axis: &Axis, turn: &OpsTurn, periods: &[Period]) -> Vec<Seam> {
    let pairs = periods.iter().zip(periods.iter().skip(1));
    let mut seams: Vec<Seam> = pairs
        .map(|(before, after)| {
            let (class, text) = if after.taken == "adopted" { adopted(before, after) } else { again(before, after) };
            Seam { x: format!("{:.1}", axis.at(after.taken_at)), at: after.taken_at, class, text }
        })
        .collect();
    let last = periods.last().filter(|period| period.ended_at.is_none());
    if let (Some(period), Some(lease)) = (last, turn.lease_until)
        && lease < turn.now
    {
        let text = format!("{} has lost its lease; the next claim of any worker adopts the turn", period.worker_id);
        seams.push(Seam { x: format!("{:.1}", axis.at(lease)), at: lease, class: "m-lost", text });
    }
    seams
}

/// One copier took over from another: the agent noticed nothing.
fn adopted(before: &Period, after: &Period) -> (&'static str, String) {
    let since = before.heard_at.or(before.ended_at).unwrap_or(after.taken_at).min(after.taken_at);
    let missing = i64::from(after.from_seq) - i64::from(before.from_seq) - before.blocks;
    let how = if before.ended.as_deref() == Some("handed_over") { "handed over" } else { "was lost" };
    let gap = look::age(look::between(since, after.taken_at));
    let text = format!(
        "{} {how}; {} took over at byte {} after {gap}, with block {}: {} lost",
        before.worker_id,
        after.worker_id,
        look::count(after.from_offset),
        after.from_seq,
        if missing == 0 { "0 blocks".to_owned() } else { format!("{missing} blocks") },
    );
    (if how == "handed over" { "m-handed" } else { "m-lost" }, text)
}

/// Another try.
fn again(before: &Period, after: &Period) -> (&'static str, String) {
    let why = before.error_code.as_deref().or(before.detail.as_deref()).unwrap_or("it failed");
    let gap = look::age(look::between(before.ended_at.unwrap_or(after.taken_at), after.taken_at));
    let text = match after.taken.as_str() {
        "resumed" => {
            format!("attempt {} failed ({why}); attempt {} went on in the same sandbox after {gap}", before.attempt, after.attempt)
        }
        _ if after.generation > before.generation => {
            format!("{why}; the answer starts over as generation {}, {gap} later, by {}", after.generation, after.worker_id)
        }
        _ => format!("{why} in {}; tried again {gap} later, by {}", before.phase.as_deref().unwrap_or("start-up"), after.worker_id),
    };
    ("m-again", text)
}

/// Five at most, at round times.
fn ticks(axis: &Axis) -> Vec<Tick> {
    const STEPS: [f64; 20] = [
        0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1800.0, 3600.0, 7200.0, 21_600.0, 86_400.0,
        604_800.0,
    ];
    let step = STEPS.iter().copied().find(|step| axis.seconds / step <= 6.0).unwrap_or(axis.seconds / 4.0);
    let mut ticks = Vec::new();
    let mut at = 0.0;
    while at < axis.seconds * 0.97 {
        let share = at / axis.seconds;
        let text = if at == 0.0 { "0".to_owned() } else { look::age(at) };
        ticks.push(Tick { x: format!("{:.1}", share * 1000.0), percent: format!("{:.2}%", share * 100.0), text });
        at += step;
    }
    ticks
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_700_000_000 + seconds, 0).unwrap()
    }

    fn turn(ended: Option<i64>) -> OpsTurn {
        OpsTurn {
            id: "t".into(),
            session_id: "s".into(),
            ordinal: 1,
            project_id: "p".into(),
            user_id: None,
            tenant_id: None,
            pool: "default".into(),
            status: "in_progress".into(),
            wait_reason: None,
            cancelling: false,
            job_state: ended.is_none().then(|| "leased".into()),
            phase: None,
            worker_id: None,
            lease_until: None,
            run_at: None,
            slot_id: None,
            sandbox_id: None,
            journal_offset: None,
            failures: None,
            prompt: "hi".into(),
            prompt_whole: true,
            options: json!({}),
            attempt: 1,
            generation: 1,
            blocks: 0,
            error_code: None,
            error_message: None,
            usage: None,
            cost_usd: None,
            retry_of: None,
            created_at: at(0),
            started_at: Some(at(2)),
            completed_at: ended.map(at),
            now: at(100),
        }
    }

    fn period(worker: &str, taken: &str, from: i64, to: Option<i64>, ended: &str) -> Period {
        Period {
            epoch: from,
            attempt: 1,
            generation: 1,
            worker_id: worker.into(),
            taken: taken.into(),
            taken_at: at(from),
            from_offset: 0,
            from_seq: 0,
            sandbox_id: None,
            sandbox: Some("new".into()),
            sandbox_at: Some(at(from + 1)),
            agent_at: Some(at(from + 2)),
            first_block_at: None,
            last_block_at: None,
            blocks: 0,
            ended_at: to.map(at),
            ended: to.map(|_| ended.into()),
            to_offset: None,
            phase: None,
            error_code: None,
            detail: None,
            heard_at: None,
        }
    }

    #[test]
    fn a_take_over_is_a_seam_with_its_byte_its_gap_and_what_it_cost() {
        let a = Period { blocks: 17, heard_at: Some(at(20)), ..period("a", "claimed", 2, Some(26), "lost") };
        let b = Period { from_offset: 48_211, from_seq: 17, ..period("b", "adopted", 26, Some(90), "settled") };
        let lanes = draw(&turn(Some(90)), &[a, b]);
        assert_eq!(lanes.seams.len(), 1);
        assert_eq!(lanes.seams[0].text, "a was lost; b took over at byte 48,211 after 6.0 s, with block 17: 0 blocks lost");
        let agent = lanes.rows.iter().find(|lane| lane.name == "Agent").unwrap();
        assert_eq!(agent.bars.len(), 1, "the agent runs on");
        let worker = lanes.rows.iter().find(|lane| lane.name == "Worker").unwrap();
        assert_eq!(worker.bars.iter().map(|bar| bar.class).collect::<Vec<_>>(), ["l-worker", "l-nobody", "l-worker l-other"]);
    }

    #[test]
    fn another_try_says_why_and_waits_in_the_queue() {
        let a = Period {
            error_code: Some("sandbox_unavailable".into()),
            phase: Some("sandbox".into()),
            agent_at: None,
            ..period("a", "claimed", 2, Some(5), "retry")
        };
        let b = period("a", "claimed", 9, None, "");
        let lanes = draw(&turn(None), &[a, b]);
        assert_eq!(lanes.seams[0].text, "sandbox_unavailable in sandbox; tried again 4.0 s later, by a");
        assert_eq!(lanes.rows[0].bars.iter().map(|bar| bar.class).collect::<Vec<_>>(), ["l-wait", "l-backoff"]);
    }

    #[test]
    fn a_turn_that_was_never_claimed_has_one_lane() {
        let lanes = draw(&OpsTurn { started_at: None, job_state: Some("ready".into()), ..turn(None) }, &[]);
        assert_eq!((lanes.rows.len(), lanes.rows[0].name, lanes.rows[0].total.as_str()), (1, "Queue", "100 s"));
        assert!(lanes.ticks.len() <= 6);
    }
}
