//! Stopping and resuming the fleet, and its budget of a day.

use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse as _, Redirect, Response};
use serde::Deserialize;

use super::super::App;
use super::super::problem::Problem;
use super::deed::{Ask, Deed, Field};
use super::enter::{Viewer, may_not_act};
use super::frame::Fault;
use super::look;
use super::money::{self, Budget};
use crate::store::{Actor, FleetChange, FleetMoney};

/// Longest reason of a stop that the database takes.
const WHY_MAX: usize = 1000;

/// What is done to the fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Stop,
    Resume,
    Budget,
}

impl Act {
    fn read(word: &str) -> Result<Self, Problem> {
        match word {
            "stop" => Ok(Self::Stop),
            "resume" => Ok(Self::Resume),
            "budget" => Ok(Self::Budget),
            _ => Err(Problem::not_found()),
        }
    }
}

/// What its forms have.
#[derive(Debug, Default, Deserialize)]
pub struct Wished {
    budget: Option<String>,
}

impl Wished {
    fn budget(&self) -> Result<Option<f64>, Problem> {
        money::budget(self.budget.as_deref().unwrap_or_default())
    }
}

/// Asks whether, and says what it comes to.
pub async fn ask(
    viewer: Viewer,
    State(app): State<App>,
    Path(word): Path<String>,
    Query(wished): Query<Wished>,
) -> Result<Response, Fault> {
    if !viewer.may_act {
        return Err(may_not_act());
    }
    let act = Act::read(&word)?;
    let (fleet, queue) = tokio::try_join!(app.store.fleet_money(), app.store.queue())?;
    let ready = look::count(queue.iter().map(|pool| pool.ready).sum::<i64>());
    let running = look::count(queue.iter().map(|pool| pool.running).sum::<i64>());
    let ask = Ask::of(&viewer, "/ops/spend", format!("/ops/fleet/{word}"), "/ops/spend");
    let ask = match act {
        Act::Stop => Ask {
            title: "Stop the fleet?".to_owned(),
            about: match &fleet.stopped_reason {
                Some(why) => format!("It is stopped already: “{why}”. Nothing would change."),
                None => format!(
                    "No turn starts any more, in no pool, from the next claim on.\n\n{running} that run go on to their ends, and cost what they \
                     cost: cancel what must not. {ready} that could start wait, and say “fleet stopped”. New ones can be enqueued."
                ),
            },
            button: "Stop the fleet".to_owned(),
            harmful: true,
            nothing: fleet.stopped_at.is_some(),
            shell: Some("turnmill fleet stop --reason 'why'".to_owned()),
            sql: Some("SELECT turnmill.stop_fleet('why');".to_owned()),
            ..ask
        },
        Act::Resume => Ask {
            title: "Resume the fleet?".to_owned(),
            about: match &fleet.stopped_reason {
                Some(why) => format!("It was stopped for this: “{why}”.\n\nTurns start again from the next claim on: {ready} could."),
                None => "It is not stopped. Nothing would change.".to_owned(),
            },
            button: "Resume the fleet".to_owned(),
            nothing: fleet.stopped_at.is_none(),
            shell: Some("turnmill fleet resume".to_owned()),
            sql: Some("SELECT turnmill.resume_fleet();".to_owned()),
            ..ask
        },
        Act::Budget => budget(&fleet, wished.budget()?, ask),
    };
    Ok(ask.show())
}

fn budget(fleet: &FleetMoney, limit: Option<f64>, ask: Ask) -> Ask {
    let nothing = limit == fleet.budget_usd_per_day;
    let spent = look::dollars(fleet.today_usd);
    let was_spent = Budget { spent: fleet.today_usd, limit: fleet.budget_usd_per_day }.is_spent();
    let means = match (Budget { spent: fleet.today_usd, limit }.is_spent(), was_spent) {
        (true, _) if limit == Some(0.0) => "No turn starts any more, until it is more. What runs goes on.".to_owned(),
        (true, _) => format!("{spent} are spent today: no turn of anybody starts before midnight UTC. What runs goes on."),
        (false, true) => format!("{spent} are spent today: turns that wait for it start again at once."),
        (false, false) => format!("{spent} are spent today."),
    };
    Ask {
        title: "Change the fleet's budget?".to_owned(),
        about: if nothing {
            "It is so already. Nothing would change.".to_owned()
        } else {
            format!(
                "Budget of a UTC day, of all turns together: {} → {}. {means}",
                money::said(fleet.budget_usd_per_day),
                money::said(limit)
            )
        },
        fields: vec![Field::hidden("budget", money::given(limit))],
        button: "Change the budget".to_owned(),
        nothing,
        shell: (!nothing).then(|| format!("turnmill fleet set --budget-usd-per-day {}", money::given(limit))),
        ..ask
    }
}

/// Why it was stopped, with who did it; never longer than it may be.
fn why(actor: &Actor) -> String {
    format!("by {}: {}", actor.name, actor.reason).chars().take(WHY_MAX).collect()
}

/// Does it.
pub async fn act(State(app): State<App>, Path(word): Path<String>, deed: Deed<Wished>) -> Result<Response, Fault> {
    let change = match Act::read(&word)? {
        Act::Stop => FleetChange::Stop(why(&deed.actor)),
        Act::Resume => FleetChange::Resume,
        Act::Budget => FleetChange::Budget(deed.what.budget()?),
    };
    if !app.store.change_fleet_by(&deed.actor, &change).await? {
        return Err(Problem::new("conflict", "The fleet is so already. Nothing was changed.").into());
    }
    for part in ["fleet money", "acts on the fleet", "verdict", "waits", "oldest", "tenants"] {
        app.desk.forget(part);
    }
    Ok(Redirect::to("/ops/spend").into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_a_stop_names_who_did_it_and_fits_whatever_they_write() {
        let actor = Actor { name: "ann".to_owned(), token_id: None, reason: "ü".repeat(1000) };
        assert_eq!(why(&actor).chars().count(), WHY_MAX);
        assert!(why(&actor).starts_with("by ann: ü"));
    }
}
