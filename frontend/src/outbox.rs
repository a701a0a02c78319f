//! What is on its way to clients that may not read it: counted, and bounded by bytes.

use parking_lot::Mutex;
use prometheus::IntGauge;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};

/// Messages of one stream that may wait for its client; there is at least one, however large.
const AHEAD: usize = 64;
/// Bytes of them.
pub(crate) const AHEAD_BYTES: usize = 1 << 20;

/// Bytes that are held for a client, counted in a gauge until this is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    gauge: IntGauge,
    bytes: i64,
}

impl Held {
    pub(crate) fn new(gauge: &IntGauge, bytes: usize) -> Self {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        gauge.add(bytes);
        Held { gauge: gauge.clone(), bytes }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.gauge.sub(self.bytes);
    }
}

/// A message with the room that it takes.
#[derive(Debug)]
struct Message<T> {
    message: T,
    _held: Held,
    _room: OwnedSemaphorePermit,
}

/// The sending side of a stream.
#[derive(Debug)]
pub(crate) struct Outbox<T> {
    sender: mpsc::Sender<Message<T>>,
    room: Arc<Semaphore>,
    gauge: IntGauge,
}

/// The client has gone, or has read nothing for too long.
#[derive(Debug)]
pub(crate) struct Gone;

impl<T: Send + 'static> Outbox<T> {
    /// A stream whose waiting bytes are counted in `gauge`.
    pub(crate) fn new(gauge: &IntGauge) -> (Self, impl Stream<Item = T> + Send + 'static) {
        let (sender, receiver) = mpsc::channel(AHEAD);
        let outbox = Outbox { sender, room: Arc::new(Semaphore::new(AHEAD_BYTES)), gauge: gauge.clone() };
        (outbox, ReceiverStream::new(receiver).map(|message: Message<T>| message.message))
    }

    /// Sends a message of `bytes` bytes once there is room for it: one larger than all room waits for all.
    pub(crate) async fn send(&self, message: T, bytes: usize) -> Result<(), Gone> {
        let held = Held::new(&self.gauge, bytes);
        let share = u32::try_from(bytes.clamp(1, AHEAD_BYTES)).unwrap_or(u32::MAX);
        let room = tokio::select! {
            room = Arc::clone(&self.room).acquire_many_owned(share) => room.map_err(|_| Gone)?,
            () = self.sender.closed() => return Err(Gone),
        };
        self.sender.send(Message { message, _held: held, _room: room }).await.map_err(|_| Gone)
    }

    /// The same on a thread that may block, for `limit` at the longest.
    pub(crate) fn send_within(&self, limit: Duration, message: T, bytes: usize) -> Result<(), Gone> {
        Handle::current().block_on(tokio::time::timeout(limit, self.send(message, bytes))).map_err(|_| Gone)?
    }

    /// Resolves when the client has gone.
    pub(crate) async fn closed(&self) {
        self.sender.closed().await;
    }
}

/// How many streams of a kind may be open.
#[derive(Debug)]
pub(crate) struct Places {
    open: IntGauge,
    max: i64,
    taking: Mutex<()>,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct Place(IntGauge);

impl Places {
    pub(crate) fn new(open: IntGauge, max: i64) -> Self {
        Places { open, max, taking: Mutex::default() }
    }

    /// A place, if one is free.
    pub(crate) fn take(&self) -> Option<Place> {
        let _taking = self.taking.lock();
        (self.open.get() < self.max).then(|| {
            self.open.inc();
            Place(self.open.clone())
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.dec();
    }
}
