//! Every order of a few threads (loom) for what is synchronized by hand: what is visible, pins, feeds.
//!
//! `cargo test -p polybolt --features loom --lib models`; `LOOM_MAX_PREEMPTIONS=5` looks further. Whole
//! engines are run by `tests/shuttle.rs`.

use crate::event::{Event, EventKind};
use crate::hash_index::HashIndex;
use crate::pending::block_on;
use crate::pins::Pins;
use crate::publish::Publisher;
use crate::request::{KeyValue, Span, WatchRequest};
use crate::watch::{Hub, Take};
use bytes::Bytes;
use loom::thread;
use polybolt_engine::run::Signal;
use polybolt_engine::sync::atomic::{AtomicU64, Ordering};
use polybolt_engine::sync::{ManyReaders, Mutex};
use polybolt_engine::{DurableListener, Position, Watermark};
use polybolt_index::Revision;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

/// All orders of threads that differ by at most so many preemptions.
fn explore(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
    builder.max_branches = 20_000;
    builder.check(model);
}

/// A keyspace at revision 1, as its writer, its journal and its readers share it.
struct Shared {
    /// Held by whoever writes or registers: the newest revision that was begun.
    writer: Mutex<u64>,
    /// The newest revision of which the rows are there, looked at without any order of its own.
    rows: AtomicU64,
    hub: Arc<Hub>,
    publisher: Publisher,
    pins: Arc<Pins>,
}

impl Shared {
    fn new() -> Arc<Self> {
        let hub = Arc::new(Hub::default());
        let publisher = Publisher::new((1, -1, &[0]), Position(0), false, Arc::clone(&hub), Signal::default());
        hub.publish(1);
        Arc::new(Shared { writer: Mutex::new(1), rows: AtomicU64::new(1), hub, publisher, pins: Arc::default() })
    }

    /// A write as `write.rs` makes it: revision n has position n - 1.
    fn write(&self) -> Position {
        let mut newest = self.writer.lock();
        *newest += 1;
        let main = *newest;
        let kv = KeyValue { key: Bytes::from_static(b"k"), mod_revision: main.cast_signed(), ..KeyValue::default() };
        let watched = self.hub.is_watched();
        let events = if watched { vec![Event::new(EventKind::Put, kv, None)] } else { Vec::new() };
        self.rows.store(main, Ordering::Relaxed);
        self.hub.queue(main, events, 0);
        self.publisher.seal(main, -1, None, || Position(main - 1))
    }

    /// A reader of the newest revision.
    fn read(&self) {
        let visible = self.publisher.visible();
        assert!(self.rows.load(Ordering::Relaxed) >= visible, "what is visible is there");
    }
}

#[test]
fn what_is_visible_is_there() {
    explore(3, || {
        let shared = Shared::new();
        let journal = thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                let position = shared.write();
                shared.publisher.durable(position);
            }
        });
        let reader = thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.read()
        });
        shared.read();
        journal.join().unwrap();
        assert_eq!(shared.publisher.visible(), 2, "a revision is shown once its position is durable");
        reader.join().unwrap();
    });
}

#[test]
fn what_is_durable_before_it_is_noted_is_shown_all_the_same() {
    explore(3, || {
        let shared = Shared::new();
        // The journal syncs a group with the record as soon as it is sealed, and what follows has none.
        let journal = thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.publisher.durable(Position(1))
        });
        shared.write();
        let publisher = &shared.publisher;
        publisher.seal(3, 2, None, || Position(1));
        journal.join().unwrap();
        assert_eq!((publisher.visible(), publisher.compacted()), (3, 2));
    });
}

#[test]
fn a_watcher_gets_every_revision_after_its_own_once_and_is_woken_for_it() {
    explore(2, || {
        let shared = Shared::new();
        let writer = thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                for _ in 0..2 {
                    let position = shared.write();
                    shared.publisher.durable(position);
                }
            }
        });
        let (created, (id, feed)) = {
            let newest = shared.writer.lock();
            let span = Span::key("k");
            let request = WatchRequest { span, start_revision: 0, no_put: false, no_delete: false, prev_kv: false };
            (*newest, shared.hub.register(request, *newest + 1, *newest, 1 << 20))
        };
        let mut next = created + 1;
        while next <= 3 {
            let take = block_on(poll_fn(|cx| {
                feed.set_waker(cx.waker());
                match feed.take() {
                    Take::Nothing => Poll::Pending,
                    take => Poll::Ready(take),
                }
            }));
            let Take::Events { events, .. } = take else { panic!("it keeps up: {take:?}") };
            for event in events {
                assert_eq!(event.kv().mod_revision.cast_unsigned(), next);
                assert!(shared.publisher.visible() >= next, "nothing is shown that is not visible");
                next += 1;
            }
            if let Some(progress) = shared.hub.progress(&feed) {
                assert!(progress < next, "nothing up to there is on its way");
            }
        }
        writer.join().unwrap();
        shared.hub.cancel(id);
        assert!(!shared.hub.is_watched());
    });
}

#[test]
fn a_watcher_that_is_cancelled_while_it_is_fed_ends() {
    explore(2, || {
        let shared = Shared::new();
        let span = Span::key("k");
        let request = WatchRequest { span, start_revision: 0, no_put: false, no_delete: false, prev_kv: false };
        let (id, feed) = shared.hub.register(request, 2, 1, 1 << 20);
        let writer = thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                let position = shared.write();
                shared.publisher.durable(position);
            }
        });
        let canceller = thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.hub.cancel(id)
        });
        block_on(poll_fn(|cx| {
            feed.set_waker(cx.waker());
            if feed.take() == Take::Ended { Poll::Ready(()) } else { Poll::Pending }
        }));
        writer.join().unwrap();
        canceller.join().unwrap();
        assert_eq!((shared.hub.len(), shared.hub.is_watched(), shared.hub.counts().1), (0, false, 0));
    });
}

#[test]
fn a_reader_sees_the_compacted_revision_or_the_sweep_sees_its_pin() {
    explore(3, || {
        let (shared, swept) = (Shared::new(), Arc::new(AtomicU64::new(0)));
        let compaction = thread::spawn({
            let (shared, swept) = (Arc::clone(&shared), Arc::clone(&swept));
            move || {
                shared.publisher.seal(1, 1, None, || Position(0));
                // As `compact.rs`: the pins are asked for after the compacted revision.
                let compacted = shared.publisher.compacted().cast_unsigned();
                let oldest = shared.pins.oldest(Duration::ZERO, 0).unwrap_or(u64::MAX);
                swept.store(compacted.min(oldest), Ordering::Relaxed);
            }
        });
        // As `core.rs`: pinned first, checked after. It reads at 0, which goes with revision 1.
        let pin = shared.pins.pin(0, Duration::ZERO, Duration::MAX);
        if shared.publisher.compacted() <= 0 {
            assert_eq!(swept.load(Ordering::Relaxed), 0);
            thread::yield_now();
            assert_eq!(swept.load(Ordering::Relaxed), 0);
            compaction.join().unwrap();
            assert_eq!(swept.load(Ordering::Relaxed), 0, "what a reader pins stays");
        }
        drop(pin);
    });
}

#[test]
fn what_a_sweep_took_out_shows_no_earlier_than_the_compacted_revision() {
    explore(3, || {
        let (shared, index) = (Shared::new(), Arc::new(ManyReaders::new(true)));
        let compaction = thread::spawn({
            let (shared, index) = (Arc::clone(&shared), Arc::clone(&index));
            move || {
                shared.publisher.seal(1, 1, None, || Position(0));
                // As `compact.rs`, which is on another thread but takes the compacted revision from the publisher.
                if shared.publisher.compacted() > 0 {
                    *index.write() = false;
                }
            }
        });
        // As `get.rs`: read without a pin, checked after. It reads at 0, which goes with revision 1.
        let there = *index.read();
        assert!(there || shared.publisher.compacted() > 0, "a get misses what is not compacted");
        compaction.join().unwrap();
    });
}

#[test]
fn what_a_shard_forgets_shows_no_earlier_than_its_floor() {
    explore(3, || {
        let (shared, index) = (Shared::new(), Arc::new(ManyReaders::new(true)));
        let sweep = thread::spawn({
            let (shared, index) = (Arc::clone(&shared), Arc::clone(&index));
            move || {
                shared.publisher.seal(1, -1, Some((0, 1)), || Position(0));
                let floor = shared.publisher.own_floor(0).cast_unsigned();
                let oldest = shared.pins.oldest(Duration::ZERO, 0).unwrap_or(u64::MAX);
                if floor.min(oldest) > 0 {
                    *index.write() = false;
                }
            }
        });
        let pinned = thread::spawn({
            let (shared, index) = (Arc::clone(&shared), Arc::clone(&index));
            move || {
                // As `core.rs`: pinned first, checked after.
                let pin = shared.pins.pin(0, Duration::ZERO, Duration::MAX);
                if shared.publisher.own_floor(0) <= 0 {
                    assert!(*index.read(), "what a reader pins stays");
                }
                drop(pin);
            }
        });
        // As `get.rs`: read without a pin, checked after.
        let there = *index.read();
        assert!(there || shared.publisher.own_floor(0) > 0, "a get misses what its shard has");
        sweep.join().unwrap();
        pinned.join().unwrap();
        assert_eq!((shared.publisher.own_floor(0), shared.publisher.raised()), (1, 1));
    });
}

#[test]
fn a_thread_that_waits_for_a_ticket_is_woken() {
    explore(3, || {
        let mark = Arc::new(Watermark::default());
        let ticket = mark.ticket(Position(1));
        let moves = thread::spawn(move || mark.advance(Position(1)));
        block_on(ticket).unwrap();
        moves.join().unwrap();
    });
}

/// The writer deletes a key, so that slots behind it move up, and overwrites one that moved. How stripes are replaced is
/// not modelled: what `ArcSwap` orders, loom does not see.
#[test]
fn a_hash_index_shows_nothing_that_was_superseded_before_the_revision_read() {
    explore(2, || {
        let crowd = {
            let index = HashIndex::new(0);
            index.begin(0, |_| ());
            let home = |n: &u8| index.home(&[*n]);
            let crowded = |n: &u8| (0..=u8::MAX).filter(|other| home(other) == home(n)).collect::<Vec<_>>();
            (0..=u8::MAX).map(|n| crowded(&n)).find(|crowd| crowd.len() >= 3).unwrap()
        };
        let (shared, index) = (Shared::new(), Arc::new(HashIndex::new(0)));
        let first = |key| Revision::new(1, key);
        index.begin(0, |see| (0..3).for_each(|at| see(&[crowd[at as usize]], first(at))));
        let writer = thread::spawn({
            let (shared, index, crowd) = (Arc::clone(&shared), Arc::clone(&index), crowd.clone());
            move || {
                index.change(&[crowd[0]], Some(first(0)), None);
                shared.publisher.seal(2, -1, None, || Position(0));
                index.change(&[crowd[1]], Some(first(1)), Some(Revision::new(3, 0)));
                shared.publisher.seal(3, -1, None, || Position(0));
            }
        });
        let at = shared.publisher.visible();
        for (key, changed) in [(0, 2), (1, 3), (2, u64::MAX)] {
            let newest = if at < changed { first(key) } else { Revision::new(3, 0) };
            index.find(&[crowd[key as usize]], at, |row| {
                assert_eq!(row, newest, "at {at}");
                None::<()>
            });
        }
        writer.join().unwrap();
    });
}
