//! Colours of the terminal output; anstream drops them where they don't belong.

use anstyle::{AnsiColor, Effects, Reset, Style};

/// Ends any style.
pub const OFF: Reset = Reset;
/// Quiet: thinking, times, ids.
pub const DIM: Style = Style::new().effects(Effects::DIMMED);
/// Headings.
pub const BOLD: Style = Style::new().effects(Effects::BOLD);
/// Done well.
pub const GOOD: Style = AnsiColor::Green.on_default().effects(Effects::BOLD);
/// Gone wrong.
pub const BAD: Style = AnsiColor::Red.on_default().effects(Effects::BOLD);
/// Waits, or needs a look.
pub const WARN: Style = AnsiColor::Yellow.on_default();
/// Tools.
pub const TOOL: Style = AnsiColor::Cyan.on_default();

/// The colour of a turn's status, the same everywhere.
pub fn status(status: &str) -> Style {
    match status {
        "completed" => GOOD,
        "failed" => BAD,
        "in_progress" => AnsiColor::Blue.on_default(),
        "cancelled" => AnsiColor::Magenta.on_default(),
        _ => WARN,
    }
}

/// What a terminal may be shown of a foreign text: control characters, which could move the cursor or change
/// the title, become visible.
pub fn safe(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' | '\t' => c,
            c if c.is_control() => '\u{fffd}',
            // Bidirectional overrides show text in an order that it doesn't have.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
            c => c,
        })
        .collect()
}

/// The start of a text on one line, at most `max` characters.
pub fn short(text: &str, max: usize) -> String {
    let line = safe(text).replace(['\n', '\t'], " ");
    if line.chars().count() <= max { line } else { format!("{}…", line.chars().take(max.saturating_sub(1)).collect::<String>()) }
}

/// A foreign id, name or reason, whole, on one line.
pub fn line(text: &str) -> String {
    short(text, usize::MAX)
}

/// A time, the same on every machine.
pub fn time(at: chrono::DateTime<chrono::Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// A JSON line: the same value, with nothing in it that a terminal would obey.
pub fn json(value: &impl serde::Serialize) -> serde_json::Result<String> {
    let text = serde_json::to_string(value)?;
    // Where they are at all in JSON, they are in a string.
    let steers = |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    Ok(text.chars().map(|c| if steers(c) { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() }).collect())
}
