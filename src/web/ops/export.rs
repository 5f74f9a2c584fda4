//! A turn as one file: for an incident's report, or for somebody without access. It needs nothing and loads nothing.

use askama::Template;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::Response;

use super::super::App;
use super::super::request::Id;
use super::assets::STYLE;
use super::enter::Viewer;
use super::frame::{Fault, page_of};
use super::look;
use super::said::{Transcript, shown};
use super::turn::{TurnLive, file_name};
use crate::store::SaidPage;

/// Blocks that a file has at most.
const BLOCKS_MAX: usize = 10_000;

/// Characters of text that a file has at most, or a block more.
const BYTES_MAX: usize = 24 << 20;

#[derive(Template)]
#[template(path = "export.html")]
struct Export {
    style: &'static str,
    live: TurnLive,
    said: Transcript,
    cut: bool,
}

/// Gives the file.
pub async fn file(_: Viewer, State(app): State<App>, Id(id): Id) -> Result<Response, Fault> {
    let live = TurnLive::of(&app, &id, false, true).await?;
    let began = live.turn().started_at.unwrap_or(live.turn().created_at);
    let (mut blocks, mut bytes, mut more) = (Vec::new(), 0, true);
    while more && blocks.len() < BLOCKS_MAX && bytes < BYTES_MAX {
        let after = blocks.last().map_or(-1, |block: &crate::store::Said| block.seq);
        let page = app.store.said_after(&id, after, 500).await?;
        more = page.more;
        bytes += page.blocks.iter().map(|block| block.content.to_string().len()).sum::<usize>();
        blocks.extend(page.blocks);
    }
    let mut said = Transcript::of(&id, &SaidPage::default(), began, true);
    said.blocks = shown(&blocks, began, None);
    said.links = false;
    let mut response = page_of(&Export { style: STYLE, live, said, cut: more });
    let name = file_name(&id);
    let headers = response.headers_mut();
    if let Ok(disposition) = HeaderValue::from_str(&format!("attachment; filename=\"turn-{name}.html\"")) {
        headers.insert(header::CONTENT_DISPOSITION, disposition);
    }
    Ok(response)
}
