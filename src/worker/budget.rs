//! What a turn may still spend, and how far its agent's word for what it has spent is taken.

use crate::agent::Spent;
use crate::store::Claimed;
use crate::turn::Happened;

/// What one call of a model costs at most, in dollars: by so much an agent may go over its budget.
const ONE_CALL_USD: f64 = 50.0;

/// What an attempt says that it has spent, as far as that can be: who prints it may lie, and what is booked holds others up.
pub(super) fn believed(job: &Claimed, spent: Option<Spent>) -> Option<Spent> {
    match job.budget_left_usd() {
        Some(left) => spent.map(|spent| spent.at_most(left.max(0.0) + ONE_CALL_USD)),
        None => spent,
    }
}

/// Whether the turn may not spend anything more, once its attempt has cost this.
pub(super) fn over_budget(job: &Claimed, cost_usd: Option<f64>) -> Option<Happened> {
    let (budget_usd, cost_usd) = (job.budget_usd()?, cost_usd.unwrap_or(0.0));
    let over = job.budget_left_usd()? <= cost_usd;
    over.then_some(Happened::BudgetSpent { budget_usd, spent_usd: job.spent_usd + cost_usd })
}
