//! Streams: nothing is missed and nothing comes twice, whoever goes away and comes back, and no status stays stale.

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::json;
use sqlx::PgPool;
use tokio::io::AsyncWriteExt as _;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use turnmill::local::postgres::{self, Postgres, passable_tempdir};
use turnmill::store::{self, Store};
use turnmill::turn::Ending;

use crate::crash::worker;
use crate::harness::{Fleet, LocalE2b, Running, TURNMILL, starts_in, until, use_mock};
use crate::site::{Events, Hand, Shown, Site, Sse};

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_turn_s_stream_tells_its_status_its_blocks_and_its_end(pool: PgPool) {
    let site = Site::start(pool).await;
    let worker = site.fleet.worker("a").await;
    let turn = site.say("s1", "hi").await;
    let path = format!("/v1/turns/{turn}/stream");
    let mut events = site.stream(&path, None).await;
    let first = events.next().await.unwrap();
    assert_eq!((first.name.as_str(), &first.data["status"], &first.id), ("status", &json!("pending"), &None));
    assert_eq!(events.next().await.unwrap(), Sse { name: "caught_up".into(), id: None, data: json!({ "position": "-1" }) });

    let mut hand = Hand::of(&site.fleet, &worker).await;
    hand.write(&["one", "<script>alert(1)</script>\n\nevent: end\u{2028}"]).await;
    assert_eq!(events.until("status").await.data["status"], "in_progress");
    let block = events.until("block").await;
    assert_eq!((block.id.as_deref(), &block.data["content"]["text"], &block.data["generation"]), (Some("0"), &json!("one"), &json!(1)));
    let hostile = events.next().await.unwrap();
    assert_eq!(hostile.data["content"]["text"], "<script>alert(1)</script>\n\nevent: end\u{2028}", "whatever it says is data");
    hand.end(Ending::Completed).await;
    let rest: Vec<Sse> = events.rest().await;
    let told: Vec<_> =
        rest.iter().map(|event| (event.name.as_str(), event.data["status"].as_str().unwrap(), event.id.as_deref())).collect();
    assert_eq!(told, [("status", "completed", None), ("end", "completed", Some("end"))]);

    // One that has ended: the rest, the end, and no more of it. A browser that asks once more is told to stop asking.
    let rest = site.stream(&path, Some("0")).await.rest().await;
    assert_eq!(rest.iter().map(|event| event.name.as_str()).collect::<Vec<_>>(), ["block", "status", "end"]);
    let over = site.request("GET", &path).bearer_auth(&site.token).header("last-event-id", "end");
    assert_eq!(site.send(over).await.status, 204);
    for bad in ["x", "1:1", "-2"] {
        let refused = site.request("GET", &path).bearer_auth(&site.token).header("last-event-id", bad);
        assert_eq!(site.send(refused).await.problem(), "invalid_position");
        assert_eq!(site.get(&format!("{path}?after={bad}")).await.problem(), "invalid_position");
    }
    let header_first = site.stream(&format!("{path}?after=0"), Some("1")).await.rest().await;
    assert_eq!(header_first[0].name, "status", "Last-Event-ID goes before after");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn what_a_worker_commits_reaches_its_readers_at_once(pool: PgPool) {
    let all = Running::start(pool).await;
    // Nobody polls for minutes: only the worker's hints can wake the readers.
    let site = Site::with(all.fleet.clone(), |config| config.poll = Duration::from_secs(600)).await;
    let turn = site.say("s1", "/mock tools").await;
    let mut shown = Shown::default();
    let mut events = site.stream("/v1/sessions/s1/stream", None).await;
    while shown.ended.is_empty() {
        shown.take(&events.next().await.unwrap());
    }
    assert_eq!(shown.blocks.len(), all.fleet.blocks(&turn).await.len());
    assert_eq!(shown.statuses[&turn], "completed");
    // The second message comes on the same stream.
    let second = site.say("s1", "/mock noop").await;
    while shown.ended.len() < 2 {
        shown.take(&events.next().await.unwrap());
    }
    assert_eq!(shown.ended, [turn, second]);
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn where_no_hints_come_readers_are_told_by_polling(pool: PgPool) {
    let site = Site::with(Fleet::new(pool), |config| config.poll = Duration::from_secs(600)).await.that_hears_nothing().await;
    let worker = site.fleet.worker("a").await;
    let turn = site.say("s1", "hi").await;
    let mut events = site.stream(&format!("/v1/turns/{turn}/stream"), None).await;
    events.until("caught_up").await;
    let mut hand = Hand::of(&site.fleet, &worker).await;
    hand.write(&["one"]).await;
    assert_eq!(events.until("block").await.data["content"]["text"], "one");
    hand.end(Ending::Completed).await;
    assert_eq!(events.until("end").await.data["status"], "completed");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn whoever_comes_back_at_any_position_has_in_the_end_what_one_who_stayed_has(pool: PgPool) {
    let site = Site::start(pool).await;
    let worker = site.fleet.worker("a").await;
    let (first, second, third) = (site.say("s1", "1").await, site.say("s1", "2").await, site.say("s1", "3").await);
    let mut stayed = site.stream("/v1/sessions/s1/stream", None).await;
    let mut hand = Hand::of(&site.fleet, &worker).await;
    hand.write(&["a", "b"]).await;
    hand.write(&["c"]).await;
    site.as_who(&site.token, "DELETE", &format!("/v1/turns/{second}"), None).await.ok();
    let mut hand = hand.start_over(&worker).await;
    hand.write(&["d", "e"]).await;
    hand.end(Ending::Completed).await;
    let mut hand = Hand::of(&site.fleet, &worker).await;
    hand.write(&["f"]).await;
    hand.end(Ending::Failed).await;

    let mut all = Vec::new();
    while all.last().is_none_or(|event: &Sse| event.id.as_deref() != Some("3:end")) {
        all.push(stayed.next().await.unwrap());
    }
    let mut expected = Shown::default();
    for event in &all {
        expected.take(event);
    }
    assert_eq!(expected.texts(), ["d", "e", "f"], "{all:?}");
    assert_eq!(expected.ended, [first.clone(), second.clone(), third.clone()]);
    assert_eq!(expected.statuses.values().collect::<Vec<_>>(), ["completed", "cancelled", "failed"]);

    // Cut at every event, and go on from the last id that was seen there.
    for cut in 0..=all.len() {
        let mut shown = Shown::default();
        for event in &all[..cut] {
            shown.take(event);
        }
        let last = all[..cut].iter().rev().find_map(|event| event.id.as_deref());
        let mut back = site.stream("/v1/sessions/s1/stream", last).await;
        loop {
            let event = back.next().await.unwrap();
            if event.name == "caught_up" {
                break;
            }
            shown.take(&event);
        }
        assert_eq!(shown, expected, "cut after {cut} events, at {last:?}");
    }
    assert_eq!(
        site.stream(&format!("/v1/turns/{first}/stream"), None).await.rest().await.len(),
        4,
        "of an ended turn the newest generation"
    );
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_reader_that_is_cut_off_again_and_again_misses_nothing_and_sees_nothing_twice(pool: PgPool) {
    const BLOCKS: usize = 300;
    let mut site = Site::start(pool).await;
    let worker = site.fleet.worker("a").await;
    let turn = site.say("s1", "hi").await;
    let mut hand = Hand::of(&site.fleet, &worker).await;
    let store = site.fleet.store.clone();
    let writing = tokio::spawn(async move {
        for nth in 0..BLOCKS {
            hand.write(&[&nth.to_string()]).await;
            store.wake_readers(std::slice::from_ref(&turn)).await.unwrap();
        }
        hand.end(Ending::Completed).await;
        store.wake_readers(&[turn]).await.unwrap();
    });
    let (mut shown, mut last, mut connections) = (Shown::default(), None, 0);
    while shown.ended.is_empty() {
        connections += 1;
        if connections % 5 == 0 {
            site.restart().await;
        }
        let mut events = site.stream("/v1/sessions/s1/stream", last.as_deref()).await;
        for _ in 0..rand::random_range(1..20) {
            match events.next().await {
                Some(event) => shown.take(&event),
                None => break,
            }
            if !shown.ended.is_empty() {
                break;
            }
        }
        last = events.last;
    }
    writing.await.unwrap();
    let expected: Vec<String> = (0..BLOCKS).map(|nth| nth.to_string()).collect();
    assert_eq!(shown.texts(), expected);
    assert!(connections > 10, "{connections}");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn five_hundred_connections_under_killed_workers_and_servers_add_up_to_every_block_once(pool: PgPool) {
    const CONNECTIONS: usize = 500;
    let fleet = Fleet::new(pool);
    let e2b = LocalE2b::start().await;
    use_mock(&fleet.store, &e2b.agent_ledger()).await;
    let site = Site::with(fleet.clone(), |_| {}).await;
    let steps: Vec<_> = (0..120).map(|nth| json!({ "text": format!("word {nth}") })).collect();
    let script = json!({ "delay_ms": 40, "steps": steps }).to_string();
    let mut turns = Vec::new();
    for _ in 0..3 {
        turns.push(site.say("s1", &format!("/mock {script}")).await);
    }
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let serve = || {
        let mut command = tokio::process::Command::new(TURNMILL);
        command.args(["web", "--listen", &address]).envs(fleet.environment()).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let over = CancellationToken::new();
    let killing = async {
        let (mut web, mut workers) = (serve(), vec![worker(&fleet, &e2b.url), worker(&fleet, &e2b.url)]);
        let mut kills = 0;
        while over.run_until_cancelled(sleep(Duration::from_millis(rand::random_range(300..1500)))).await.is_some() {
            if rand::random() {
                web.kill().await.unwrap();
                web = serve();
            } else {
                workers.swap_remove(rand::random_range(0..2)).kill().await.unwrap();
                workers.push(worker(&fleet, &e2b.url));
            }
            kills += 1;
        }
        kills
    };
    let reading = async {
        let (mut shown, mut last, mut connections) = (Shown::default(), None::<String>, 0);
        let request = || site.client.get(format!("http://{address}/v1/sessions/s1/stream")).bearer_auth(&site.token);
        while shown.ended.len() < turns.len() || connections < CONNECTIONS {
            let Ok(mut events) = Events::open(request(), last.as_deref()).await else {
                sleep(Duration::from_millis(20)).await;
                continue;
            };
            connections += 1;
            // Goes away after some events or some time, wherever that is.
            let until = tokio::time::Instant::now() + Duration::from_millis(rand::random_range(0..80));
            for _ in 0..rand::random_range(0..8) {
                match tokio::time::timeout_at(until, events.next()).await {
                    Ok(Some(event)) => shown.take(&event),
                    Ok(None) | Err(_) => break,
                }
            }
            last = events.last;
        }
        over.cancel();
        shown
    };
    let (kills, shown) = tokio::join!(killing, reading);
    assert!(kills > 5, "{kills}");
    assert_eq!(shown.ended, turns);
    for turn in &turns {
        let of_it: Vec<&str> = shown.blocks.iter().filter(|(of, ..)| of == turn).map(|(.., text)| text.as_str()).collect();
        let expected: Vec<String> = (0..120).map(|nth| format!("word {nth}")).collect();
        assert_eq!(of_it, expected);
        assert_eq!(fleet.turn(turn).await.status, "completed");
    }
    assert_eq!(starts_in(&e2b.agent_ledger()), turns.len(), "no agent was started twice");
}

#[tokio::test]
async fn a_database_that_crashes_under_the_readers_costs_them_a_pause() {
    let home = passable_tempdir("turnmill-test-").unwrap();
    let mut postgres = Postgres::start(&home.path().join("postgres"), postgres::Options::default()).await.unwrap();
    let fleet = Fleet::of(Store::connect(&store::Options::new(&postgres.url(), 8), store::PATIENCE).await.unwrap());
    fleet.store.migrate().await.unwrap();
    let site = Site::with(fleet, |_| {}).await;
    let worker = site.fleet.worker("a").await;
    let turn = site.say("s1", "hi").await;
    let mut hand = Hand::of(&site.fleet, &worker).await;
    hand.write(&["one"]).await;
    let mut readers = Vec::new();
    for path in ["/v1/sessions/s1/stream".to_owned(), format!("/v1/turns/{turn}/stream")] {
        let mut events = site.stream(&path, None).await;
        events.until("caught_up").await;
        readers.push(events);
    }
    postgres.crash().await.unwrap();
    let away = until("requests say so", || async {
        let said = site.get("/v1/sessions/s1").await;
        (said.status == 503).then_some(said)
    })
    .await;
    assert_eq!((away.problem(), &away.headers["retry-after"]), ("unavailable", &"1".parse().unwrap()));
    assert_eq!(site.send(site.request("GET", "/readyz")).await.status, 503);
    assert_eq!(site.send(site.request("GET", "/healthz")).await.status, 200);
    postgres.recover().await.unwrap();
    until("the worker's connection is back", || async { site.fleet.store.position(&turn).await.ok() }).await;
    hand.write(&["two"]).await;
    hand.end(Ending::Completed).await;
    for mut events in readers {
        let block = events.until("block").await;
        assert_eq!(block.data["content"]["text"], "two");
        assert_eq!(events.until("end").await.data["status"], "completed");
    }
    postgres.stop().await.unwrap();
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_long_poll_returns_as_soon_as_there_is_something_and_not_before(pool: PgPool) {
    // Nobody polls for minutes: only what is said can wake it.
    let site = Site::with(Fleet::new(pool), |config| config.poll = Duration::from_secs(600)).await;
    let worker = site.fleet.worker("a").await;
    let turn = site.say("s1", "hi").await;
    let mut hand = Hand::of(&site.fleet, &worker).await;
    let path = format!("/v1/turns/{turn}/blocks");
    let empty = site.get(&format!("{path}?wait=0")).await.ok();
    assert_eq!((&empty["blocks"], &empty["next_after"], &empty["closed"]), (&json!([]), &json!(-1), &json!(false)));
    let since = Instant::now();
    let waited = site.get(&format!("{path}?wait=1")).await.ok();
    assert!(since.elapsed() >= Duration::from_millis(900) && waited["blocks"] == json!([]), "{waited}");

    let wait = async |after: i64| site.get(&format!("{path}?after={after}&wait=60")).await.ok();
    let write = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        hand.write(&["one"]).await;
        site.fleet.store.wake_readers(std::slice::from_ref(&turn)).await.unwrap();
        Instant::now()
    };
    let (page, written) = tokio::join!(wait(-1), write);
    assert!(written.elapsed() < Duration::from_secs(2), "woken at once: {:?}", written.elapsed());
    assert_eq!((&page["blocks"][0]["content"]["text"], &page["next_after"], &page["more"]), (&json!("one"), &json!(0), &json!(false)));
    let end = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        hand.end(Ending::Failed).await;
        site.fleet.store.wake_readers(std::slice::from_ref(&turn)).await.unwrap();
    };
    let (page, ()) = tokio::join!(wait(0), end);
    assert_eq!((&page["status"], &page["closed"], &page["error"]["code"]), (&json!("failed"), &json!(true), &json!("some_code")));
    assert_eq!(wait(0).await["closed"], true, "one that has ended keeps nobody waiting");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn pages_of_blocks_and_backlogs_of_streams_are_bounded_and_whole(pool: PgPool) {
    let site = Site::start(pool).await;
    let worker = site.fleet.worker("a").await;
    let turn = site.say("s1", "hi").await;
    let mut hand = Hand::of(&site.fleet, &worker).await;
    // Of which Postgres can compress nothing, and one that is larger than a page.
    let noise = |bytes: usize| (0..bytes).map(|_| char::from(rand::random_range(b'a'..=b'z'))).collect::<String>();
    let mut texts: Vec<String> = (0..40).map(|_| noise(200_000)).collect();
    texts.push(noise(6_000_000));
    for text in &texts {
        hand.write(&[text]).await;
    }
    let (mut after, mut got, mut pages) = (-1, Vec::new(), 0);
    loop {
        let page = site.get(&format!("/v1/turns/{turn}/blocks?after={after}&limit=500")).await.ok();
        let blocks = page["blocks"].as_array().unwrap();
        assert!(page.to_string().len() < (4 << 20) + 6_500_000, "a page is bounded: so much, and one block");
        got.extend(blocks.iter().map(|block| block["content"]["text"].as_str().unwrap().to_owned()));
        after = page["next_after"].as_i64().unwrap();
        pages += 1;
        if page["more"] == false {
            break;
        }
    }
    assert!(got == texts && pages > 1, "{pages} pages, {} blocks", got.len());
    let mut shown = Shown::default();
    let mut events = site.stream(&format!("/v1/turns/{turn}/stream"), None).await;
    while let Some(event) = events.next().await.filter(|event| event.name != "caught_up") {
        shown.take(&event);
    }
    assert!(shown.texts() == texts.iter().map(String::as_str).collect::<Vec<_>>());
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_server_that_is_told_to_end_tells_its_readers_and_ends_within_seconds(pool: PgPool) {
    let mut site = Site::start(pool).await;
    let turn = site.say("s1", "hi").await;
    let mut session = site.stream("/v1/sessions/s1/stream", None).await;
    let mut one = site.stream(&format!("/v1/turns/{turn}/stream"), None).await;
    session.until("caught_up").await;
    one.until("caught_up").await;
    let path = format!("/v1/turns/{turn}/blocks?wait=60");
    let waiting = site.as_who(&site.token, "GET", &path, None);
    // A connection that says nothing, and one in the middle of its request.
    let place = site.url.trim_start_matches("http://").to_owned();
    let silent = tokio::net::TcpStream::connect(&place).await.unwrap();
    let waiting_answer = {
        let mut waiting = Box::pin(waiting);
        assert!(tokio::time::timeout(Duration::from_millis(300), &mut waiting).await.is_err());
        let since = Instant::now();
        let (answer, ()) = tokio::join!(waiting, async { site.stop_now() });
        assert!(since.elapsed() < Duration::from_secs(5));
        answer
    };
    assert_eq!(waiting_answer.ok()["closed"], false);
    for events in [&mut session, &mut one] {
        assert_eq!(events.until("reconnect").await.data["reason"], "shutdown");
        assert_eq!(events.next().await, None);
    }
    let since = Instant::now();
    site.stop().await;
    assert!(since.elapsed() < Duration::from_secs(7), "{:?}", since.elapsed());
    drop(silent);
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_thousand_idle_readers_cost_one_that_is_told_something_nothing(pool: PgPool) {
    let site = Site::start(pool).await;
    let worker = site.fleet.worker("a").await;
    let busy = site.say("busy", "hi").await;
    let mut hand = Hand::of(&site.fleet, &worker).await;
    let mut idle: Vec<Events> = Vec::new();
    for nth in 0..50 {
        site.say(&format!("s{nth}"), "hi").await;
    }
    let streams = (0..1000).map(|nth| {
        let site = &site;
        async move {
            let mut events = site.stream(&format!("/v1/sessions/s{}/stream", nth % 50), None).await;
            events.until("caught_up").await;
            events
        }
    });
    let mut opening = futures::StreamExt::buffer_unordered(futures::stream::iter(streams), 50);
    while let Some(events) = futures::StreamExt::next(&mut opening).await {
        idle.push(events);
    }
    drop(opening);
    let mut events = site.stream("/v1/sessions/busy/stream", None).await;
    events.until("caught_up").await;
    let mut slowest = Duration::ZERO;
    for nth in 0..50 {
        let text = nth.to_string();
        hand.write(&[&text]).await;
        let since = Instant::now();
        site.fleet.store.wake_readers(std::slice::from_ref(&busy)).await.unwrap();
        assert_eq!(events.until("block").await.data["content"]["text"], text.as_str());
        slowest = slowest.max(since.elapsed());
    }
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    hand.end(Ending::Completed).await;
    events.until("end").await;
    assert_eq!(idle.len(), 1000);
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_reader_that_never_reads_is_dropped_and_slows_nobody(pool: PgPool) {
    let site = Site::with(Fleet::new(pool), |config| config.stall_max = Duration::from_secs(1)).await;
    let worker = site.fleet.worker("a").await;
    let turn = site.say("s1", "hi").await;
    let mut hand = Hand::of(&site.fleet, &worker).await;
    let mut deaf = tokio::net::TcpStream::connect(site.url.trim_start_matches("http://")).await.unwrap();
    let request = format!("GET /v1/turns/{turn}/stream HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\n\r\n", site.token);
    deaf.write_all(request.as_bytes()).await.unwrap();
    let mut events = site.stream("/v1/sessions/s1/stream", None).await;
    events.until("caught_up").await;
    let large = "x".repeat(1 << 20);
    for _ in 0..60 {
        hand.write(&[&large]).await;
        site.fleet.store.wake_readers(std::slice::from_ref(&turn)).await.unwrap();
        let since = Instant::now();
        events.until("block").await;
        assert!(since.elapsed() < Duration::from_secs(5));
    }
    // It is cut off though it reads nothing: then what it sends is refused.
    let cut = async {
        while deaf.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), cut).await.expect("its connection is cut");
    hand.end(Ending::Completed).await;
    assert_eq!(events.until("end").await.data["status"], "completed");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn numbers_of_any_size_reach_the_reader_as_they_were_written(pool: PgPool) {
    let site = Site::start(pool).await;
    let worker = site.fleet.worker("a").await;
    let turn = site.say("s1", "hi").await;
    let mut hand = Hand::of(&site.fleet, &worker).await;
    hand.write(&["x"]).await;
    site.fleet
        .sql("UPDATE turnmill.blocks SET content = '{\"n\": 12345678901234567890.123456789, \"big\": 1e400}' WHERE turn_id = $1", &turn)
        .await;
    let page = site.request("GET", &format!("/v1/turns/{turn}/blocks")).bearer_auth(&site.token).send().await.unwrap();
    let text = page.text().await.unwrap();
    assert!(text.contains("12345678901234567890.123456789") && text.contains(&format!("1{}", "0".repeat(400))), "{text}");
}
