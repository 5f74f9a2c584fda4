//! How a transcript's page is told what is new: it waits for that, asks the database for nothing meanwhile, and misses none.

use std::time::Duration;

use sqlx::PgPool;
use tokio::time::timeout;
use turnmill::turn::Ending;

use crate::harness::{Fleet, PATIENCE};
use crate::site::{Hand, Site};
use crate::visitor::Visitor;

/// Longer than any test: a question is answered by news, or not at all.
const NEVER: Duration = Duration::from_secs(3600);

/// Statements that the database has ended.
async fn statements(fleet: &Fleet) -> i64 {
    let ended = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()";
    sqlx::query_scalar(ended).fetch_one(&fleet.pool).await.unwrap()
}

/// Tells readers, as the turn's worker does.
async fn tell(hand: &Hand) {
    hand.store.wake_readers(std::slice::from_ref(&hand.job.turn_id)).await.unwrap();
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_question_for_more_waits_for_news_and_asks_the_database_nothing_meanwhile(pool: PgPool) {
    let site = Site::with(Fleet::new(pool), |web| web.poll = NEVER).await;
    let turn = site.say("s1", "hi").await;
    let worker = site.fleet.worker("w").await;
    let mut hand = Hand::of(&site.fleet, &worker).await;
    hand.write(&["one"]).await;
    let operator = Visitor::operator(&site).await;
    assert!(operator.page(&format!("/ops/turns/{turn}/said?after=-1")).await.contains("id=\"b-0\""), "what is there is given at once");

    let path = format!("/ops/turns/{turn}/said?after=0");
    let asked = operator.page(&path);
    tokio::pin!(asked);
    let before = statements(&site.fleet).await;
    timeout(Duration::from_secs(3), &mut asked).await.expect_err("nothing is new, so nothing is said");
    let meanwhile = statements(&site.fleet).await - before;
    assert!(meanwhile < 80, "{meanwhile} statements in three seconds: it spins");

    hand.write(&["two"]).await;
    tell(&hand).await;
    let next = timeout(PATIENCE, asked).await.expect("it is told");
    assert!(next.contains("id=\"b-1\"") && !next.contains("id=\"b-0\"") && next.contains("data-closed=\"false\""), "{next}");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn whenever_a_block_comes_the_question_that_waits_for_it_is_answered_at_once(pool: PgPool) {
    let site = Site::with(Fleet::new(pool), |web| web.poll = NEVER).await;
    let turn = site.say("s1", "hi").await;
    let worker = site.fleet.worker("w").await;
    let mut hand = Hand::of(&site.fleet, &worker).await;
    hand.write(&["0"]).await;
    let operator = Visitor::operator(&site).await;
    // From before the question is asked to long after it waits: at each moment between its looks as well. One that is missed
    // is found when the server gives up waiting, after 25 s.
    for nth in 1..60_u64 {
        let path = format!("/ops/turns/{turn}/said?after={}", nth - 1);
        let comes = async {
            tokio::time::sleep(Duration::from_micros(nth % 20 * 700)).await;
            hand.write(&[&nth.to_string()]).await;
            tell(&hand).await;
        };
        let both = async { tokio::join!(operator.page(&path), comes) };
        let (said, ()) = timeout(Duration::from_secs(15), both).await.unwrap_or_else(|_| panic!("block {nth} is missed"));
        assert!(said.contains(&format!("id=\"b-{nth}\"")), "{said}");
    }
    let path = format!("/ops/turns/{turn}/said?after=59");
    let ends = async {
        let turn = hand.job.turn_id.clone();
        let store = hand.store.clone();
        hand.end(Ending::Completed).await;
        store.wake_readers(&[turn]).await.unwrap();
    };
    let both = async { tokio::join!(operator.page(&path), ends) };
    let (end, ()) = timeout(Duration::from_secs(15), Box::pin(both)).await.expect("the end is news");
    assert!(end.contains("data-closed=\"true\""), "{end}");
}
