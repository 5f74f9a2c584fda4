//! `turnmill enqueue --attach`: files of this machine for the agent's working directory.

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

/// Reads each `FILE[=PATH]`, as `enqueue_turn` takes attachments.
pub(super) fn attachments(given: &[String]) -> anyhow::Result<Value> {
    given.iter().map(|given| attachment(given)).collect()
}

fn attachment(given: &str) -> anyhow::Result<Value> {
    // A file may have a "=" in its name.
    let (file, path) = match given.rsplit_once('=') {
        Some((file, path)) if !std::path::Path::new(given).exists() => (file, path.to_owned()),
        _ => {
            let name = std::path::Path::new(given).file_name().with_context(|| format!("--attach {given:?} names no file"))?;
            (
                given,
                name.to_str().with_context(|| format!("the name of {given:?} is no UTF-8; give another: --attach FILE=PATH"))?.to_owned(),
            )
        }
    };
    let content = std::fs::read(file).with_context(|| format!("reading {file:?}; --attach takes FILE or FILE=PATH"))?;
    let mut attachment = json!({ "path": path, "base64": BASE64.encode(content) });
    // The worker knows images by their bytes.
    if let Some(media_type) = mime_guess::from_path(file).first_raw() {
        attachment["media_type"] = media_type.into();
    }
    Ok(attachment)
}
