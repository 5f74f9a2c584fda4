//! The worker's turns under apalis' Monitor: the only file that names apalis.
//!
//! apalis drives, we own the queue. [`TurnBackend`] hands out what the claimer has claimed; each turn runs in
//! a task of its own. What the runtime must not do, and how it is kept from it:
//!
//! - An `Err` from the backend ends the worker and drops its turns: ours never returns one; the claimer rides
//!   a database outage out.
//! - A panic in a handler would unwind through all turns: each is spawned, and aborted if the worker is dropped.
//! - Nobody polls the backend while it drains: leases are renewed elsewhere.
//! - `.concurrency()` frees its permit before the handler's effects are done: permits are counted in the claim.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use apalis::prelude::{Data, Monitor, Task, TaskBuilder, TaskId, WorkerBuilder, WorkerContext};
use apalis_core::backend::finalize::Ephemeral;
use apalis_core::backend::{Backend, BackendConfig};
use apalis_core::worker::event::Event;
use apalis_core::worker::ext::event_listener::EventListenerExt as _;
use apalis_core::worker::ext::parallelize::ParallelizeExt as _;
use futures::future::BoxFuture;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tower::layer::util::Identity;
use tracing::warn;

use super::{Assignment, Worker, claims};

/// Claimed turns waiting for the runtime to ask: one, since a permit is held before anything is claimed.
const HANDED: usize = 1;

type Handler = Arc<dyn Fn(Assignment) -> BoxFuture<'static, ()> + Send + Sync>;

/// Hands claimed turns to apalis.
#[derive(Debug, Clone)]
pub struct TurnBackend {
    // Shared, because the Monitor may build its worker anew around the same queue.
    jobs: Arc<Mutex<mpsc::Receiver<Assignment>>>,
}

impl Backend for TurnBackend {
    type Task = Task<Assignment>;
    type Error = Infallible;

    fn poll_ready(&mut self, _: &mut Context<'_>, _: &WorkerContext) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn poll_next(&mut self, cx: &mut Context<'_>, _: &WorkerContext) -> Poll<Option<Result<Self::Task, Infallible>>> {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.poll_recv(cx).map(|assignment| {
            assignment.map(|assignment| {
                let id = TaskId::String(assignment.job.turn_id.clone());
                Ok(TaskBuilder::new(assignment).task_id(id).build())
            })
        })
    }

    fn poll_close(&mut self, _: &mut Context<'_>, _: &WorkerContext) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }
}

impl BackendConfig for TurnBackend {
    type Args = Assignment;
    type Id = String;
    type Kind = Ephemeral;
    type Config = ();
    type Layer = Identity;

    fn config(&self) -> &() {
        &()
    }

    fn middleware(&mut self, _: &mut WorkerContext) -> Identity {
        Identity::new()
    }
}

/// Claims turns for `worker` and runs `handler` on each, under a Monitor, until `stop`. Then returns as soon as
/// the handlers have: they see their assignment's `era` end.
pub async fn run<F>(
    worker: &Worker,
    stop: CancellationToken,
    handler: impl Fn(Assignment) -> F + Send + Sync + 'static,
) -> anyhow::Result<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let (give, jobs) = mpsc::channel(HANDED);
    let backend = TurnBackend { jobs: Arc::new(Mutex::new(jobs)) };
    let handler: Handler = Arc::new(move |assignment| Box::pin(handler(assignment)));
    let claiming = tokio::spawn(claims::run(worker.clone(), give, stop.clone()));
    let name = worker.id.to_string();
    let monitor = Monitor::new()
        .register(move |_| {
            WorkerBuilder::new(name.clone())
                .backend(backend.clone())
                .data(handler.clone())
                .parallelize(|turn| AbortOnDropHandle::new(tokio::spawn(turn)))
                .on_event(|_, event| {
                    if let Event::Error(error) = event {
                        warn!(%error, "A turn's task ended by itself; its turn is handed over: {error}");
                    }
                })
                .build(call)
        })
        // Whatever ended it: turns wait, so it comes back.
        .should_restart(|_, _| true);
    monitor
        .run_with_signal(async move {
            stop.cancelled().await;
            Ok(())
        })
        .await?;
    claiming.await?;
    Ok(())
}

async fn call(assignment: Assignment, handler: Data<Handler>) {
    handler(assignment).await;
}
