//! What was spent against what may be, shown the same way wherever it is: a bar, the amounts, a state with a sign and a word; and
//! amounts as people type them.

use super::super::problem::Problem;
use super::look::{self, Mark};

/// From this share of a budget on somebody should look.
const NEAR: f64 = 0.8;

/// Most dollars of a budget, as the database has it.
const USD_MAX: f64 = 1e6;

/// A day's spending against its budget.
#[derive(Debug, Clone, PartialEq)]
pub struct Budget {
    /// Dollars of today.
    pub spent: f64,
    /// Dollars that may be spent; `None`: no limit.
    pub limit: Option<f64>,
}

impl Budget {
    /// Whether anything is left.
    pub fn is_spent(&self) -> bool {
        self.limit.is_some_and(|limit| self.spent >= limit)
    }

    fn is_near(&self) -> bool {
        self.limit.is_some_and(|limit| self.spent >= limit * NEAR)
    }

    /// The amounts.
    pub fn words(&self) -> String {
        match self.limit {
            Some(limit) => format!("{} of {}", look::dollars(self.spent), look::dollars(limit)),
            None => look::dollars(self.spent),
        }
    }

    /// How far it is.
    pub fn mark(&self) -> Mark {
        let share = self.limit.filter(|limit| *limit > 0.0).map(|limit| format!("{:.0} %", (self.spent / limit * 100.0).floor()));
        match share {
            _ if self.limit.is_none() => look::mark("s-pending", "∞", "no budget"),
            Some(share) if self.is_spent() => look::mark("s-failed", "✕", format!("{share} spent")),
            None => look::mark("s-failed", "✕", "may spend nothing"),
            Some(share) if self.is_near() => look::mark("s-waiting", "▲", format!("{share} spent")),
            Some(share) => look::mark("s-completed", "✓", format!("{share} spent")),
        }
    }

    /// Of the bar's style.
    pub fn class(&self) -> &'static str {
        match (self.is_spent(), self.is_near()) {
            (true, _) => "at-over",
            (_, true) => "at-near",
            _ => "",
        }
    }

    /// The whole of the bar.
    pub fn whole(&self) -> f64 {
        self.limit.filter(|limit| *limit > 0.0).unwrap_or(1.0)
    }

    /// What of it is full.
    pub fn full(&self) -> f64 {
        if self.is_spent() { self.whole() } else { self.spent }
    }
}

/// Dollars in a field; none is empty.
pub fn typed(usd: Option<f64>) -> String {
    usd.map(|usd| usd.to_string()).unwrap_or_default()
}

/// Dollars for a command or a hidden field.
pub fn given(usd: Option<f64>) -> String {
    usd.map_or("none".to_owned(), |usd| usd.to_string())
}

/// Dollars as a sentence has them.
pub fn said(usd: Option<f64>) -> String {
    usd.map_or("no limit".to_owned(), look::dollars)
}

/// Reads a day's budget from a field; nothing in it: no limit.
pub fn budget(text: &str) -> Result<Option<f64>, Problem> {
    let text = text.trim();
    if text.is_empty() || text == "none" {
        return Ok(None);
    }
    let amount = text.strip_prefix('$').unwrap_or(text).parse().ok().filter(|usd: &f64| (0.0..=USD_MAX).contains(usd));
    // The database has six places.
    amount.map(|usd| Some((usd * 1e6).round() / 1e6)).ok_or_else(|| {
        Problem::body("/budget", format!("A day's budget is a number of dollars from 0 to 1000000, or nothing for no limit, not “{text}”."))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_says_how_far_it_is_in_words_a_sign_and_a_bar() {
        let shown = |spent, limit| {
            let budget = Budget { spent, limit };
            let mark = budget.mark();
            (budget.words(), format!("{} {}", mark.icon, mark.word), budget.class())
        };
        assert_eq!(shown(1.0, Some(4.0)), ("$1.00 of $4.00".to_owned(), "✓ 25 % spent".to_owned(), ""));
        assert_eq!(shown(3.2, Some(4.0)), ("$3.20 of $4.00".to_owned(), "▲ 80 % spent".to_owned(), "at-near"));
        assert_eq!(shown(3.9999, Some(4.0)), ("$4.00 of $4.00".to_owned(), "▲ 99 % spent".to_owned(), "at-near"), "not before it is");
        assert_eq!(shown(6.0, Some(4.0)), ("$6.00 of $4.00".to_owned(), "✕ 150 % spent".to_owned(), "at-over"));
        assert_eq!(shown(0.0, Some(0.0)), ("$0.00 of $0.00".to_owned(), "✕ may spend nothing".to_owned(), "at-over"));
        assert_eq!(shown(2.0, None), ("$2.00".to_owned(), "∞ no budget".to_owned(), ""));
        let over = Budget { spent: 6.0, limit: Some(4.0) };
        assert!((over.whole() - over.full()).abs() < 1e-9, "a bar has an end");
    }

    #[test]
    fn amounts_are_understood_or_refused_with_what_to_give() {
        for (text, usd) in [("", None), (" none ", None), ("0", Some(0.0)), ("$2.50", Some(2.5)), ("0.1234567", Some(0.123_457))] {
            assert_eq!(budget(text).unwrap(), usd, "{text}");
        }
        for wrong in ["-1", "1000001", "NaN", "inf", "two", "1,5"] {
            assert!(budget(wrong).unwrap_err().detail.contains("from 0 to 1000000"), "{wrong}");
        }
    }
}
