//! Somebody who looks at the dashboard and acts through it, over HTTP.

use reqwest::{Response, redirect};
use turnmill::store::Bounds;

use crate::harness::Fleet;
use crate::site::Site;

/// A browser without scripts.
pub struct Visitor<'a> {
    pub site: &'a Site,
    client: reqwest::Client,
    pub cookie: String,
}

impl<'a> Visitor<'a> {
    pub fn at(site: &'a Site) -> Self {
        let client = reqwest::Client::builder().redirect(redirect::Policy::none()).build().unwrap();
        Self { site, client, cookie: String::new() }
    }

    /// Somebody who is in, with these scopes.
    pub async fn with(site: &'a Site, scopes: &[&str]) -> Self {
        let token = site.token(scopes, Bounds::default()).await;
        let mut visitor = Self::at(site);
        let entered = visitor.enter(&token).await;
        assert_eq!(entered.status(), 303, "{}", entered.text().await.unwrap());
        visitor
    }

    pub async fn operator(site: &'a Site) -> Self {
        Self::with(site, &["ops:read", "ops:act"]).await
    }

    pub async fn enter(&mut self, token: &str) -> Response {
        let response = self.post("/ops/enter", &[("token", token)]).await;
        if let Some(cookie) = response.headers().get("set-cookie") {
            let text = cookie.to_str().unwrap();
            assert!(text.contains("HttpOnly") && text.contains("SameSite=Strict") && text.contains("Path=/ops"), "{text}");
            text.split(';').next().unwrap().clone_into(&mut self.cookie);
        }
        response
    }

    pub async fn get(&self, path: &str) -> Response {
        self.client.get(format!("{}{path}", self.site.url)).header("cookie", &self.cookie).send().await.unwrap()
    }

    pub async fn post(&self, path: &str, form: &[(&str, &str)]) -> Response {
        self.post_from(path, form, Some(&self.site.url)).await
    }

    pub async fn post_from(&self, path: &str, form: &[(&str, &str)], origin: Option<&str>) -> Response {
        let mut request = self.client.post(format!("{}{path}", self.site.url)).header("cookie", &self.cookie);
        if let Some(origin) = origin {
            request = request.header("origin", origin);
        }
        let body = serde_urlencoded::to_string(form).unwrap();
        request.header("content-type", "application/x-www-form-urlencoded").body(body).send().await.unwrap()
    }

    /// A page that is there.
    pub async fn page(&self, path: &str) -> String {
        let response = self.get(path).await;
        let (status, policy) = (response.status(), response.headers().get("content-security-policy").cloned());
        let text = response.text().await.unwrap();
        assert_eq!(status, 200, "{path}: {text}");
        let policy = policy.expect("every page has a policy");
        let policy = policy.to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
        for inline in ["<script>", " style=\"", " onclick=", "javascript:"] {
            assert!(!text.contains(inline), "{path} has {inline}");
        }
        text
    }

    /// What forms of this visit have in them.
    pub async fn form_token(&self, path: &str) -> String {
        let page = self.page(path).await;
        let at = page.find("name=\"form_token\" value=\"").expect("there is a form") + 25;
        page[at..].split('"').next().unwrap().to_owned()
    }

    /// Does something as its form does it.
    pub async fn act(&self, path: &str, form: &[(&str, &str)]) -> Response {
        let token = self.form_token(path).await;
        let all: Vec<(&str, &str)> = form.iter().copied().chain([("form_token", token.as_str())]).collect();
        self.post(path.split('?').next().unwrap(), &all).await
    }
}

/// Everything that was done: act, subject, actor, reason; newest first.
pub async fn audit(fleet: &Fleet) -> Vec<(String, String, String, String)> {
    let rows = fleet.store.audit(None, None, 100).await.unwrap();
    rows.into_iter().map(|row| (row.act, row.subject, row.actor, row.reason)).collect()
}
