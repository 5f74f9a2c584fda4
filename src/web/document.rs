//! The OpenAPI 3.1 document, made from the handlers, and a page that shows it: no script, nothing from elsewhere.

use std::fmt::Write as _;
use std::sync::OnceLock;

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Map, Value, json};
use utoipa::OpenApi as _;
use utoipa::openapi::OpenApi;

use super::problem::{CODES, Problem};

const ABOUT: &str = "Runs coding-agent turns durably. A *session* is a conversation; each *turn* of it is one user message and \
everything the agent does about it; its answer are *blocks*, in order, while they come.\n\nErrors are `application/problem+json` \
(RFC 9457) with a stable `code`. Every answer has an `X-Request-Id`. What a token can't reach looks as if it were not there.";

const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

/// What the handlers don't say themselves.
pub fn base() -> OpenApi {
    #[derive(utoipa::OpenApi)]
    #[openapi(
        info(title = "Turnmill", description = ABOUT),
        components(schemas(Problem)),
        tags(
            (name = "Sessions", description = "Conversations"),
            (name = "Turns", description = "User messages, and what becomes of them"),
            (name = "Read", description = "Answers, while they come"),
            (name = "Webhooks", description = "Who is told that turns have ended"),
            (name = "Keys", description = "Users' own keys to the model"),
            (name = "Usage", description = "What turns have cost"),
            (name = "Queue", description = "How full it is"),
            (name = "Health", description = "For load balancers"),
            (name = "Document", description = "This document"))
    )]
    struct Base;
    Base::openapi()
}

/// With what is the same for all operations: the token, and the problems that any of them may have.
pub fn complete(document: OpenApi) -> Value {
    let mut document = serde_json::to_value(document).unwrap_or_default();
    document["components"]["securitySchemes"] = json!({
        "token": { "type": "http", "scheme": "bearer", "description": "turnmill token create NAME" },
        "session_token": { "type": "apiKey", "in": "query", "name": "access_token",
            "description": "For EventSource, which can't set headers: a session's token, and no other" } });
    document["components"]["responses"] = json!({ "Problem": { "description": "See its code",
        "content": { "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } } } });
    for (path, item) in document["paths"].as_object_mut().into_iter().flatten() {
        for method in METHODS {
            if let Some(operation) = item.get_mut(method) {
                common(path, method, operation);
            }
        }
    }
    document
}

fn common(path: &str, method: &str, operation: &mut Value) {
    let is_open = operation.get("security").is_some();
    operation["security"] = if is_open {
        json!([])
    } else if method == "get" && (path.ends_with("/stream") || path.ends_with("/blocks")) {
        json!([{ "token": [] }, { "session_token": [] }])
    } else {
        json!([{ "token": [] }])
    };
    let mut statuses = vec!["403", "500", "503"];
    if !is_open {
        statuses.extend(["400", "401"]);
    }
    if path.contains('{') {
        statuses.push("404");
    }
    if operation.get("requestBody").is_some() {
        statuses.extend(["408", "413", "415"]);
    }
    for status in statuses {
        if operation["responses"].get(status).is_none() {
            operation["responses"][status] = json!({ "$ref": "#/components/responses/Problem" });
        }
    }
}

fn document() -> &'static Value {
    static DOCUMENT: OnceLock<Value> = OnceLock::new();
    DOCUMENT.get_or_init(super::openapi)
}

/// The OpenAPI document
#[utoipa::path(get, path = "/openapi.json", tag = "Document", operation_id = "openapi", security(()),
    responses((status = 200, description = "OpenAPI 3.1", body = Object)))]
pub async fn json() -> Response {
    axum::Json(document()).into_response()
}

/// The document for people
#[utoipa::path(get, path = "/docs", tag = "Document", operation_id = "docs", security(()),
    responses((status = 200, description = "A page", body = String, content_type = "text/html")))]
pub async fn page() -> Response {
    static PAGE: OnceLock<String> = OnceLock::new();
    html(PAGE.get_or_init(|| render(document())))
}

/// A page of our own: nothing in it comes from elsewhere, and nobody may frame it.
fn html(text: &'static str) -> Response {
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'self'; connect-src 'self'; base-uri 'none'; \
                  form-action 'none'; frame-ancestors 'none'";
    let mut response = text.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a;background:#fff}\
h2{margin-top:3rem;border-bottom:1px solid #8884}h3{margin-top:2.5rem}code,pre{font:14px/1.4 ui-monospace,monospace}\
pre{overflow:auto;padding:.75rem;background:#8881;border-radius:6px}table{border-collapse:collapse;width:100%}\
td,th{text-align:left;vertical-align:top;padding:.3rem .6rem .3rem 0;border-bottom:1px solid #8883}\
.m{display:inline-block;min-width:4.5rem;font-weight:600}:target{background:#fd03}\
@media(prefers-color-scheme:dark){body{color:#e6e6e6;background:#161616}a{color:#8ab4f8}}";

fn render(document: &Value) -> String {
    let mut page = String::from("<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">");
    let _ = write!(
        page,
        "<meta name=\"viewport\" content=\"width=device-width\"><title>Turnmill API</title><style>{STYLE}</style></head><body>"
    );
    let _ = write!(
        page,
        "<h1>Turnmill API</h1>{}<p><a href=\"/openapi.json\">openapi.json</a> · ",
        prose(&text(&document["info"]["description"]))
    );
    let tags: Vec<String> = document["tags"].as_array().into_iter().flatten().map(|tag| text(&tag["name"])).collect();
    for tag in &tags {
        let _ = write!(page, "<a href=\"#{0}\">{0}</a> · ", escape(tag));
    }
    page.push_str("<a href=\"#errors\">Errors</a></p>");
    let empty = Map::new();
    for tag in &tags {
        let _ = write!(page, "<h2 id=\"{0}\">{0}</h2>", escape(tag));
        for (path, item) in document["paths"].as_object().unwrap_or(&empty) {
            for method in METHODS {
                let operation = &item[method];
                if operation["tags"][0] == tag.as_str() {
                    render_operation(&mut page, document, method, path, operation);
                }
            }
        }
    }
    page.push_str("<h2 id=\"errors\">Errors</h2><table><tr><th>code</th><th>status</th><th>means</th><th>do</th></tr>");
    for (code, status, title, what) in CODES {
        let _ = write!(
            page,
            "<tr id=\"{code}\"><td><code>{code}</code></td><td>{status}</td><td>{}</td><td>{}</td></tr>",
            escape(title),
            escape(what)
        );
    }
    page.push_str("</table></body></html>");
    page
}

fn render_operation(page: &mut String, document: &Value, method: &str, path: &str, operation: &Value) {
    let (id, summary) = (text(&operation["operationId"]), text(&operation["summary"]));
    let _ = write!(page, "<h3 id=\"{}\">{}</h3>", escape(&id), escape(&summary));
    let _ = write!(
        page,
        "<p><code><span class=\"m\">{}</span>{}</code></p>{}",
        method.to_uppercase(),
        escape(path),
        prose(&text(&operation["description"]))
    );
    let mut rows = String::new();
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        let place = text(&parameter["in"]);
        row(&mut rows, &text(&parameter["name"]), &place, &parameter["schema"], &text(&parameter["description"]));
    }
    let body = &operation["requestBody"]["content"]["application/json"]["schema"];
    fields(&mut rows, document, body, "body");
    for (status, response) in operation["responses"].as_object().into_iter().flatten().filter(|(status, _)| status.starts_with('2')) {
        let _ = write!(rows, "<tr><td><b>{status}</b></td><td></td><td></td><td>{}</td></tr>", escape(&text(&response["description"])));
        fields(&mut rows, document, &response["content"]["application/json"]["schema"], "answer");
    }
    let _ = write!(page, "<table><tr><th>name</th><th>in</th><th>type</th><th></th></tr>{rows}</table>");
}

fn fields(rows: &mut String, document: &Value, schema: &Value, place: &str) {
    let schema = resolve(document, schema);
    let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let mark = if place == "body" && required.contains(&name.as_str()) { " (required)" } else { "" };
        row(rows, name, &format!("{place}{mark}"), field, &text(&field["description"]));
    }
}

/// What a reference, or an optional one, stands for.
fn resolve<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    let one = schema["oneOf"].as_array().and_then(|choices| choices.iter().find(|choice| choice.get("$ref").is_some())).unwrap_or(schema);
    match one["$ref"].as_str().and_then(|at| at.strip_prefix('#')) {
        Some(pointer) => document.pointer(pointer).unwrap_or(one),
        None => one,
    }
}

fn row(rows: &mut String, name: &str, place: &str, schema: &Value, description: &str) {
    let kind = match &schema["type"] {
        Value::String(kind) => kind.clone(),
        Value::Array(kinds) => kinds.iter().map(text).collect::<Vec<_>>().join(" or "),
        _ => ["$ref", "oneOf"].iter().find_map(|key| name_of(&schema[*key])).unwrap_or_default(),
    };
    let _ = write!(
        rows,
        "<tr><td><code>{}</code></td><td>{}</td><td>{}</td><td>{}</td></tr>",
        escape(name),
        escape(place),
        escape(&kind),
        code(&escape(description))
    );
}

fn name_of(schema: &Value) -> Option<String> {
    let reference = schema.as_str().or_else(|| schema.as_array()?.iter().find_map(|choice| choice["$ref"].as_str()))?;
    reference.rsplit('/').next().map(str::to_owned)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn prose(markdown: &str) -> String {
    markdown.split("\n\n").filter(|part| !part.is_empty()).fold(String::new(), |page, part| page + "<p>" + &code(&escape(part)) + "</p>")
}

/// What is between backticks.
fn code(escaped: &str) -> String {
    let mut out = String::new();
    for (nth, part) in escaped.split('`').enumerate() {
        let (open, close) = if nth % 2 == 1 { ("<code>", "</code>") } else { ("", "") };
        let _ = write!(out, "{open}{part}{close}");
    }
    out
}

/// Text, harmless in HTML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
