//! Acting on many turns at once: first what would be done, to how many; then it is done, to exactly these.

use std::fmt::Write as _;

use askama::Template;
use axum::extract::{Query, State};
use axum::response::Response;
use futures::StreamExt as _;
use serde::Deserialize;

use super::super::App;
use super::super::problem::Problem;
use super::deed::{Ask, Deed, Field};
use super::enter::{Viewer, may_not_act};
use super::frame::{Fault, Frame, page_of};
use super::look;
use super::turns::Wanted;
use crate::store::{FoundTurn, TurnFilter, is_outage, refused};

/// Turns of one act.
const TURNS_MAX: usize = 1000;

/// Of these, so many at once.
const AT_ONCE: usize = 4;

/// Between ids in a form.
const BETWEEN: char = '\u{1f}';

/// What is to be done to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Cancel,
    Retry,
}

impl Act {
    fn read(text: &str) -> Result<Self, Problem> {
        match text {
            "cancel" => Ok(Self::Cancel),
            "retry" => Ok(Self::Retry),
            _ => Err(Problem::parameter("act", "act is cancel or retry")),
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::Retry => "retry",
        }
    }

    /// Whether it does something to this one; of those that a filter finds, only what has failed is done again.
    fn fits(self, turn: &FoundTurn, picked: bool) -> bool {
        let unfinished = matches!(turn.status.as_str(), "pending" | "in_progress");
        match self {
            Self::Cancel => unfinished,
            Self::Retry if picked => !unfinished,
            Self::Retry => turn.status == "failed",
        }
    }
}

/// Says what would be done. `act`, and either `pick`s or a filter.
pub async fn ask(viewer: Viewer, State(app): State<App>, Query(pairs): Query<Vec<(String, String)>>) -> Result<Response, Fault> {
    if !viewer.may_act {
        return Err(may_not_act());
    }
    let value = |name: &str| pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str()).unwrap_or_default();
    let act = Act::read(value("act"))?;
    let picks: Vec<String> = pairs.iter().filter(|(key, _)| key == "pick").map(|(_, id)| id.clone()).take(TURNS_MAX).collect();
    let wanted: Wanted = serde_urlencoded::from_str(&serde_urlencoded::to_string(&pairs).unwrap_or_default()).unwrap_or_default();
    let picked = !picks.is_empty() || value("of") == "picked";
    let filter = if picked { TurnFilter { ids: Some(picks), ..TurnFilter::default() } } else { wanted.filter()? };
    let found = app.store.find_turns(&filter, &None, i64::try_from(TURNS_MAX).unwrap_or(0)).await?;
    let fit: Vec<&FoundTurn> = found.turns.iter().filter(|turn| act.fits(turn, picked)).collect();
    let running = fit.iter().filter(|turn| turn.status == "in_progress").count();
    let others = found.turns.len() - fit.len();
    let many = |n: usize| if n == 1 { "1 turn".to_owned() } else { format!("{} turns", look::count(n)) };
    let mut about = match act {
        _ if fit.is_empty() => "Nothing would change.".to_owned(),
        Act::Cancel => format!(
            "This will cancel {}: {} at once, {} that run within a second or so.",
            many(fit.len()),
            look::count(fit.len() - running),
            look::count(running)
        ),
        Act::Retry => format!("This will enqueue {} again, each as a new turn at the end of its session.", many(fit.len())),
    };
    if others > 0 {
        let _ = write!(about, " {} of those found {} not concerned.", look::count(others), if others == 1 { "is" } else { "are" });
    }
    if found.next.is_some() {
        let _ = write!(about, " There are more: only the newest {} were looked at.", look::count(found.turns.len()));
    }
    let ids = fit.iter().map(|turn| turn.id.as_str()).collect::<Vec<_>>().join(&BETWEEN.to_string());
    let literals = fit.iter().map(|turn| look::sql(&turn.id)).collect::<Vec<_>>().join(", ");
    let call = if act == Act::Cancel { "cancel_turn(id, 'why')" } else { "retry_turn(id)" };
    let name = if act == Act::Cancel { "Cancel" } else { "Run again:" };
    Ok(Ask {
        frame: Frame::of(&viewer, "/ops/turns", "Confirm"),
        part: viewer.part,
        title: format!("{name} {}?", many(fit.len())),
        about,
        to: "/ops/bulk".to_owned(),
        fields: vec![Field::hidden("act", act.word()), Field::hidden("ids", ids), Field::hidden("back", wanted.query())],
        button: format!("{name} {}", many(fit.len())),
        harmful: act == Act::Cancel,
        nothing: fit.is_empty(),
        sql: (!fit.is_empty()).then(|| format!("SELECT id, turnmill.{call} FROM unnest(ARRAY[{literals}]) AS id;")),
        curl: None,
        shell: None,
        back: format!("/ops/turns?{}", wanted.query()),
    }
    .show())
}

/// What the form sends.
#[derive(Debug, Deserialize)]
pub struct Many {
    act: String,
    #[serde(default)]
    ids: String,
    #[serde(default)]
    back: String,
}

#[derive(Template)]
#[template(path = "bulk_done.html")]
struct Done {
    frame: Frame,
    title: String,
    refused: Vec<(String, String)>,
    back: String,
}

/// Does it, each in a transaction of its own: one that is refused or locked holds up no other.
pub async fn act(viewer: Viewer, State(app): State<App>, deed: Deed<Many>) -> Result<Response, Fault> {
    let act = Act::read(&deed.what.act)?;
    let ids: Vec<&str> = deed.what.ids.split(BETWEEN).filter(|id| !id.is_empty()).take(TURNS_MAX).collect();
    let (app, actor) = (&app, &deed.actor);
    let one = |id: &str| {
        let id = id.to_owned();
        async move {
            let done = match act {
                Act::Cancel => app.store.cancel_by(actor, &id).await.map(drop),
                Act::Retry => app.store.retry_by(actor, &id).await.map(drop),
            };
            (id, done.map_err(|error| words(&error)))
        }
    };
    let done: Vec<_> = futures::stream::iter(ids).map(one).buffered(AT_ONCE).collect().await;
    let refused: Vec<(String, String)> = done.iter().filter_map(|(id, done)| Some((id.clone(), done.clone().err()?))).collect();
    let count = look::count(done.len() - refused.len());
    let title = if act == Act::Cancel { format!("{count} cancelled or being cancelled") } else { format!("{count} enqueued again") };
    let back = format!("/ops/turns?{}", deed.what.back);
    Ok(page_of(&Done { frame: Frame::of(&viewer, "/ops/turns", "Done"), title, refused, back }))
}

/// What went wrong with one, for people.
fn words(error: &sqlx::Error) -> String {
    if let Some(refused) = refused(error) {
        return refused.message;
    }
    tracing::warn!(%error, "A turn of a bulk act was not done: {error}");
    if is_outage(error) { "the database did not answer in time; try this one again" } else { "it could not be done" }.to_owned()
}
