//! What is set of a tenant: its weight, its limit, its budget. First what would change, then it is changed; a setting that was
//! not touched is not written, so that two people who change different ones don't undo each other's.

use axum::extract::{Query, State};
use axum::response::{IntoResponse as _, Redirect, Response};
use serde::Deserialize;

use super::super::App;
use super::super::problem::Problem;
use super::deed::{Ask, Deed, Field};
use super::enter::{Viewer, may_not_act};
use super::frame::Fault;
use super::look;
use super::money::{self, Budget};
use super::tenants::card;
use crate::store::{TenantCard, TenantChange};

/// Largest weight.
const WEIGHT_MAX: f64 = 1e6;

/// What a form has; a setting that is not in it stays.
#[derive(Debug, Default, Deserialize)]
pub struct Settings {
    #[serde(default)]
    id: String,
    weight: Option<String>,
    running_max: Option<String>,
    budget: Option<String>,
    /// What the form showed: what is as it was nobody has touched, whatever it is by now.
    was_weight: Option<String>,
    was_running_max: Option<String>,
    was_budget: Option<String>,
}

fn weight(text: &str) -> Result<f64, Problem> {
    let weight = text.trim().parse().ok().filter(|weight: &f64| *weight > 0.0 && *weight <= WEIGHT_MAX);
    weight.ok_or_else(|| Problem::body("/weight", format!("Weight is a number above 0, up to 1000000, not “{}”.", text.trim())))
}

fn running_max(text: &str) -> Result<Option<i32>, Problem> {
    let text = text.trim();
    if text.is_empty() || text == "none" {
        return Ok(None);
    }
    text.parse().ok().filter(|most: &i32| *most >= 0).map(Some).ok_or_else(|| {
        Problem::body("/running_max", format!("Most running turns is a whole number from 0, or nothing for no limit, not “{text}”."))
    })
}

impl Settings {
    fn read(&self) -> Result<TenantChange, Problem> {
        let touched = |now: &'_ Option<String>, was: &Option<String>| now.clone().filter(|now| Some(now) != was.as_ref());
        Ok(TenantChange {
            weight: touched(&self.weight, &self.was_weight).as_deref().map(weight).transpose()?,
            running_max: touched(&self.running_max, &self.was_running_max).as_deref().map(running_max).transpose()?,
            budget_usd_per_day: touched(&self.budget, &self.was_budget).as_deref().map(money::budget).transpose()?,
        })
    }
}

/// Without what is so already.
#[expect(clippy::float_cmp, reason = "a number that was typed, and the same number as it was shown")]
fn changes(wished: TenantChange, card: &TenantCard) -> TenantChange {
    TenantChange {
        weight: wished.weight.filter(|weight| *weight != card.weight),
        running_max: wished.running_max.filter(|most| *most != card.running_max),
        budget_usd_per_day: wished.budget_usd_per_day.filter(|budget| *budget != card.budget_usd_per_day),
    }
}

fn is_nothing(change: TenantChange) -> bool {
    change.weight.is_none() && change.running_max.is_none() && change.budget_usd_per_day.is_none()
}

/// As fields of a form.
fn fields(id: &str, change: TenantChange) -> Vec<Field> {
    let all = [
        ("id", Some(id.to_owned())),
        ("weight", change.weight.map(|weight| weight.to_string())),
        ("running_max", change.running_max.map(|most| most.map_or("none".to_owned(), |most| most.to_string()))),
        ("budget", change.budget_usd_per_day.map(money::given)),
    ];
    all.into_iter().filter_map(|(name, value)| Some(Field::hidden(name, value?))).collect()
}

fn command(id: &str, change: TenantChange) -> String {
    let flags = [
        change.weight.map(|weight| format!(" --weight {weight}")),
        change.running_max.map(|most| most.map_or(" --unlimited".to_owned(), |most| format!(" --running-max {most}"))),
        change.budget_usd_per_day.map(|budget| format!(" --budget-usd-per-day {}", money::given(budget))),
    ];
    let flags: String = flags.into_iter().flatten().collect();
    format!("turnmill tenant set{flags} {}", look::shell(id))
}

/// What each change comes to.
fn consequences(card: &TenantCard, change: TenantChange) -> Vec<String> {
    let weight = change.weight.map(|weight| {
        format!(
            "Weight: {} → {weight}. While others wait too, a pool starts {weight} of its turns for each one of a tenant of weight 1.",
            card.weight
        )
    });
    let running_max = change.running_max.map(|most| limit_means(card, most));
    let budget = change.budget_usd_per_day.map(|limit| budget_means(card, limit));
    [weight, running_max, budget].into_iter().flatten().collect()
}

fn limit_means(card: &TenantCard, most: Option<i32>) -> String {
    let words = |most: Option<i32>| most.map_or("no limit".to_owned(), look::count);
    let change = format!("Most running turns: {} → {}.", words(card.running_max), words(most));
    match most {
        Some(most) if card.running >= i64::from(most) => {
            let then = if most == 0 { "none starts any more".to_owned() } else { format!("the next starts when fewer than {most} run") };
            format!("{change} {} run now: none is stopped, and {then}.", look::count(card.running))
        }
        _ => format!("{change} {} run now.", look::count(card.running)),
    }
}

fn budget_means(card: &TenantCard, limit: Option<f64>) -> String {
    let change = format!("Budget of a UTC day: {} → {}.", money::said(card.budget_usd_per_day), money::said(limit));
    let spent = look::dollars(card.today_usd);
    match (Budget { spent: card.today_usd, limit }.is_spent(), card.is_over_budget()) {
        (true, _) if limit == Some(0.0) => format!("{change} None of its turns starts any more, until it has one. What runs goes on."),
        (true, _) => format!("{change} {spent} are spent today: none of its turns starts before midnight UTC. What runs goes on."),
        (false, true) => format!("{change} {spent} are spent today: its turns that wait for the budget start again at once."),
        (false, false) => format!("{change} {spent} are spent today."),
    }
}

/// Says what would change.
pub async fn ask(viewer: Viewer, State(app): State<App>, Query(settings): Query<Settings>) -> Result<Response, Fault> {
    if !viewer.may_act {
        return Err(may_not_act());
    }
    let card = card(&app, &settings.id).await?;
    let change = changes(settings.read()?, &card);
    let nothing = is_nothing(change);
    Ok(Ask {
        title: format!("Change tenant {}?", card.id),
        about: if nothing { "All of it is so already. Nothing would change.".to_owned() } else { consequences(&card, change).join("\n\n") },
        fields: fields(&card.id, change),
        button: "Change the tenant".to_owned(),
        nothing,
        shell: (!nothing).then(|| command(&card.id, change)),
        ..Ask::of(&viewer, "/ops/tenants", "/ops/tenant/set", look::tenant_href(&card.id))
    }
    .show())
}

/// Changes it.
pub async fn set(State(app): State<App>, deed: Deed<Settings>) -> Result<Response, Fault> {
    let card = card(&app, &deed.what.id).await?;
    let change = changes(deed.what.read()?, &card);
    if is_nothing(change) || !app.store.change_tenant_by(&deed.actor, &card.id, change).await? {
        return Err(Problem::new("conflict", format!("Tenant {} is so already. Nothing was changed.", card.id)).into());
    }
    app.desk.forget("tenants");
    Ok(Redirect::to(&look::tenant_href(&card.id)).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_understood_or_refused_with_what_to_give() {
        for wrong in ["0", "-1", "1000001", "NaN", "heavy", ""] {
            assert!(weight(wrong).unwrap_err().detail.contains("above 0"), "{wrong}");
        }
        for (text, most) in [("", None), ("none", None), (" 4 ", Some(4)), ("0", Some(0))] {
            assert_eq!(running_max(text).unwrap(), most, "{text}");
        }
        for wrong in ["-1", "1.5", "many", "99999999999"] {
            assert!(running_max(wrong).unwrap_err().detail.contains("from 0"), "{wrong}");
        }
    }

    #[test]
    fn the_command_changes_the_same_whatever_the_tenant_is_called() {
        let change = TenantChange { weight: Some(2.0), running_max: Some(None), budget_usd_per_day: Some(None) };
        assert_eq!(command("acme", change), "turnmill tenant set --weight 2 --unlimited --budget-usd-per-day none acme");
        let one = TenantChange { running_max: Some(Some(3)), ..TenantChange::default() };
        assert_eq!(command("it's; rm -rf /", one), r"turnmill tenant set --running-max 3 'it'\''s; rm -rf /'");
        assert_eq!(command("--weight", one), "turnmill tenant set --running-max 3 -- --weight");
    }
}
