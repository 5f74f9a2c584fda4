//! What the database says, kept for a moment for all who look; and the last that it said, when it is late.
//!
//! A page is made of parts. A part whose statement fails or takes too long shows what it showed last, and says how old
//! that is: never a blank page because of one slow answer.

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

/// What the dashboard keeps between requests.
#[derive(Debug)]
pub struct Desk {
    /// For forms, on a server without tokens.
    pub secret: [u8; 32],
    kept: Mutex<HashMap<&'static str, Kept>>,
}

impl Default for Desk {
    fn default() -> Self {
        Self { secret: rand::random(), kept: Mutex::default() }
    }
}

/// The last answer to one question, and when it came.
type Last = Option<(Instant, Arc<dyn Any + Send + Sync>)>;

/// One asks for all who wait.
#[derive(Debug, Clone, Default)]
struct Kept(Arc<tokio::sync::Mutex<Last>>);

/// A part of a page.
#[derive(Debug, Clone)]
pub struct Part<T> {
    /// What is known; `None`: nothing yet.
    pub value: Option<Arc<T>>,
    /// How old that is, if it could not be asked anew.
    pub late: Option<Duration>,
}

impl<T> Part<T> {
    /// Whether there is something to warn of.
    pub fn is_late(&self) -> bool {
        self.late.is_some()
    }
}

impl Desk {
    /// What is known of a part is no longer true: somebody has just changed it.
    pub fn forget(&self, name: &'static str) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// The answer to a question that nobody else asks, which is not kept.
    pub async fn once<T>(&self, name: &'static str, asked: impl Future<Output = sqlx::Result<T>>) -> Part<T> {
        match asked.await {
            Ok(value) => Part { value: Some(Arc::new(value)), late: None },
            Err(error) => {
                warn!(%error, part = name, "The part {name} of the dashboard is late: {error}");
                Part { value: None, late: Some(Duration::ZERO) }
            }
        }
    }

    /// The answer to a question that was asked less than `fresh` ago, or a new one; if there is none, the last one.
    pub async fn part<T: Any + Send + Sync, F: Future<Output = sqlx::Result<T>>>(
        &self,
        name: &'static str,
        fresh: Duration,
        ask: impl FnOnce() -> F,
    ) -> Part<T> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default().clone();
        let mut last = kept.0.lock().await;
        let known = |last: &Last| last.as_ref().and_then(|(at, value)| Some((at.elapsed(), value.clone().downcast::<T>().ok()?)));
        if let Some((age, value)) = known(&last)
            && age < fresh
        {
            return Part { value: Some(value), late: None };
        }
        match ask().await {
            Ok(value) => {
                let value = Arc::new(value);
                *last = Some((Instant::now(), value.clone()));
                Part { value: Some(value), late: None }
            }
            Err(error) => {
                warn!(%error, part = name, "The part {name} of the dashboard is late: {error}");
                let (age, value) = known(&last).unzip();
                Part { value, late: Some(age.unwrap_or_default()) }
            }
        }
    }
}
