//! One writer per process: gathers the blocks of all turns and commits them together.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::task::TaskTracker;
use tracing::{error, warn};

use super::news::News;
use crate::block::Block;
use crate::store::{Answer, Append, Fenced, Store, is_data_error, is_outage};

/// Most turns of one commit.
const TURNS_MAX: usize = 500;

/// Pause before the rows that somebody had locked, or a database that is away, are tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(25);

/// Hands appends to the writer's task.
#[derive(Debug, Clone)]
pub(super) struct Writer {
    requests: mpsc::Sender<Request>,
}

struct Request {
    append: Append,
    answer: oneshot::Sender<Result<(), Fenced>>,
}

impl Writer {
    /// Starts the task; it ends when the last `Writer` is gone.
    pub fn spawn(store: Store, flush: Duration, news: News, background: &TaskTracker) -> Self {
        let (requests, inbox) = mpsc::channel(TURNS_MAX);
        background.spawn(run(store, flush, news, inbox));
        Self { requests }
    }

    /// Commits one turn's blocks with those of others. At most one per turn at a time. Waits as long as the
    /// database is away: who waits gives up with its lease.
    pub async fn append(&self, append: Append) -> Result<(), Fenced> {
        let (answer, answered) = oneshot::channel();
        if self.requests.send(Request { append, answer }).await.is_err() {
            return Err(Fenced);
        }
        answered.await.unwrap_or(Err(Fenced))
    }
}

async fn run(store: Store, flush: Duration, news: News, mut inbox: mpsc::Receiver<Request>) {
    let mut batch: Vec<Request> = Vec::new();
    loop {
        if batch.is_empty() {
            match inbox.recv().await {
                Some(request) => batch.push(request),
                None => return,
            }
        }
        // Gather what comes within the flush interval: one round trip for all turns.
        let until = Instant::now() + flush;
        while batch.len() < TURNS_MAX {
            match timeout_at(until, inbox.recv()).await {
                Ok(Some(request)) => batch.push(request),
                Ok(None) | Err(_) => break,
            }
        }
        // Who gave up waiting lost its lease: its append must not be made in its name.
        batch.retain(|request| !request.answer.is_closed());
        if batch.is_empty() {
            continue;
        }
        batch = commit(&store, &news, batch).await;
        if !batch.is_empty() {
            sleep(RETRY_PAUSE).await;
        }
    }
}

/// Commits the batch; returns the requests that must be tried again.
async fn commit(store: &Store, news: &News, batch: Vec<Request>) -> Vec<Request> {
    let appends: Vec<Append> = batch.iter().map(|request| request.append.clone()).collect();
    match store.append(&appends).await {
        Ok(answers) => {
            let mut again = Vec::new();
            for (request, answer) in batch.into_iter().zip(answers) {
                if answer == Answer::Done && !request.append.blocks.is_empty() {
                    news.of(&request.append.turn_id);
                }
                match verdict(&request.append, answer) {
                    Some(verdict) => drop(request.answer.send(verdict)),
                    None => again.push(request),
                }
            }
            again
        }
        Err(fault) if is_outage(&fault) => {
            warn!(error = %fault, turns = batch.len(), "Blocks of {} turns wait for the database", batch.len());
            batch
        }
        Err(fault) if batch.len() == 1 => {
            let mut again = Vec::new();
            for request in batch {
                again.extend(defuse(store, request, &fault).await);
            }
            again
        }
        // One hostile line must not stop the others: each turn on its own.
        Err(_) => {
            let mut again = Vec::new();
            for request in batch {
                again.extend(Box::pin(commit(store, news, vec![request])).await);
            }
            again
        }
    }
}

/// What the answer means for its turn; `None`: try again.
fn verdict(append: &Append, answer: Answer) -> Option<Result<(), Fenced>> {
    match answer {
        Answer::Done => Some(Ok(())),
        Answer::Locked => None,
        // Our own earlier commit, whose answer was lost on the way.
        Answer::Fenced(Some(p)) if (p.epoch, p.attempt, p.journal_offset) == (append.epoch, append.attempt, append.to_offset) => {
            Some(Ok(()))
        }
        Answer::Fenced(_) => Some(Err(Fenced)),
    }
}

/// The rows themselves were refused. Puts an error block in the place of each block that Postgres won't have,
/// so that the offset moves on; if it is no fault of the data, gives the turn up.
async fn defuse(store: &Store, mut request: Request, fault: &sqlx::Error) -> Option<Request> {
    let turn = request.append.turn_id.clone();
    let mut refused = 0;
    if is_data_error(fault) {
        for block in &mut request.append.blocks {
            if matches!(store.storable(block).await, Ok(false)) {
                *block = Block::error("block_refused", "this part of the agent's output could not be stored");
                refused += 1;
            }
        }
    }
    if refused > 0 {
        warn!(turn.id = %turn, error = %fault, "Postgres refused {refused} blocks of turn {turn}; error blocks take their place");
        return Some(request);
    }
    error!(turn.id = %turn, error = %fault, "Blocks of turn {turn} can't be written");
    let _ = request.answer.send(Err(Fenced));
    None
}
