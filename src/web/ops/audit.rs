//! *Audit*: who pressed what, and why.

use askama::Template;
use axum::extract::{Query, State};
use axum::response::Response;
use serde::Deserialize;

use super::super::App;
use super::enter::Viewer;
use super::frame::{Fault, Frame, page_of};
use super::look;
use crate::store::AuditRow;

/// Entries of a page.
const PAGE: i64 = 100;

#[derive(Template)]
#[template(path = "audit.html")]
struct AuditPage {
    frame: Frame,
    rows: Vec<AuditRow>,
    below: Option<i64>,
}

impl AuditPage {
    fn href(row: &AuditRow) -> String {
        let subject = look::encoded(&row.subject);
        match row.kind.as_str() {
            "turn" => format!("/ops/turns/{subject}"),
            "pool" => format!("/ops/pools/{subject}"),
            "tenant" => look::tenant_href(&row.subject),
            "fleet" => "/ops/spend".to_owned(),
            "worker" => format!("/ops/sandboxes?worker={subject}"),
            _ => String::new(),
        }
    }
}

/// Where to begin.
#[derive(Debug, Deserialize)]
pub struct Below {
    below: Option<i64>,
}

/// The page.
pub async fn page(viewer: Viewer, State(app): State<App>, Query(query): Query<Below>) -> Result<Response, Fault> {
    let mut rows = app.store.audit(None, query.below, PAGE + 1).await?;
    let more = rows.len() > usize::try_from(PAGE).unwrap_or(0);
    rows.truncate(usize::try_from(PAGE).unwrap_or(0));
    let below = rows.last().map(|row| row.id).filter(|_| more);
    Ok(page_of(&AuditPage { frame: Frame::of(&viewer, "/ops/audit", "Audit"), rows, below }))
}
