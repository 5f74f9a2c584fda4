//! Whoever wants to is told when a turn ends: at least once, signed, whatever dies; and nobody can make us talk to whom we shouldn't.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use sqlx::PgPool;
use turnmill::keys::Vault;
use turnmill::store::{Enqueue, Room};
use turnmill::turn::Ending;
use turnmill::webhooks::{Courier, Lookup, Wanted};

use crate::harness::{Fleet, Running, settle_and_free, until};
use crate::receiver::{Manner, Receiver, RunningCourier, config};

const HOLD: Duration = Duration::from_secs(30);

const ROOM: Room = Room { free: 100, free_costly: 100, of_one: 100 };

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn an_end_is_told_by_the_transaction_that_makes_it_and_in_words_that_verify(pool: PgPool) {
    let (fleet, receiver) = (Fleet::new(pool), Receiver::start(Manner::Status(204)).await);
    let endpoint = fleet.endpoint(&receiver.url).await;
    let turn = Enqueue {
        prompt: "a secret".to_owned(),
        project_id: Some("p1".to_owned()),
        session_id: Some("s1".to_owned()),
        tenant_id: Some("t1".to_owned()),
        user_id: Some("u1".to_owned()),
        ..Enqueue::default()
    };
    let turn = fleet.store.enqueue(&turn).await.unwrap().turn_id.unwrap();
    let mut tx = fleet.pool.begin().await.unwrap();
    sqlx::query("SELECT turnmill.cancel_turn($1)").bind(&turn).execute(&mut *tx).await.unwrap();
    let inside: i64 = sqlx::query_scalar("SELECT count(*) FROM turnmill.outbox").fetch_one(&mut *tx).await.unwrap();
    tx.rollback().await.unwrap();
    assert_eq!((inside, fleet.told(&endpoint).await.len()), (1, 0), "it is there with the end, and not without");

    // Whoever settles dies right after his commit: there is nobody to tell it yet.
    settle_and_free(&fleet.store, &fleet.worker("w").await.claim_one().await, Ending::Completed).await;
    assert_eq!(fleet.told(&endpoint).await[0].state, "pending");
    let courier = RunningCourier::start(&fleet, &config());
    let got = receiver.has_got(1).await.remove(0);
    assert!(got.verifies_with(&endpoint.secret) && !got.verifies_with("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"), "{got:?}");
    assert_eq!(got.headers["content-type"], "application/json");
    let body = got.json();
    let data = json!({ "turn_id": turn, "session_id": "s1", "ordinal": 1, "project_id": "p1", "tenant_id": "t1", "user_id": "u1",
        "status": "completed", "error_code": null, "retry_of": null });
    assert_eq!((&body["type"], &body["data"]), (&json!("turn.completed"), &data), "ids and statuses, and nothing that was said");
    let at = chrono::DateTime::parse_from_rfc3339(body["timestamp"].as_str().unwrap()).unwrap();
    assert_eq!(Some(at.to_utc()), fleet.turn(&turn).await.completed_at);
    let delivery = fleet.delivery_that(&endpoint, "delivered", |d| d.state == "delivered").await;
    assert_eq!((delivery.id.as_str(), delivery.attempts, delivery.last_status), (got.id(), 1, Some(204)));
    assert!(fleet.endpoint_now(&endpoint).await.last_success_at.is_some());
    courier.stop().await;
    assert_eq!(receiver.got().len(), 1, "once");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn every_way_to_end_is_told_to_those_who_want_to_hear_it(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let nobody_there = "http://127.0.0.1:9/";
    let wants = async |events: &[&str], project: Option<&str>, tenant: Option<&str>| {
        let events = events.iter().map(|&event| event.to_owned()).collect();
        let (project_id, tenant_id) = (project.map(str::to_owned), tenant.map(str::to_owned));
        fleet.endpoint_that(Wanted { url: nobody_there.to_owned(), events, project_id, tenant_id, ..Wanted::default() }).await
    };
    let all = wants(&[], None, None).await;
    let failed = wants(&["turn.failed"], None, None).await;
    let ours = wants(&[], Some("p1"), None).await;
    let (theirs, tenants) = (wants(&[], Some("p2"), None).await, wants(&[], None, Some("t1")).await);
    let both = wants(&[], Some("p1"), Some("t1")).await;
    let disabled = wants(&[], None, None).await;
    fleet
        .sql(
            "UPDATE turnmill.webhook_endpoints SET state = 'disabled', disabled_at = now(), disabled_reason = 'x' WHERE id = $1",
            &disabled.endpoint_id,
        )
        .await;

    let worker = fleet.worker("w").await;
    for ending in [Ending::Completed, Ending::Failed, Ending::Cancelled] {
        fleet.enqueue("hi").await;
        settle_and_free(&fleet.store, &worker.claim_one().await, ending).await;
    }
    let (cancelled, withdrawn) = (fleet.enqueue("hi").await.turn_id, fleet.enqueue("hi").await.turn_id);
    fleet.store.cancel(&cancelled, None).await.unwrap();
    fleet.store.withdraw(&withdrawn).await.unwrap();
    let of_tenant =
        Enqueue { prompt: "x".to_owned(), project_id: Some("p1".to_owned()), tenant_id: Some("t1".to_owned()), ..Enqueue::default() };
    let of_tenant = fleet.store.enqueue(&of_tenant).await.unwrap().turn_id.unwrap();
    fleet.store.cancel(&of_tenant, None).await.unwrap();

    let kinds = async |made: &_| fleet.told(made).await.into_iter().map(|delivery| delivery.kind).collect::<Vec<_>>();
    let (completed, fails, cancel) = ("turn.completed", "turn.failed", "turn.cancelled");
    assert_eq!(kinds(&all).await, [completed, fails, cancel, cancel, cancel, cancel]);
    assert_eq!(fleet.told(&all).await[1].payload["data"]["error_code"], "some_code");
    assert_eq!(kinds(&failed).await, [fails]);
    assert_eq!(kinds(&ours).await.len(), 6);
    assert!(kinds(&theirs).await.is_empty() && kinds(&disabled).await.is_empty());
    assert_eq!(fleet.told(&tenants).await[0].turn_id.as_ref(), Some(&of_tenant));
    assert_eq!((kinds(&tenants).await.len(), kinds(&both).await.len()), (1, 1));
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn the_end_of_a_turn_waits_for_nobody_who_sits_on_an_endpoint(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let endpoint = fleet.endpoint("http://127.0.0.1:9/").await;
    let mut sits = fleet.pool.begin().await.unwrap();
    sqlx::query("DELETE FROM turnmill.webhook_endpoints").execute(&mut *sits).await.unwrap();
    fleet.turns_end(1).await;
    sits.rollback().await.unwrap();
    assert_eq!(fleet.told(&endpoint).await.len(), 1);
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn what_a_worker_s_own_turns_end_with_is_told_at_once(pool: PgPool) {
    let receiver = Receiver::start(Manner::Status(200)).await;
    let running = Running::with(pool, |config| {
        config.webhooks.allow_loopback();
        // Longer than anybody waits: it is not found by looking.
        config.webhooks.poll = Duration::from_secs(3600);
    })
    .await;
    let fleet = running.fleet.clone();
    let endpoint = fleet.endpoint(&receiver.url).await;
    let turn = fleet.enqueue("hi").await.turn_id;
    assert_eq!(receiver.has_got(1).await[0].json()["data"]["turn_id"], turn.as_str());
    let delivered = fleet.delivery_that(&endpoint, "delivered", |d| d.state == "delivered").await;
    let took = delivered.ended_at.unwrap() - delivered.created_at;
    assert!(took < chrono::TimeDelta::seconds(5), "{took}");
    running.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_failed_delivery_is_tried_again_later_and_later_under_the_same_id_and_given_up_in_the_end(pool: PgPool) {
    let (fleet, receiver) = (Fleet::new(pool), Receiver::start(Manner::Status(500)).await);
    let endpoint = fleet.endpoint(&receiver.url).await;
    fleet.turns_end(1).await;
    let courier = RunningCourier::start(&fleet, &config());
    let mut pauses = Vec::new();
    for attempts in 1..=4 {
        until("a try has failed", || async { (fleet.endpoint_now(&endpoint).await.failures == attempts).then_some(()) }).await;
        let failed = fleet.told(&endpoint).await.remove(0);
        assert_eq!((failed.attempts, receiver.got().len()), (attempts, usize::try_from(attempts).unwrap()));
        assert_eq!(
            (failed.state.as_str(), failed.last_status, failed.last_error.as_deref()),
            ("pending", Some(500), Some("it answered 500 Internal Server Error"))
        );
        pauses.push((failed.next_at - failed.last_attempt_at.unwrap()).as_seconds_f64());
        if attempts < 4 {
            fleet.all_is_due(&endpoint).await;
        }
    }
    for (pause, wanted) in pauses.iter().zip([5.0, 20.0, 80.0, 320.0]) {
        assert!((wanted * 0.79..wanted * 1.21 + 5.0).contains(pause), "{pauses:?}");
    }
    receiver.answers(Manner::Later(503, "700"));
    fleet.all_is_due(&endpoint).await;
    receiver.has_got(5).await;
    fleet
        .delivery_that(&endpoint, "as long as it asks", |d| {
            (d.next_at - d.last_attempt_at.unwrap()).num_seconds() >= 690 && d.last_status == Some(503)
        })
        .await;

    fleet.sql("UPDATE turnmill.outbox SET since = since - interval '3 days' WHERE endpoint_id = $1", &endpoint.endpoint_id).await;
    fleet.all_is_due(&endpoint).await;
    let given_up = fleet.delivery_that(&endpoint, "given up", |d| d.state == "failed").await;
    assert_eq!((given_up.attempts, given_up.last_status), (6, Some(503)));

    receiver.answers(Manner::Status(200));
    assert_eq!(fleet.store.replay_failed(&endpoint.endpoint_id, turnmill::store::Since::Ago(HOLD)).await.unwrap(), 1);
    let delivered = fleet.delivery_that(&endpoint, "replayed", |d| d.state == "delivered").await;
    assert_eq!((delivered.attempts, delivered.last_error), (1, None));
    let got = receiver.has_got(7).await;
    assert!(got.iter().all(|one| one.id() == delivered.id && one.body == got[0].body && one.verifies_with(&endpoint.secret)));
    assert_eq!(fleet.endpoint_now(&endpoint).await.failures, 0);
    courier.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn an_endpoint_that_fails_or_wants_to_be_left_in_peace_is_asked_for_none_of_what_waits(pool: PgPool) {
    let (fleet, receiver) = (Fleet::new(pool), Receiver::start(Manner::Later(429, "700")).await);
    let endpoint = fleet.endpoint(&receiver.url).await;
    fleet.turns_end(5).await;
    let other = Receiver::start(Manner::Status(200)).await;
    fleet.endpoint(&other.url).await;
    let mut config = config();
    config.webhooks.endpoint_deliveries_max = 1;
    let courier = RunningCourier::start(&fleet, &config);
    receiver.has_got(1).await;
    until("it is noted", || async { (fleet.endpoint_now(&endpoint).await.failures == 1).then_some(()) }).await;
    // Many looks later.
    fleet.turns_end(3).await;
    other.has_got(3).await;
    assert_eq!(receiver.got().len(), 1);
    let peace: f64 =
        sqlx::query_scalar("SELECT extract(epoch FROM not_before - last_failure_at)::float8 FROM turnmill.webhook_endpoints WHERE id = $1")
            .bind(&endpoint.endpoint_id)
            .fetch_one(&fleet.pool)
            .await
            .unwrap();
    assert!((690.0..710.0).contains(&peace), "{peace}");
    receiver.answers(Manner::Status(200));
    fleet.all_is_due(&endpoint).await;
    receiver.has_got(9).await;
    assert_eq!(fleet.endpoint_now(&endpoint).await.failures, 0);
    courier.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn an_endpoint_that_is_gone_is_disabled_at_once_and_what_waits_is_given_up(pool: PgPool) {
    let (fleet, receiver) = (Fleet::new(pool), Receiver::start(Manner::Status(410)).await);
    let endpoint = fleet.endpoint(&receiver.url).await;
    fleet.turns_end(3).await;
    let mut config = config();
    config.webhooks.endpoint_deliveries_max = 1;
    let courier = RunningCourier::start(&fleet, &config);
    until("it is disabled", || async { (fleet.endpoint_now(&endpoint).await.state == "disabled").then_some(()) }).await;
    let now = fleet.endpoint_now(&endpoint).await;
    assert_eq!(now.disabled_reason.as_deref(), Some("it answered 410 Gone"));
    courier.stop().await;
    assert_eq!(receiver.got().len(), 1, "and asked no more");
    fleet.store.sweep_outbox(config.webhooks.keep).await.unwrap();
    let told = fleet.told(&endpoint).await;
    assert!(told.iter().all(|delivery| delivery.state == "failed"), "{told:?}");
    assert_eq!(told.iter().filter(|delivery| delivery.last_error.as_deref() == Some("the endpoint was disabled")).count(), 2);
    fleet.turns_end(1).await;
    assert_eq!(fleet.told(&endpoint).await.len(), 3, "nor is it told later of what happens meanwhile");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn an_endpoint_is_disabled_when_it_has_failed_often_and_for_long(pool: PgPool) {
    let (fleet, receiver) = (Fleet::new(pool), Receiver::start(Manner::Status(500)).await);
    let endpoint = fleet.endpoint(&receiver.url).await;
    fleet.turns_end(1).await;
    let courier = RunningCourier::start(&fleet, &config());
    let fails = async |failures: i32| {
        fleet.all_is_due(&endpoint).await;
        until("it fails", || async { (fleet.endpoint_now(&endpoint).await.failures >= failures).then_some(()) }).await;
    };
    fails(1).await;
    // Often, but not for long.
    fleet.sql("UPDATE turnmill.webhook_endpoints SET failures = 30 WHERE id = $1", &endpoint.endpoint_id).await;
    fails(31).await;
    assert_eq!(fleet.endpoint_now(&endpoint).await.state, "enabled");
    // For long, but not often.
    fleet
        .sql(
            "UPDATE turnmill.webhook_endpoints SET failures = 18, failing_since = failing_since - interval '25 hours' WHERE id = $1",
            &endpoint.endpoint_id,
        )
        .await;
    fails(19).await;
    assert_eq!(fleet.endpoint_now(&endpoint).await.state, "enabled");
    fails(20).await;
    let now = fleet.endpoint_now(&endpoint).await;
    let why = now.disabled_reason.unwrap();
    assert!(
        now.state == "disabled" && why.starts_with("at least 20 deliveries in a row failed, for more than 1day; the last: it answered 500"),
        "{why}"
    );
    courier.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_redirect_is_not_followed_and_an_answer_without_end_is_not_read(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let elsewhere = Receiver::start(Manner::Status(200)).await;
    let sends_away = Receiver::start(Manner::Redirect(elsewhere.url.clone())).await;
    let (endless, hangs) = (Receiver::start(Manner::Endless).await, Receiver::start(Manner::Hang).await);
    let (away, talks, mute) = (fleet.endpoint(&sends_away.url).await, fleet.endpoint(&endless.url).await, fleet.endpoint(&hangs.url).await);
    fleet.turns_end(1).await;
    let mut config = config();
    config.webhooks.timeout = Duration::from_millis(400);
    let courier = RunningCourier::start(&fleet, &config);
    let failed = fleet.delivery_that(&away, "the redirect failed", |d| d.last_status == Some(302)).await;
    assert_eq!(failed.last_error.unwrap(), "it answered 302 Found: redirects are not followed; give the endpoint its final URL");
    fleet.delivery_that(&talks, "that it talks on is its own affair", |d| d.state == "delivered").await;
    let late = fleet.delivery_that(&mute, "it is too late", |d| d.last_error.is_some()).await;
    assert_eq!((late.last_status, late.last_error.as_deref()), (None, Some("no answer within 400ms")));
    courier.stop().await;
    assert!(elsewhere.got().is_empty());
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn private_networks_are_not_asked_whatever_a_url_or_a_name_says(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let (inner, other) = (Receiver::start(Manner::Status(200)).await, Receiver::at("127.0.0.2:0", Manner::Status(200)).await);
    let by_address = fleet.endpoint(&inner.url).await;
    let by_name = fleet.endpoint(&format!("http://inner.example:{}/", inner.port())).await;
    let tls = fleet.endpoint(&format!("https://[::ffff:7f00:1]:{}/", inner.port())).await;
    let mut settings = config().webhooks;
    settings.allow_networks = String::new();
    // Each name is this machine.
    let lookup: Lookup = Arc::new(|_| Box::pin(async { Ok(vec![IpAddr::from([127, 0, 0, 1])]) }));
    fleet.turns_end(1).await;
    let courier = RunningCourier::run(Courier::with_lookup(fleet.store.clone(), settings.clone(), Vault::default(), lookup).unwrap());
    for (endpoint, named) in [(&by_address, "127.0.0.1"), (&by_name, "inner.example"), (&tls, "::ffff:7f00:1")] {
        let failed = fleet.delivery_that(endpoint, "it is refused", |d| d.last_error.is_some()).await;
        let said = failed.last_error.unwrap();
        assert!(said.contains("127.0.0.1") && said.contains(" is in no public network; ") && said.starts_with(named), "{said}");
    }
    courier.stop().await;

    // A name that was good when it was first asked for, and then is another: what counts is what is connected to.
    fleet.sql("UPDATE turnmill.webhook_endpoints SET not_before = NULL WHERE id = $1", &by_address.endpoint_id).await;
    settings.allow_networks = "127.0.0.1".to_owned();
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    let lookup: Lookup = Arc::new(move |_| {
        let address = if counted.fetch_add(1, Ordering::SeqCst) == 0 { [127, 0, 0, 1] } else { [127, 0, 0, 2] };
        Box::pin(async move { Ok(vec![IpAddr::from(address)]) })
    });
    let rebound = fleet.endpoint(&format!("http://rebound.example:{}/", other.port())).await;
    // On both addresses the same port.
    let first = Receiver::at(&format!("127.0.0.1:{}", other.port()), Manner::Status(500)).await;
    fleet.turns_end(1).await;
    let courier = RunningCourier::run(Courier::with_lookup(fleet.store.clone(), settings, Vault::default(), lookup).unwrap());
    fleet.delivery_that(&rebound, "the first address is asked", |d| d.last_status == Some(500)).await;
    fleet.sql("UPDATE turnmill.webhook_endpoints SET failures = 0, failing_since = NULL WHERE id = $1", &rebound.endpoint_id).await;
    fleet.all_is_due(&rebound).await;
    let refused =
        fleet.delivery_that(&rebound, "the second is not", |d| d.last_error.as_ref().is_some_and(|e| e.contains("127.0.0.2"))).await;
    assert_eq!(
        refused.last_error.unwrap(),
        "rebound.example (127.0.0.2) is in no public network; webhooks.allow_networks names others that may be asked"
    );
    courier.stop().await;
    assert!(asked.load(Ordering::SeqCst) >= 2);
    assert_eq!(
        (inner.got().len(), other.got().len(), first.got().len()),
        (1, 0, 1),
        "the first courier asked nobody, the second whom it may"
    );
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn dead_endpoints_delay_nobody_else(pool: PgPool) {
    let (fleet, lives) = (Fleet::new(pool), Receiver::start(Manner::Status(200)).await);
    let mut dead = Vec::new();
    for _ in 0..3 {
        let receiver = Receiver::start(Manner::Hang).await;
        let made = fleet.endpoint(&receiver.url).await;
        dead.push((receiver, made));
    }
    let endpoint = fleet.endpoint(&lives.url).await;
    fleet.turns_end(40).await;
    let mut config = config();
    config.webhooks.deliveries_max = 4;
    config.webhooks.endpoint_deliveries_max = 2;
    config.webhooks.timeout = Duration::from_millis(500);
    let courier = RunningCourier::start(&fleet, &config);
    lives.has_got(40).await;
    let asked: usize = dead.iter().map(|(receiver, _)| receiver.got().len()).sum();
    assert!(asked < 20, "the living had to wait for {asked} timeouts");
    until("all are noted", || async { fleet.told(&endpoint).await.iter().all(|d| d.state == "delivered").then_some(()) }).await;
    courier.stop().await;
    assert_eq!(lives.got().len(), 40);
}

/// One that answers with 200 after seconds is no failure, and takes a try's place all the same.
#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn slow_endpoints_delay_nobody_else(pool: PgPool) {
    let (fleet, lives) = (Fleet::new(pool), Receiver::start(Manner::Status(200)).await);
    let mut slow = Vec::new();
    for _ in 0..6 {
        let receiver = Receiver::start(Manner::Slow(Duration::from_secs(1))).await;
        let made = fleet.endpoint(&receiver.url).await;
        slow.push((receiver, made));
    }
    fleet.turns_end(8).await;
    let mut config = config();
    config.webhooks.deliveries_max = 4;
    config.webhooks.endpoint_deliveries_max = 2;
    config.webhooks.timeout = Duration::from_secs(4);
    let courier = RunningCourier::start(&fleet, &config);
    // It learns who is slow, each once, before there is anything for the other.
    let asked = || slow.iter().map(|(receiver, _)| receiver.got().len()).sum::<usize>();
    until("all slow ones are known", || async { slow.iter().all(|(receiver, _)| !receiver.got().is_empty()).then_some(()) }).await;
    fleet.endpoint(&lives.url).await;
    let before = asked();
    fleet.turns_end(40).await;
    lives.has_got(40).await;
    let meanwhile = asked() - before;
    courier.stop().await;
    // Half of four at a time: two each second. Four would be twice that, and the forty would take as long as all of theirs.
    assert!(meanwhile < 30, "the quick one had to wait for {meanwhile} slow answers");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn two_workers_tell_each_thing_once(pool: PgPool) {
    let (fleet, receiver) = (Fleet::new(pool), Receiver::start(Manner::Status(200)).await);
    let endpoint = fleet.endpoint(&receiver.url).await;
    fleet.turns_end(60).await;
    let couriers = [RunningCourier::start(&fleet, &config()), RunningCourier::start(&fleet, &config())];
    until("all are delivered", || async { fleet.told(&endpoint).await.iter().all(|d| d.state == "delivered").then_some(()) }).await;
    for courier in couriers {
        courier.stop().await;
    }
    let mut ids: Vec<String> = receiver.got().iter().map(|got| got.id().to_owned()).collect();
    ids.sort_unstable();
    let told: Vec<String> = fleet.told(&endpoint).await.into_iter().map(|delivery| delivery.id).collect();
    assert_eq!(ids, told, "each once");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn whoever_dies_or_stops_in_the_middle_costs_a_delivery_nothing(pool: PgPool) {
    let (fleet, receiver) = (Fleet::new(pool), Receiver::start(Manner::Hang).await);
    let endpoint = fleet.endpoint(&receiver.url).await;
    fleet.turns_end(1).await;
    // One takes it and is heard of no more, for now.
    let dead = fleet.store.due_deliveries(ROOM, &[], &[], HOLD).await.unwrap();
    assert_eq!((dead.len(), fleet.store.due_deliveries(ROOM, &[], &[], HOLD).await.unwrap().len()), (1, 0), "taken is taken, for a time");
    fleet.all_is_due(&endpoint).await;

    // The next one is in the middle of it when its process ends in order: given back, as if it had not been tried.
    let courier = RunningCourier::start(&fleet, &config());
    receiver.has_got(1).await;
    courier.stop().await;
    let waits = &fleet.told(&endpoint).await[0];
    assert_eq!((waits.state.as_str(), waits.attempts, fleet.endpoint_now(&endpoint).await.failures), ("pending", 1, 0));

    receiver.answers(Manner::Status(200));
    let courier = RunningCourier::start(&fleet, &config());
    fleet.delivery_that(&endpoint, "delivered", |d| d.state == "delivered").await;
    // The dead one comes back, and is told that it is no longer its business.
    assert!(fleet.store.delivered(&dead[0], 200).await.unwrap().is_err());
    fleet.store.put_off(&dead[0], HOLD, None).await.unwrap();
    assert_eq!(fleet.told(&endpoint).await[0].state, "delivered");
    courier.stop().await;
    let got = receiver.got();
    assert_eq!((got.len(), got[0].id()), (2, got[1].id()), "at least once, under one id");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn while_secrets_are_exchanged_both_sign(pool: PgPool) {
    let (fleet, receiver) = (Fleet::new(pool), Receiver::start(Manner::Status(200)).await);
    let first = fleet.endpoint(&receiver.url).await;
    let courier = RunningCourier::start(&fleet, &config());
    let second = fleet.registry(&config()).rotate(&first.endpoint_id, None).await.unwrap().unwrap();
    fleet.turns_end(1).await;
    let got = receiver.has_got(1).await.remove(0);
    assert!(got.verifies_with(&first.secret) && got.verifies_with(&second.secret), "{got:?}");
    fleet.sql("UPDATE turnmill.webhook_endpoints SET old_secret_until = clock_timestamp() WHERE id = $1", &first.endpoint_id).await;
    fleet.turns_end(1).await;
    let got = receiver.has_got(2).await.remove(1);
    assert!(!got.verifies_with(&first.secret) && got.verifies_with(&second.secret));
    let third = fleet.registry(&config()).rotate(&first.endpoint_id, Some(Duration::ZERO)).await.unwrap().unwrap();
    fleet.turns_end(1).await;
    let got = receiver.has_got(3).await.remove(2);
    assert!(!got.verifies_with(&second.secret) && got.verifies_with(&third.secret), "a leaked one signs nothing more");
    courier.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn secrets_are_sealed_under_the_workers_key_and_without_it_nothing_is_sent_nor_held_against_anybody(pool: PgPool) {
    let (fleet, receiver) = (Fleet::new(pool), Receiver::start(Manner::Status(200)).await);
    let mut with_key = config();
    with_key.keys.master = Vault::new_key("k1").into();
    let wanted = Wanted { url: receiver.url.clone(), ..Wanted::default() };
    let endpoint = fleet.registry(&with_key).add(wanted).await.unwrap().unwrap();
    let row: serde_json::Value =
        sqlx::query_scalar("SELECT to_jsonb(e) FROM turnmill.webhook_endpoints e").fetch_one(&fleet.pool).await.unwrap();
    assert_eq!(row["secret_key_id"], "k1");
    let plain = base64::Engine::decode(&base64::prelude::BASE64_STANDARD, &endpoint.secret[6..]).unwrap();
    let hex = plain.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
    assert!(!row.to_string().contains(&hex) && !row.to_string().contains(&endpoint.secret[6..]), "{row}");

    fleet.turns_end(1).await;
    let without = RunningCourier::start(&fleet, &config());
    let waits = fleet.delivery_that(&endpoint, "it can't be signed", |d| d.last_error.is_some()).await;
    assert!(waits.last_error.as_ref().unwrap().contains("\"k1\", which this worker does not have (keys.master)"), "{waits:?}");
    assert_eq!((waits.state.as_str(), waits.attempts, fleet.endpoint_now(&endpoint).await.failures), ("pending", 0, 0));
    without.stop().await;
    fleet.all_is_due(&endpoint).await;
    let with = RunningCourier::start(&fleet, &with_key);
    assert!(receiver.has_got(1).await[0].verifies_with(&endpoint.secret));
    with.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn what_is_deleted_is_told_nothing_and_leaves_nothing(pool: PgPool) {
    let (fleet, receiver) = (Fleet::new(pool), Receiver::start(Manner::Status(200)).await);
    let (gone, stays) = (fleet.endpoint(&receiver.url).await, fleet.endpoint(&receiver.url).await);
    fleet.turns_end(3).await;
    assert!(fleet.store.delete_endpoint(&gone.endpoint_id).await.unwrap());
    // With the turn goes what is told of it.
    let erased = fleet.told(&stays).await[0].turn_id.clone().unwrap();
    fleet.sql("DELETE FROM turnmill.turns WHERE id = $1", &erased).await;
    let courier = RunningCourier::start(&fleet, &config());
    until("all are delivered", || async { fleet.told(&stays).await.iter().all(|d| d.state == "delivered").then_some(()) }).await;
    courier.stop().await;
    assert_eq!(receiver.got().len(), 2);
    let keep = Duration::from_secs(30 * 24 * 3600);
    fleet.sql("UPDATE turnmill.outbox SET ended_at = ended_at - interval '31 days' WHERE id = $1", &fleet.told(&stays).await[0].id).await;
    fleet.store.sweep_outbox(keep).await.unwrap();
    let left: Vec<String> = sqlx::query_scalar("SELECT endpoint_id FROM turnmill.outbox").fetch_all(&fleet.pool).await.unwrap();
    assert_eq!(left, [stays.endpoint_id], "the deleted one's are gone, and what has ended long ago");
}
