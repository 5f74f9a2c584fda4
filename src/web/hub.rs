//! One hub per process: thousands of readers, one LISTEN, one query for all that are due.
//!
//! A reader first reads its backlog by itself, at its own pace. When it has caught up it joins: it hands its [`Progress`]
//! over, and the next query, which begins after it has joined, goes on from exactly there. So nothing falls between its
//! own last read and the first of the hub, nothing is told twice, and no status is older than one that it was told.
//!
//! Due are the sessions of turns that a worker named (NOTIFY), those that handlers of this process poked, and all of them
//! with every poll: hints only make it sooner.
//!
//! What waits for a reader is bounded, in events and in bytes. One that doesn't keep up is dropped, not waited for; its
//! stream ends with where it was, and it comes back by that.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::previews::{self, Newest, Told, Watched};
use super::progress::{Event, Progress, SharedPage};
use crate::config;
use crate::store::{Heard, PageLimits, Place, Store, is_outage};

/// Places of one query.
const PLACES_MAX: usize = 1000;

/// Between two queries: what comes meanwhile is read together.
const PACE: Duration = Duration::from_millis(5);

/// How often it is said anew why turns wait: that costs more than all else.
const REASONS: Duration = Duration::from_secs(2);

/// Before a database that is away is asked again, and before a lost LISTEN is made anew.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// Of one query, for each place.
const LIMITS: PageLimits = PageLimits { turns: 50, blocks: 100, bytes: 1 << 20, reasons: false };

/// A way to the hub.
#[derive(Debug, Clone)]
pub struct Hub {
    inbox: mpsc::UnboundedSender<Message>,
    readers: Arc<AtomicUsize>,
    limits: Arc<config::Web>,
}

#[derive(Debug)]
enum Message {
    Join(Reader),
    Heard(Heard),
    Poke(String),
}

#[derive(Debug)]
struct Reader {
    progress: Progress,
    out: mpsc::Sender<Event>,
    bytes: Arc<AtomicUsize>,
    bytes_max: usize,
    /// What it was told of blocks that grow, if it wants that.
    previews: Option<Told>,
}

/// What a reader gets from the hub.
#[derive(Debug)]
pub struct Feed {
    events: mpsc::Receiver<Event>,
    bytes: Arc<AtomicUsize>,
}

impl Feed {
    /// The next event; `None`: the hub has dropped this reader, or ends.
    pub async fn next(&mut self) -> Option<Event> {
        let event = self.events.recv().await?;
        self.bytes.fetch_sub(weight(&event), Ordering::Relaxed);
        Some(event)
    }
}

/// A place among the readers of this process.
#[derive(Debug)]
pub struct Seat(Arc<AtomicUsize>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Hub {
    /// Starts it; it ends with `stop`.
    pub fn start(store: Store, limits: Arc<config::Web>, stop: CancellationToken) -> Self {
        let (inbox, messages) = mpsc::unbounded_channel();
        let listening = Arc::new(AtomicBool::new(false));
        if store.can_listen() {
            tokio::spawn(listen(store.clone(), inbox.clone(), listening.clone(), stop.clone()));
        }
        let (watched, watching) = watch::channel(Watched::new());
        let (publish, newest) = watch::channel(Newest::new());
        tokio::spawn(previews::follow(store.clone(), watching, publish, stop.clone()));
        let state = State {
            store,
            watched,
            newest,
            limits: limits.clone(),
            listening,
            sessions: HashMap::new(),
            turns: HashMap::new(),
            due: HashSet::new(),
            reasons_at: Instant::now(),
        };
        tokio::spawn(state.run(messages, stop));
        Self { inbox, readers: Arc::default(), limits }
    }

    /// A seat, if one is free.
    pub fn seat(&self) -> Option<Seat> {
        let taken = self.readers.fetch_add(1, Ordering::Relaxed);
        let seat = Seat(self.readers.clone());
        (taken < self.limits.readers_max).then_some(seat)
    }

    /// From here on the hub tells what is new; with `previews` also blocks while they grow.
    pub fn join(&self, progress: Progress, previews: bool) -> Feed {
        let (out, events) = mpsc::channel(self.limits.reader_events_max.max(1));
        let bytes = Arc::<AtomicUsize>::default();
        let reader =
            Reader { progress, out, bytes: bytes.clone(), bytes_max: self.limits.reader_bytes_max, previews: previews.then(Told::default) };
        // If it is gone the feed ends at once.
        drop(self.inbox.send(Message::Join(reader)));
        Feed { events, bytes }
    }

    /// There is news of this session.
    pub fn poke(&self, session_id: &str) {
        drop(self.inbox.send(Message::Poke(session_id.to_owned())));
    }
}

fn weight(event: &Event) -> usize {
    match event {
        Event::Block(block, _) => block.content.get().len(),
        Event::Preview(data) => data.len(),
        _ => 256,
    }
}

impl Reader {
    /// `false`: it doesn't keep up, or has gone.
    fn tell(&mut self, pages: &[SharedPage]) -> bool {
        for event in self.progress.advance(pages) {
            if let Some(previews) = &mut self.previews {
                previews.note(&event);
            }
            let weight = weight(&event);
            let before = self.bytes.fetch_add(weight, Ordering::Relaxed);
            // A single one that is larger than all that may wait has to pass, too.
            if (before > 0 && before + weight > self.bytes_max) || self.out.try_send(event).is_err() {
                return false;
            }
        }
        !self.progress.over() && !self.out.is_closed()
    }

    /// Says how blocks grow, where there is room: the next time it is told as much more.
    fn preview(&mut self, turn_id: &str, now: &previews::TurnNow) {
        let Some(told) = &mut self.previews else { return };
        // All pieces of once, and never the last places, which are for blocks.
        if self.out.capacity() < (self.out.max_capacity() / 2).max(previews::PIECES_MAX)
            || self.bytes.load(Ordering::Relaxed) > self.bytes_max / 2
        {
            return;
        }
        for data in told.advance(turn_id, now, &self.progress) {
            let event = Event::Preview(data);
            self.bytes.fetch_add(weight(&event), Ordering::Relaxed);
            // There is room, and nobody else takes it.
            drop(self.out.try_send(event));
        }
    }
}

/// The hub's own task.
struct State {
    store: Store,
    limits: Arc<config::Web>,
    listening: Arc<AtomicBool>,
    sessions: HashMap<String, Vec<Reader>>,
    /// Of which session a turn is, as far as pages have shown.
    turns: HashMap<String, String>,
    due: HashSet<String>,
    reasons_at: Instant,
    /// Unfinished turns whose readers want to see their blocks grow.
    watched: watch::Sender<Watched>,
    newest: watch::Receiver<Newest>,
}

impl State {
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Message>, stop: CancellationToken) {
        let mut poll_at = Instant::now();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                message = inbox.recv() => match message {
                    Some(message) => self.take(message),
                    None => return,
                },
                Ok(()) = self.newest.changed() => {
                    self.preview();
                    continue;
                }
                () = sleep_until(poll_at), if !self.sessions.is_empty() => self.due.extend(self.sessions.keys().cloned()),
            }
            while let Ok(message) = inbox.try_recv() {
                self.take(message);
            }
            if self.sessions.is_empty() {
                self.due.clear();
                self.turns.clear();
                self.watch_none();
                continue;
            }
            if self.due.len() == self.sessions.len() {
                poll_at = Instant::now() + self.pause();
            }
            let since = Instant::now();
            if let Err(error) = self.look().await {
                if !is_outage(&error) {
                    warn!(%error, "Readers' news could not be read: {error}");
                }
                sleep(RETRY_PAUSE).await;
            }
            // Busy at most half of the time, however slow the database is.
            sleep(PACE.max(since.elapsed()).min(RETRY_PAUSE)).await;
        }
    }

    /// Jittered, so that processes that were started together do not look together.
    fn pause(&self) -> Duration {
        let heard = self.listening.load(Ordering::Relaxed);
        let pause = if heard { self.limits.poll } else { self.limits.poll_unheard };
        pause.mul_f64(0.75 + rand::random::<f64>() / 2.0)
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Join(reader) => {
                let session = reader.progress.session_id().to_owned();
                self.due.insert(session.clone());
                self.sessions.entry(session).or_default().push(reader);
            }
            Message::Poke(session) if self.sessions.contains_key(&session) => {
                self.due.insert(session);
            }
            Message::Poke(_) => {}
            Message::Heard(Heard::Of(turns)) => self.due.extend(turns.iter().filter_map(|turn| self.turns.get(turn)).cloned()),
            Message::Heard(Heard::Any) => self.due.extend(self.sessions.keys().cloned()),
        }
    }

    /// Reads what is due, tells it, and forgets who has gone. What could not be read stays due.
    async fn look(&mut self) -> sqlx::Result<()> {
        let reasons = self.reasons_at.elapsed() >= REASONS;
        if reasons {
            self.reasons_at = Instant::now();
        }
        self.due.retain(|session| self.sessions.contains_key(session));
        // Readers of a session nearly always stand at the same place.
        let places: Vec<Place> = {
            let due = self.due.iter().filter_map(|session| self.sessions.get(session));
            let each = due.flatten().map(|reader| (key(&reader.progress.place()), reader.progress.place()));
            each.collect::<BTreeMap<_, _>>().into_values().collect()
        };
        // Told only when all is read: the places of one session may be in two queries.
        let mut pages = HashMap::new();
        for some in places.chunks(PLACES_MAX) {
            let read = self.store.pages(&some.iter().collect::<Vec<_>>(), PageLimits { reasons, ..LIMITS }).await?;
            for (place, turns) in some.iter().zip(read) {
                pages.insert(key(place), turns.into_iter().map(SharedPage::from).collect::<Vec<_>>());
            }
        }
        let newest = self.newest.borrow().clone();
        for session in std::mem::take(&mut self.due) {
            self.tell(&session, &mut pages, &newest, reasons);
        }
        Ok(())
    }

    /// What is new of blocks that grow.
    fn preview(&mut self) {
        let newest = self.newest.borrow_and_update().clone();
        for (turn, now) in &newest {
            let readers = self.turns.get(turn).and_then(|session| self.sessions.get_mut(session));
            readers.into_iter().flatten().for_each(|reader| reader.preview(turn, now));
        }
    }

    fn watch_none(&self) {
        self.watched.send_if_modified(|watched| !std::mem::take(watched).is_empty());
    }

    fn tell(&mut self, session: &str, pages: &mut HashMap<Key, Vec<SharedPage>>, newest: &Newest, reasons: bool) {
        let Some(mut readers) = self.sessions.remove(session) else { return };
        let (before, turns) = (readers.len(), &mut self.turns);
        let mut more = false;
        let mut watched = BTreeSet::new();
        readers.retain_mut(|reader| {
            let Some(page) = pages.get_mut(&key(&reader.progress.place())) else { return true };
            for turn in page.iter_mut() {
                if turn.state.ended() {
                    turns.remove(&turn.state.turn_id);
                } else {
                    turns.insert(turn.state.turn_id.clone(), session.to_owned());
                }
                more |= turn.more;
                if !reasons {
                    reader.keep_reason(turn);
                }
            }
            let stays = reader.tell(page);
            if stays && reader.previews.is_some() {
                for turn in page.iter().filter(|turn| !turn.state.ended()).map(|turn| &turn.state.turn_id) {
                    watched.insert(turn.clone());
                    newest.get(turn).into_iter().for_each(|now| reader.preview(turn, now));
                }
            }
            stays
        });
        watch_turns(&self.watched, session, watched);
        if readers.len() < before {
            debug!(session.id = session, "{} readers of session {session} have ended or were dropped", before - readers.len());
        }
        if readers.is_empty() {
            turns.retain(|_, of| of != session);
            return;
        }
        if more {
            self.due.insert(session.to_owned());
        }
        self.sessions.insert(session.to_owned(), readers);
    }
}

fn watch_turns(watched: &watch::Sender<Watched>, session: &str, turns: BTreeSet<String>) {
    watched.send_if_modified(|watched| match watched.get(session) {
        None if turns.is_empty() => false,
        Some(known) if *known == turns => false,
        _ if turns.is_empty() => watched.remove(session).is_some(),
        _ => {
            watched.insert(session.to_owned(), turns);
            true
        }
    });
}

/// A place, to be found by.
type Key = (String, i32, i32, i32);

fn key(place: &Place) -> Key {
    (place.session_id.clone(), place.ordinal, place.seq, place.last_ordinal)
}

impl Reader {
    /// This page was read without asking why turns wait: as far as is known, for what they did.
    fn keep_reason(&self, turn: &mut SharedPage) {
        let known = self.progress.known(turn.state.ordinal).filter(|known| known.status == "pending");
        if turn.state.status == "pending"
            && let Some(known) = known
            && known.wait_reason != turn.state.wait_reason
        {
            Arc::make_mut(&mut turn.state).wait_reason.clone_from(&known.wait_reason);
        }
    }
}

/// Hears what workers say there is to read. Whenever it may have missed something, everything is due.
async fn listen(store: Store, inbox: mpsc::UnboundedSender<Message>, listening: Arc<AtomicBool>, stop: CancellationToken) {
    let hear = async {
        loop {
            if let Ok(mut wake) = store.listen_for_readers().await {
                listening.store(true, Ordering::Relaxed);
                if inbox.send(Message::Heard(Heard::Any)).is_err() {
                    return;
                }
                while let Ok(heard) = wake.hear().await {
                    if inbox.send(Message::Heard(heard)).is_err() {
                        return;
                    }
                }
                listening.store(false, Ordering::Relaxed);
            }
            sleep(RETRY_PAUSE).await;
        }
    };
    stop.run_until_cancelled(hear).await;
}
