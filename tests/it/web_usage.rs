//! What turns have cost, over HTTP: in reach of the token only.

use serde_json::json;
use sqlx::PgPool;
use turnmill::store::Bounds;

use crate::harness::Fleet;
use crate::site::Site;

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_token_sees_what_turns_in_its_reach_have_cost_and_no_other_s(pool: PgPool) {
    let fleet = Fleet::new(pool.clone());
    let worker = fleet.worker("a").await;
    let mut turns = Vec::new();
    for (tenant, usd) in [("x", 0.25), ("y", 0.5), ("x", 1.0)] {
        turns.push(fleet.enqueue_for(tenant).await);
        worker.work(&fleet, usd).await;
    }
    let site = Site::start(pool).await;
    let session = site.get(&format!("/v1/turns/{}", turns[0])).await.ok()["session_id"].as_str().unwrap().to_owned();
    let bound = |project: Option<&str>, tenant: Option<&str>| Bounds {
        project_id: project.map(str::to_owned),
        tenant_id: tenant.map(str::to_owned),
        session_id: None,
    };
    let usd = async |bounds: &Bounds, query: &str| {
        let token = site.token(&["usage:read"], bounds.clone()).await;
        let said = site.as_who(&token, "GET", &format!("/v1/usage{query}"), None).await.ok();
        let sums = said["data"].as_array().unwrap().clone();
        sums.iter().map(|sum| sum["usd"].as_f64().unwrap()).sum::<f64>()
    };
    let all = Bounds::default();
    for by in ["day", "tenant", "project", "pool", "model", "session", "turn"] {
        let query = format!("?by={by}");
        for (bounds, expected) in
            [(&all, 1.75), (&bound(None, Some("x")), 1.25), (&bound(Some("p-y"), None), 0.5), (&bound(Some("p-y"), Some("x")), 0.0)]
        {
            let found = usd(bounds, &query).await;
            assert!((found - expected).abs() < 1e-9, "{by} within {bounds:?}: {found}, not {expected}");
        }
    }
    let of_x = bound(None, Some("x"));
    assert!(usd(&of_x, "?tenant_id=y").await.abs() < 1e-9, "what is out of reach is not there");
    let of_session = usd(&of_x, &format!("?session_id={session}")).await;
    assert!((of_session - 0.25).abs() < 1e-9, "{of_session}");
    assert!(usd(&all, "?tenant_id=y").await > 0.4);
    assert!(usd(&all, "?since=2020-01-01&until=2020-02-01").await.abs() < 1e-9);

    let tenants = site.get("/v1/usage?by=tenant&limit=1").await.ok();
    assert_eq!((&tenants["data"][0]["key"], &tenants["data"][0]["turns"], &tenants["more"]), (&json!("x"), &json!(2), &json!(true)));
    let detail = site.get(&format!("/v1/turns/{}", turns[0])).await.ok();
    assert_eq!(detail["cost_usd"], 0.25);
    assert!(detail["sandbox_s"].is_number(), "{detail}");
    for (query, parameter) in [
        ("?by=colour", "by"),
        ("?since=soon", "since"),
        ("?since=2026-02-01&until=2026-01-01", "since"),
        ("?since=2020-01-01&until=2026-01-01", "since"),
        ("?limit=0", "limit"),
        ("?tenant_id=", "tenant_id"),
        ("?user=x", "user"),
    ] {
        let wrong = site.get(&format!("/v1/usage{query}")).await;
        assert_eq!((wrong.status.as_u16(), wrong.problem()), (400, "invalid_request"), "{query}");
        assert_eq!(wrong.body["errors"][0]["parameter"], parameter, "{}", wrong.body);
    }
}
