//! When a delivery is tried again. Pure.

use std::time::Duration;

use chrono::DateTime;
use reqwest::header::{DATE, HeaderMap, RETRY_AFTER};

use super::Settings;

/// By how much the pause grows with each failure.
const GROWTH: u32 = 4;

/// The pause before the next try of a delivery that has failed `attempts` times and is due since `age`; `None`: it is given up.
/// `asked`: what the receiver wants, within our own limit. `lot`, from 0 to 1, spreads what failed together.
pub fn next_try(settings: &Settings, attempts: i32, age: Duration, asked: Option<Duration>, lot: f64) -> Option<Duration> {
    let before = u32::try_from(attempts.max(1) - 1).unwrap_or_default();
    let grown = settings.retry_delay.saturating_mul(GROWTH.saturating_pow(before));
    let own = grown.min(settings.retry_delay_max).mul_f64(0.8 + 0.4 * lot);
    let pause = asked.map_or(own, |asked| own.max(asked.min(settings.retry_delay_max)));
    (age + pause <= settings.retry_for).then_some(pause)
}

/// What an answer's Retry-After says: seconds, or a time, which is held against the receiver's own clock.
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let time = |text: &str| DateTime::parse_from_rfc2822(text).ok();
    let (then, now) = (time(text)?, time(headers.get(DATE)?.to_str().ok()?)?);
    (then - now).to_std().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        crate::config::Config::load(None).unwrap().webhooks
    }

    #[test]
    fn the_pauses_grow_and_end_after_about_three_days() {
        let settings = settings();
        let (mut age, mut pauses) = (Duration::ZERO, Vec::new());
        while let Some(pause) = next_try(&settings, i32::try_from(pauses.len() + 1).unwrap(), age, None, 0.5) {
            pauses.push(pause);
            age += pause;
        }
        assert_eq!(pauses[..4].iter().map(Duration::as_secs).collect::<Vec<_>>(), [5, 20, 80, 320]);
        assert!(pauses.iter().all(|pause| *pause <= settings.retry_delay_max) && (9..15).contains(&pauses.len()), "{pauses:?}");
        assert!(age > Duration::from_secs(60 * 3600) && age <= settings.retry_for, "{age:?}");
        let [least, most] = [0.0, 1.0].map(|lot| next_try(&settings, 1, Duration::ZERO, None, lot).unwrap());
        assert_eq!((least, most), (Duration::from_secs(4), Duration::from_secs(6)));
        assert!(next_try(&settings, i32::MAX, Duration::ZERO, None, 1.0).is_some(), "no overflow");
    }

    #[test]
    fn a_receiver_s_wish_is_heard_within_limits() {
        let settings = settings();
        let with = |asked| next_try(&settings, 1, Duration::ZERO, Some(Duration::from_secs(asked)), 0.5).unwrap();
        assert_eq!(with(1), Duration::from_secs(5), "never sooner than we would");
        assert_eq!(with(600), Duration::from_secs(600));
        assert_eq!(with(u64::MAX), settings.retry_delay_max);
    }

    #[test]
    fn both_forms_of_retry_after_are_read() {
        let read = |value: &str| {
            let date = "Wed, 21 Oct 2015 07:28:00 GMT".parse().unwrap();
            retry_after(&HeaderMap::from_iter([(RETRY_AFTER, value.parse().unwrap()), (DATE, date)]))
        };
        assert_eq!(read("120"), Some(Duration::from_secs(120)));
        assert_eq!(read("Wed, 21 Oct 2015 07:30:00 GMT"), Some(Duration::from_secs(120)));
        for none in ["-1", "soon", "Wed, 21 Oct 2015 07:00:00 GMT", ""] {
            assert_eq!(read(none), None, "{none}");
        }
    }
}
