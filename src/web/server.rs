//! Connections: who may come, how long they may take, and how they are let go.
//!
//! Of our own because `axum::serve` waits for ever for a request's head, and for a client that takes nothing.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use crate::config;

/// Most headers of a request.
const HEADERS_MAX: usize = 64;

/// After the system could not give us one more connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until `stop`. Then nobody new is let in, requests that run are answered, streams are told to reconnect, and
/// who is still there after `drain_max` is cut off.
pub async fn serve(listener: TcpListener, routes: Router, limits: Arc<config::Web>, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(limits.connections_max));
    let connections = TaskTracker::new();
    let cut = CancellationToken::new();
    loop {
        let Some(Ok(place)) = stop.run_until_cancelled(places.clone().acquire_owned()).await else { break };
        let Some(accepted) = stop.run_until_cancelled(listener.accept()).await else { break };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, or a client that has gone again.
                debug!(%error, "A connection was not accepted: {error}");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let one = connection(stream, routes.clone(), limits.clone(), stop.clone());
        let cut = cut.clone();
        connections.spawn(async move {
            cut.run_until_cancelled(one).await;
            drop(place);
        });
    }
    drop(listener);
    connections.close();
    info!(connections = connections.len(), "The web server lets {} connections go", connections.len());
    if timeout(limits.drain_max, connections.wait()).await.is_err() {
        warn!(connections = connections.len(), "The web server cuts {} connections off", connections.len());
        cut.cancel();
        connections.wait().await;
    }
}

async fn connection(stream: TcpStream, routes: Router, limits: Arc<config::Web>, stop: CancellationToken) {
    // Small events are to go out at once.
    drop(stream.set_nodelay(true));
    let stream = Impatient::new(stream, limits.stall_max);
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.arrival_max)
        .max_headers(HEADERS_MAX)
        .max_buf_size(limits.head_max_bytes.max(8192));
    let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return report(ended),
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    report(connection.await);
}

fn report(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        // Its client's doing: gone in the middle, too slow, no HTTP.
        debug!(%error, "A connection ended: {error}");
    }
}

/// A connection that ends when its client takes nothing for too long.
struct Impatient {
    stream: TcpStream,
    stall_max: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Impatient {
    fn new(stream: TcpStream, stall_max: Duration) -> Self {
        Self { stream, stall_max, stalled: None }
    }

    fn write<T>(
        &mut self,
        context: &mut Context<'_>,
        act: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if let Poll::Ready(done) = act(Pin::new(&mut self.stream), context) {
            self.stalled = None;
            return Poll::Ready(done);
        }
        let until = Instant::now() + self.stall_max;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing")))
    }
}

impl AsyncRead for Impatient {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for Impatient {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.write(context, |stream, context| stream.poll_write(context, bytes))
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, parts: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.write(context, |stream, context| stream.poll_write_vectored(context, parts))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write(context, AsyncWrite::poll_flush)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write(context, AsyncWrite::poll_shutdown)
    }
}
