//! The dashboard, at `/ops`: pages made here, patched in place by htmx, with nothing from elsewhere.
//!
//! | file | part |
//! | --- | --- |
//! | `mod` | every route, in one table; the pages of the bar on top |
//! | `enter` | who is looking: a token, shown once, becomes a cookie |
//! | `frame` | what every page has around it, and what is said when there is none |
//! | `deed` | acting: the form that asks for a reason, and the checks before anything is done |
//! | `look` | ages, amounts, states: one way to show each |
//! | `glance` | what the database says, kept for a moment, and the last that it said when it is late |
//! | `assets` | scripts and styles, in the binary |
//! | `now`, `turns`, `turn`, `sessions`, `sandboxes`, `workers`, `pools`, `tenants`, `spend`, `audit` | a page each, some with one for each thing |
//! | `pool_set`, `tenant_set`, `fleet_set` | what is set of a pool, a tenant, the fleet |
//! | `money` | what was spent against what may be |
//! | `lists` | what lists have in common |
//! | `bulk` | cancel and retry of many turns |
//! | `tiles` | the numbers of *Now* |
//! | `lanes`, `said`, `markdown`, `export` | a turn's time axis, its transcript, and both as one file |
//!
//! # Adding a page
//!
//! 1. Its SQL in `src/store`, read with `glance` so that it is cut after 1.5 s and can write nothing; bounded, without
//!    counting history.
//! 2. A file here with a handler that takes [`enter::Viewer`] and gives `Result<Response, frame::Fault>`; a template in
//!    `templates/` that extends `base.html` and has a field `frame` from [`frame::Frame::of`].
//! 3. Its route in [`routes`], its line in [`PAGES`]. A part that refreshes itself is a route of its own that gives the
//!    inside of an element with `hx-trigger="tick from:body"`: `assets/ops.js` ticks while somebody looks.
//! 4. For an act: a store function that calls `audit::note` in its transaction, a GET that shows [`deed::Ask`], and a POST
//!    that takes [`deed::Deed`], which has checked scope, origin, form token and reason.

mod assets;
mod audit;
mod bulk;
mod deed;
mod enter;
mod export;
mod fleet_set;
mod frame;
mod glance;
mod lanes;
mod lists;
mod look;
mod markdown;
mod money;
mod now;
mod pool_set;
mod pools;
mod said;
mod sandboxes;
mod sessions;
mod spend;
mod tenant_set;
mod tenants;
mod tiles;
mod turn;
mod turns;
mod workers;

use axum::Router;
use axum::response::Redirect;
use axum::routing::{get, post};

use super::App;
pub use enter::{OpsAct, OpsRead};
pub use glance::Desk;

/// The pages of the bar on top: path, name, key to press after `g`.
pub const PAGES: &[(&str, &str, char)] = &[
    ("/ops", "Now", 'n'),
    ("/ops/turns", "Turns", 't'),
    ("/ops/sessions", "Sessions", 's'),
    ("/ops/sandboxes", "Sandboxes", 'b'),
    ("/ops/workers", "Workers", 'w'),
    ("/ops/pools", "Pools", 'p'),
    ("/ops/tenants", "Tenants", 'e'),
    ("/ops/spend", "Spend", 'm'),
    ("/ops/audit", "Audit", 'a'),
];

/// Every route of the dashboard. None is in the API's document: they are for people.
pub fn routes() -> Router<App> {
    Router::new()
        .route("/ops", get(now::page))
        .route("/ops/", get(|| async { Redirect::permanent("/ops") }))
        .route("/ops/now", get(now::live))
        .route("/ops/now/charts", get(now::charts))
        .route("/ops/turns", get(turns::page))
        .route("/ops/list", get(turns::list))
        .route("/ops/bulk", get(bulk::ask).post(bulk::act))
        .route("/ops/turns/{turn_id}", get(turn::page))
        .route("/ops/turns/{turn_id}/live", get(turn::live))
        .route("/ops/turns/{turn_id}/said", get(said::page))
        .route("/ops/turns/{turn_id}/blocks/{seq}", get(said::block))
        .route("/ops/turns/{turn_id}/journal/{attempt}", get(turn::journal))
        .route("/ops/turns/{turn_id}/export", get(export::file))
        .route("/ops/turns/{turn_id}/cancel", get(turn::ask_cancel).post(turn::cancel))
        .route("/ops/turns/{turn_id}/retry", get(turn::ask_retry).post(turn::retry))
        .route("/ops/sessions", get(sessions::page))
        .route("/ops/session-list", get(sessions::list))
        .route("/ops/sessions/{session_id}", get(sessions::one))
        .route("/ops/sessions/{session_id}/live", get(sessions::live))
        .route("/ops/sandboxes", get(sandboxes::page))
        .route("/ops/sandbox-list", get(sandboxes::live))
        .route("/ops/sandboxes/{sandbox_id}/kill", get(sandboxes::ask_kill).post(sandboxes::kill))
        .route("/ops/workers", get(workers::page))
        .route("/ops/worker-list", get(workers::live))
        .route("/ops/workers/{worker_id}/drain", get(workers::ask_drain).post(workers::drain))
        .route("/ops/pools", get(pools::page))
        .route("/ops/pool-list", get(pools::live))
        .route("/ops/pools/{pool}", get(pools::one))
        .route("/ops/pools/{pool}/live", get(pools::one_live))
        .route("/ops/pools/{pool}/set", get(pool_set::ask).post(pool_set::set))
        .route("/ops/pools/{pool}/{act}", get(pools::ask).post(pools::act))
        .route("/ops/tenants", get(tenants::page))
        .route("/ops/tenant-list", get(tenants::list))
        .route("/ops/tenant", get(tenants::one))
        .route("/ops/tenant/live", get(tenants::one_live))
        .route("/ops/tenant/set", get(tenant_set::ask).post(tenant_set::set))
        .route("/ops/spend", get(spend::page))
        .route("/ops/spend/now", get(spend::live))
        .route("/ops/spend/days", get(spend::days))
        .route("/ops/spend/sums", get(spend::sums))
        .route("/ops/fleet/{act}", get(fleet_set::ask).post(fleet_set::act))
        .route("/ops/audit", get(audit::page))
        .route("/ops/enter", get(enter::ask).post(enter::enter))
        .route("/ops/leave", post(enter::leave))
        .route("/ops/assets/{name}", get(assets::serve))
        .fallback(frame::missing)
}
