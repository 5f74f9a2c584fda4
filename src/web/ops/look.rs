//! One way to show each: ages, amounts, states. A state is an icon, a word and a colour, the same on every page.

use std::fmt::Write as _;

use chrono::{DateTime, Utc};

/// A state, as it is shown: the class gives the colour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// Of the style: `s-…`.
    pub class: &'static str,
    /// A sign, for whoever can't tell the colours.
    pub icon: &'static str,
    /// The word.
    pub word: String,
}

/// One of them.
pub fn mark(class: &'static str, icon: &'static str, word: impl Into<String>) -> Mark {
    Mark { class, icon, word: word.into() }
}

/// Of a turn.
pub fn status(status: &str, reason: Option<&str>, phase: Option<&str>) -> Mark {
    match (status, reason, phase) {
        ("completed", ..) => mark("s-completed", "✓", "completed"),
        ("failed", ..) => mark("s-failed", "✕", "failed"),
        ("cancelled", ..) => mark("s-cancelled", "⊘", "cancelled"),
        ("in_progress", _, Some(phase)) => mark("s-running", "▶", format!("running · {phase}")),
        ("in_progress", ..) => mark("s-running", "▶", "running"),
        (_, Some(reason), _) => mark("s-waiting", "◷", reason_words(reason)),
        _ => mark("s-pending", "○", "pending"),
    }
}

/// Why a turn waits, in words; an unknown reason as it is.
pub fn reason_words(reason: &str) -> &str {
    match reason {
        "session_busy" => "behind its session",
        "no_slot" => "no free slot",
        "create_rate" => "create rate",
        "tenant_limit" => "tenant's limit",
        "fleet_stopped" => "fleet stopped",
        "backoff" => "backing off",
        "budget" => "budget spent",
        "pool_paused" => "pool paused",
        "pool_blocked" => "pool blocked",
        "no_worker" => "no worker free",
        "" => "about to start",
        other => other,
    }
}

/// What a reason means, in a sentence.
pub fn reason_means(reason: &str) -> &'static str {
    match reason {
        "session_busy" => "An earlier turn of the same session has not ended.",
        "no_slot" => "Every slot of the pool holds a sandbox, or E2B has no room.",
        "create_rate" => "The pool makes as many sandboxes a second as it may.",
        "tenant_limit" => "The tenant has as many running turns as it may.",
        "backoff" => "It failed to start and is tried again later.",
        "fleet_stopped" => "The fleet is stopped: no turn starts until it is resumed.",
        "budget" => "The tenant's budget of this day is spent, or the fleet's.",
        "pool_paused" => "An operator has paused the pool.",
        "pool_blocked" => "E2B refuses our key.",
        "no_worker" => "No worker is alive that takes more turns.",
        "" => "Nothing is in the way; it is claimed within moments.",
        _ => "",
    }
}

/// Where what turns wait for can be changed, and how that is called: of one tenant, where it is known which.
pub fn reason_pages(reason: &str, tenant: Option<&str>) -> Vec<(String, &'static str)> {
    let tenants = || match tenant {
        Some(tenant) => (tenant_href(tenant), "Its tenant"),
        None => (format!("/ops/tenants?show={reason}"), "Which tenants"),
    };
    match reason {
        "tenant_limit" => vec![tenants()],
        "budget" => vec![tenants(), ("/ops/spend".to_owned(), "The fleet's budget")],
        "fleet_stopped" => vec![("/ops/spend".to_owned(), "The fleet")],
        _ => Vec::new(),
    }
}

/// The page of a tenant. Named in the query: an id may be `..`, which no browser sends as a step of a path.
pub fn tenant_href(id: &str) -> String {
    format!("/ops/tenant?id={}", encoded(id))
}

/// Of a slot.
pub fn slot(state: &str, phase: Option<&str>, wrong: bool) -> Mark {
    match (state, phase) {
        _ if wrong => mark("c-leaked", "!", "leaked"),
        ("free", _) => mark("c-free", "", "free"),
        ("creating", _) => mark("c-sandbox", "", "creating"),
        ("busy", Some("sandbox")) => mark("c-sandbox", "", "sandbox"),
        ("busy", Some("prepare")) => mark("c-prepare", "", "prepare"),
        ("busy", Some("finish")) => mark("c-finish", "", "finish"),
        ("busy", _) => mark("c-agent", "", "agent"),
        ("warm", _) => mark("c-warm", "", "warm"),
        ("pausing", _) => mark("c-pausing", "", "pausing"),
        _ => mark("c-releasing", "", "releasing"),
    }
}

/// Of a session: whether one of its turns is not over, how far that is, why it waits.
pub fn session(busy: bool, phase: Option<&str>, reason: Option<&str>) -> Mark {
    match (busy, phase) {
        (true, Some(_)) => status("in_progress", None, phase),
        (true, None) => status("pending", reason.or(Some("")), None),
        (false, _) => mark("s-pending", "○", "idle"),
    }
}

/// Of a worker.
pub fn worker(state: &str, alive: bool) -> Mark {
    match (state, alive) {
        ("active", true) => mark("s-completed", "●", "active"),
        ("draining", true) => mark("s-waiting", "◐", "draining"),
        ("gone", _) => mark("s-cancelled", "○", "gone"),
        _ => mark("s-failed", "✕", "lost"),
    }
}

/// Of a pool.
pub fn pool(state: &str) -> Mark {
    match state {
        "active" => mark("s-completed", "●", "active"),
        "paused" => mark("s-waiting", "‖", "paused"),
        _ => mark("s-failed", "✕", state),
    }
}

/// What pages call these with: a value, or a reference to one, or to that.
pub trait As<T> {
    /// The value.
    fn get(&self) -> T;
}

macro_rules! themselves {
    ($($kind:ty),*) => { $(impl As<$kind> for $kind { fn get(&self) -> $kind { *self } })* };
}
themselves!(f64, i64, DateTime<Utc>, Option<f64>, Option<DateTime<Utc>>);

impl As<i64> for i32 {
    fn get(&self) -> i64 {
        i64::from(*self)
    }
}

impl As<i64> for usize {
    fn get(&self) -> i64 {
        i64::try_from(*self).unwrap_or(i64::MAX)
    }
}

impl<T, A: As<T>> As<T> for &A {
    fn get(&self) -> T {
        (**self).get()
    }
}

/// Seconds, as short as they can be understood.
pub fn age(seconds: impl As<f64>) -> String {
    let seconds = seconds.get().max(0.0);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative, and no age is that long")]
    let whole = seconds.round() as u64;
    let (minutes, hours, days) = (whole / 60, whole / 3600, whole / 86400);
    match whole {
        _ if seconds < 0.9995 => format!("{:.0} ms", seconds * 1000.0),
        _ if seconds < 9.95 => format!("{seconds:.1} s"),
        0..120 => format!("{whole} s"),
        120..7200 => format!("{minutes}m {:02}s", whole % 60),
        7200..172_800 => format!("{hours}h {:02}m", minutes % 60),
        _ => format!("{days}d {:02}h", hours % 24),
    }
}

/// The same, of what may not be known.
pub fn maybe_age(seconds: impl As<Option<f64>>) -> String {
    seconds.get().map_or("–".to_owned(), age)
}

/// Seconds as a number, for what is drawn.
pub fn decimal(seconds: impl As<Option<f64>>) -> String {
    seconds.get().map_or_else(String::new, |seconds| format!("{seconds:.2}"))
}

/// From one time to another.
pub fn between(from: DateTime<Utc>, to: DateTime<Utc>) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "microseconds of years fit")]
    let micros = (to - from).num_microseconds().unwrap_or(i64::MAX) as f64;
    micros / 1e6
}

/// Dollars; small ones with more places.
pub fn money(dollars: impl As<f64>) -> String {
    let dollars = dollars.get();
    if dollars == 0.0 || dollars.abs() >= 1.0 { format!("${}", grouped(&format!("{dollars:.2}"))) } else { format!("${dollars:.4}") }
}

/// The same, of what may not be known.
pub fn maybe_money(dollars: impl As<Option<f64>>) -> String {
    dollars.get().map_or("–".to_owned(), money)
}

/// Dollars and cents; what is less than one has more places.
pub fn dollars(dollars: impl As<f64>) -> String {
    format!("${}", grouped(&cents(dollars)))
}

/// The same as a number, for what is drawn.
pub fn cents(dollars: impl As<f64>) -> String {
    let dollars = dollars.get();
    if dollars == 0.0 || dollars.abs() >= 0.01 { format!("{dollars:.2}") } else { format!("{dollars:.4}") }
}

/// An amount of data, as short as it can be understood.
pub fn bytes(amount: impl As<i64>) -> String {
    #[expect(clippy::cast_precision_loss, reason = "it is rounded anyway")]
    let amount = amount.get() as f64;
    match amount {
        _ if amount < 1000.0 => format!("{amount} B"),
        _ if amount < 999_500.0 => format!("{:.1} kB", amount / 1e3),
        _ if amount < 999_500_000.0 => format!("{:.1} MB", amount / 1e6),
        _ => format!("{:.1} GB", amount / 1e9),
    }
}

/// A whole number, in threes.
pub fn count(number: impl As<i64>) -> String {
    grouped(&number.get().to_string())
}

fn grouped(digits: &str) -> String {
    let (whole, rest) = digits.split_at(digits.find('.').unwrap_or(digits.len()));
    let (sign, whole) = whole.strip_prefix('-').map_or(("", whole), |whole| ("-", whole));
    let mut out = sign.to_owned();
    for (nth, digit) in whole.chars().enumerate() {
        if nth > 0 && (whole.len() - nth) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    out + rest
}

/// A share of a hundred.
pub fn percent(part: i64, whole: i64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "a share")]
    let share = part as f64 * 100.0 / whole.max(1) as f64;
    format!("{share:.0} %")
}

/// A time, as pages have it until the reader's clock is known.
pub fn utc(at: impl As<DateTime<Utc>>) -> String {
    at.get().format("%Y-%m-%d %H:%M:%S").to_string()
}

/// Of the day.
pub fn clock(at: impl As<DateTime<Utc>>) -> String {
    at.get().format("%H:%M:%S").to_string()
}

/// For machines.
pub fn iso(at: impl As<DateTime<Utc>>) -> String {
    at.get().to_rfc3339_opts(chrono::SecondsFormat::Micros, true)
}

/// An id, short enough for a table; the whole is in its title. What people name is left as it is.
pub fn short_id(id: &str) -> String {
    let (head, tail) = (id.split('_').next().unwrap_or_default(), id.chars().rev().take(6).collect::<Vec<_>>());
    if id.chars().count() <= 24 {
        return id.to_owned();
    }
    let head: String = if head.len() < 8 && id.contains('_') { format!("{head}_") } else { id.chars().take(8).collect() };
    format!("{head}…{}", tail.into_iter().rev().collect::<String>())
}

/// An id as a step of a path, or a value in a query.
pub fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// A text as one word of a shell's command line, and no option.
pub fn shell(text: &str) -> String {
    let plain = !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:@/+".contains(c));
    let word = if plain { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) };
    if text.starts_with('-') { format!("-- {word}") } else { word }
}

/// A text as an SQL literal.
pub fn sql(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_short_and_never_odd() {
        let shown: Vec<String> = [0.0, 0.0412, 0.9999, 9.94, 9.96, 59.6, 119.4, 120.0, 3599.6, 7199.0, 7200.0, 172_800.0].map(age).into();
        assert_eq!(
            shown,
            ["0 ms", "41 ms", "1.0 s", "9.9 s", "10 s", "60 s", "119 s", "2m 00s", "60m 00s", "119m 59s", "2h 00m", "2d 00h"]
        );
    }

    #[test]
    fn amounts_are_grouped() {
        assert_eq!((count(1_234_567_i64), count(999_i64), count(-1000_i64)), ("1,234,567".into(), "999".into(), "-1,000".into()));
        assert_eq!((money(1234.5), money(0.0123), money(0.0)), ("$1,234.50".into(), "$0.0123".into(), "$0.00".into()));
        assert_eq!((dollars(1234.5), dollars(0.6041), dollars(0.0012)), ("$1,234.50".into(), "$0.60".into(), "$0.0012".into()));
    }

    #[test]
    fn what_is_copied_is_one_literal_whatever_is_in_it() {
        assert_eq!(sql("it's; DROP"), "'it''s; DROP'");
        assert_eq!(
            (shell("a-b.c"), shell("a b"), shell("$(x)"), shell("")),
            ("a-b.c".into(), "'a b'".into(), "'$(x)'".into(), "''".into())
        );
        assert_eq!(encoded("a/b ?ü"), "a%2Fb%20%3F%C3%BC");
        assert_eq!(short_id("turn_0199aabb-ccdd-7eef-8001-223344556677"), "turn_…556677");
        assert_eq!(short_id("chat_7"), "chat_7");
    }
}
