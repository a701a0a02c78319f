//! What is read, compared with the model.

use crate::world::{Shared, World, among_others};
use bytes::Bytes;
use polybolt::model::{Expected, Mark};
use polybolt::run::Clock;
use polybolt::{
    Error, EventKind, KeyValue, Keyspace, RangeRequest, RangeResponse, RangeStream, Refusal, Span, SpanEnd, WatchItem,
    WatchRequest, Watcher,
};
use std::task::Poll;
use std::time::Duration;

/// A range that is read chunk by chunk while the world goes on.
pub(crate) struct Stream {
    stream: RangeStream,
    left: Vec<KeyValue>,
    until: Duration,
    at: i64,
}

/// A watcher, and what it was told so far.
pub(crate) struct Watch {
    watcher: Watcher,
    request: WatchRequest,
    /// Everything below was seen, or had nothing for it.
    next: i64,
    ended: bool,
}

fn ks(shared: &Shared, at: usize) -> Keyspace {
    shared.borrow().spaces[at].ks.clone().expect("the keyspace is open")
}

/// Reads a random range, with or without others meanwhile.
pub(crate) fn read(shared: &Shared, at: usize) {
    let (request, alone) = {
        let mut world = shared.borrow_mut();
        let world = &mut *world;
        let newest = world.spaces[at].shown;
        (world.range(newest), world.rng.one_in(2))
    };
    compare_range(shared, at, &request, alone);
}

/// Reads a range and compares it.
pub(crate) fn compare_range(shared: &Shared, at: usize, request: &RangeRequest, alone: bool) {
    let ks = ks(shared, at);
    let (before, floors) = (ks.revision(), ks.floors());
    let began = shared.borrow().clock.monotonic();
    let found = if alone { ks.range(request) } else { among_others(shared, || ks.range(request)) };
    let world = shared.borrow();
    let model = &world.spaces[at].model;
    let after = ks.revision();
    match found {
        Ok(found) => {
            assert!(before <= found.revision && found.revision <= after, "{found:?} of {before}..={after}");
            let revision = if request.revision <= 0 { found.revision } else { request.revision };
            assert!(revision >= model.floor(&request.span, &floors), "{request:?} is below the floor");
            same_range(&found, &model.range(request, revision, found.revision), &format!("{request:?}"));
        }
        Err(Error::Refused(Refusal::Compacted { revision })) => {
            let floor = model.floor(&request.span, &ks.floors());
            let aged = world.clock.monotonic() - began >= world.setup.options.pin_age_max;
            let below = request.revision > 0 && request.revision < revision;
            assert!(below || aged, "{request:?} was refused as compacted at {revision}");
            assert!(revision <= floor, "{request:?}: {revision} is above the floor {floor}");
        }
        Err(Error::Refused(Refusal::FutureRevision { current })) => {
            assert!(request.revision > current && current >= before, "{request:?}: {current} is current");
        }
        Err(Error::Storage(error)) => assert!(world.allows(&error), "{request:?}: {error}"),
        Err(error) => panic!("{request:?}: {error}"),
    }
}

/// Compares two answers to a range, and says where they differ.
pub(crate) fn same_range(found: &RangeResponse, expected: &RangeResponse, what: &str) {
    let differs = found.kvs.iter().zip(&expected.kvs).find(|(found, expected)| found != expected);
    let differs = differs.map(|pair| format!("{pair:?}").chars().take(700).collect::<String>());
    let more = found.kvs.get(expected.kvs.len()).or(expected.kvs.get(found.kvs.len())).map(|kv| &kv.key);
    let numbers = |range: &RangeResponse| (range.revision, range.more, range.count, range.kvs.len());
    assert!(found == expected, "{what}: {:?}, expected {:?}: {differs:?} {more:?}", numbers(found), numbers(expected));
}

/// A txn that only reads.
pub(crate) fn read_txn(shared: &Shared, at: usize) {
    let request = shared.borrow_mut().read_only_txn(at);
    let ks = ks(shared, at);
    let visible = ks.revision();
    let found = ks.txn(request.clone()).wait();
    let world = shared.borrow();
    let model = &world.spaces[at].model;
    match found {
        Ok(found) => assert_eq!(Ok(found), model.read_txn(&request, visible, &ks.floors()), "{request:?}"),
        Err(Error::Refused(refusal)) => {
            assert_eq!(Err(refusal), model.read_txn(&request, visible, &ks.floors()), "{request:?}");
        }
        Err(Error::Storage(error)) => assert!(world.allows(&error), "{request:?}: {error}"),
        Err(error) => panic!("{request:?}: {error}"),
    }
}

/// Opens a stream, or reads a chunk of one.
pub(crate) fn stream(shared: &Shared, at: usize) {
    let open = {
        let mut world = shared.borrow_mut();
        let world = &mut *world;
        world.spaces[at].streams.len() < 3 && world.rng.one_in(2)
    };
    let ks = ks(shared, at);
    if open {
        let mut world = shared.borrow_mut();
        let world = &mut *world;
        let mut request = RangeRequest::new(world.span());
        request.limit = world.rng.below(40).cast_signed();
        let until = world.clock.monotonic() + world.setup.options.pin_age_max;
        match ks.range_stream(&request) {
            Ok(stream) => {
                let found = world.spaces[at].model.range(&request, stream.revision(), stream.revision());
                assert_eq!((stream.total(), stream.more()), (found.count, found.more), "{request:?}");
                let at_revision = stream.revision();
                world.spaces[at].streams.push(Stream { stream, left: found.kvs, until, at: at_revision });
            }
            Err(Error::Storage(error)) => assert!(world.allows(&error), "{error}"),
            Err(error) => panic!("{request:?}: {error}"),
        }
        return;
    }
    let Some(mut stream) = shared.borrow_mut().spaces[at].streams.pop() else { return };
    // Copied and lent by turns.
    let is_lent = stream.left.len().is_multiple_of(2);
    let chunk = among_others(shared, || if is_lent { lend(&mut stream.stream) } else { stream.stream.next() });
    let mut world = shared.borrow_mut();
    let world = &mut *world;
    match chunk {
        Some(Ok(kvs)) => {
            assert!(kvs.len() <= stream.left.len(), "a stream has more than there was");
            assert!(kvs[..] == stream.left[..kvs.len()], "a chunk of a stream at {}", stream.at);
            stream.left.drain(..kvs.len());
            world.spaces[at].streams.insert(0, stream);
        }
        None => assert!(stream.left.is_empty(), "a stream ends before its end"),
        Some(Err(Error::Refused(Refusal::Compacted { .. }))) => {
            let now = world.clock.monotonic();
            assert!(now >= stream.until, "a pin was let go at {now:?}, before {:?}", stream.until);
            world.coverage.add("pins revoked", 1);
        }
        Some(Err(Error::Storage(error))) => assert!(world.allows(&error), "{error}"),
        Some(Err(error)) => panic!("{error}"),
    }
}

/// The next chunk as it is lent.
fn lend(stream: &mut RangeStream) -> Option<polybolt::Result<Vec<KeyValue>>> {
    let mut kvs = Vec::new();
    let shown = stream.lend(&mut |kv| kvs.push(kv.to_owned()))?;
    Some(shown.map(|shown| {
        assert_eq!(shown, kvs.len());
        kvs
    }))
}

/// Registers a watcher.
pub(crate) fn watch(shared: &Shared, at: usize) {
    let mut world = shared.borrow_mut();
    let world = &mut *world;
    if world.spaces[at].watches.len() >= 4 {
        let watches = &mut world.spaces[at].watches;
        watches.remove(0);
    }
    let ks = world.spaces[at].ks.clone().expect("the keyspace is open");
    let visible = ks.revision();
    let start_revision = if world.rng.one_in(2) { 0 } else { (visible + 4 - world.rng.below(30).cast_signed()).max(1) };
    let request = WatchRequest {
        span: world.span(),
        start_revision,
        no_put: world.rng.one_in(8),
        no_delete: world.rng.one_in(8),
        prev_kv: world.rng.one_in(2),
    };
    let watcher = ks.watch(request.clone()).expect("the request is sound");
    let created = watcher.created_revision();
    assert!(created >= visible && created <= ks.revision());
    let next = if start_revision == 0 { created + 1 } else { start_revision };
    world.spaces[at].watches.push(Watch { watcher, request, next, ended: false });
}

/// Takes what all watchers of a keyspace have. `to_the_end`: nothing may be left.
pub(crate) fn drain(shared: &Shared, at: usize, to_the_end: bool) {
    let mut watches = std::mem::take(&mut shared.borrow_mut().spaces[at].watches);
    let mut storage_failed = false;
    for watch in &mut watches {
        // Catching up goes in bounded steps.
        let mut idle = 0;
        while idle < 20 && !watch.ended {
            let got =
                if to_the_end { watch.watcher.try_recv() } else { among_others(shared, || watch.watcher.try_recv()) };
            let world = shared.borrow();
            match got {
                Ok(Poll::Pending) if to_the_end => idle += 1,
                Ok(Poll::Pending) => break,
                Ok(Poll::Ready(item)) => watch.take(&world, at, item),
                Err(Error::Storage(error)) => {
                    assert!(world.allows(&error), "{error}");
                    storage_failed = true;
                    break;
                }
                Err(error) => panic!("{error}"),
            }
        }
        let world = shared.borrow();
        if to_the_end && !watch.ended && !storage_failed {
            let visible = world.spaces[at].ks.as_ref().map_or(0, Keyspace::revision);
            let missing = watch.expected(&world, at, visible);
            assert!(missing.is_empty(), "{:?} from {} never got {missing:?}", watch.request, watch.next);
            if let Some(progress) = watch.watcher.progress() {
                assert!(progress <= visible && (progress + 1 >= watch.next || watch.next > visible));
            }
        }
    }
    shared.borrow_mut().spaces[at].watches = watches;
}

impl Watch {
    fn expected(&self, world: &World, at: usize, to: i64) -> Vec<Expected> {
        let mut events = world.spaces[at].model.events(&self.request.span, self.next, to);
        events.retain(|event| match event.kind {
            EventKind::Put => !self.request.no_put,
            EventKind::Delete => !self.request.no_delete,
        });
        events
    }

    fn take(&mut self, world: &World, at: usize, item: Option<WatchItem>) {
        let space = &world.spaces[at];
        let ks = space.ks.as_ref().expect("the keyspace is open");
        match item {
            Some(WatchItem::Events { revision, events }) => {
                assert!(revision <= ks.revision(), "events of {revision} before they are visible");
                let last = events.last().expect("never empty").kv().mod_revision;
                assert!(last <= revision);
                let mut expected = self.expected(world, at, last);
                let floor_of = |key: &Bytes| ks.floors()[space.model.shard_of(key)];
                let names = |kv: &KeyValue| (kv.key.clone(), kv.mod_revision, kv.version);
                let got: Vec<_> = events.iter().map(|event| names(event.kv())).collect();
                // A compaction at exactly a revision takes out what was put and deleted by it (CMP-4), also where nobody
                // wants the delete.
                let all = space.model.events(&self.request.span, self.next, last);
                let outlived: Vec<_> = all.iter().map(|event| names(&event.kv)).collect();
                expected.retain(|event| {
                    let name = names(&event.kv);
                    let later = outlived.iter().skip_while(|other| **other != name).skip(1);
                    let again = later.clone().any(|(key, main, _)| (key, *main) == (&name.0, name.1));
                    got.contains(&name) || !again || name.1 > floor_of(&name.0)
                });
                let wanted: Vec<_> = expected.iter().map(|event| names(&event.kv)).collect();
                assert_eq!(got, wanted, "{:?} from {}", self.request, self.next);
                for (event, expected) in events.iter().zip(expected) {
                    assert_eq!((event.kind(), event.kv()), (expected.kind, &expected.kv));
                    match event.prev_kv() {
                        None => {
                            let forgotten = expected.kv.mod_revision - 1 < floor_of(&expected.kv.key);
                            let none = !self.request.prev_kv || expected.prev_kv.is_none() || forgotten;
                            assert!(none, "{event:?} lacks {:?}", expected.prev_kv);
                        }
                        prev_kv => assert_eq!(prev_kv, expected.prev_kv.as_ref(), "before {event:?}"),
                    }
                }
                self.next = last + 1;
            }
            Some(WatchItem::Compacted { compact_revision }) => {
                let floor = space.model.floor(&self.request.span, &ks.floors());
                assert_eq!(compact_revision, floor);
                assert!(self.next < floor, "cancelled at {floor}, it needs {}", self.next);
                self.ended = true;
                assert!(matches!(self.watcher.try_recv(), Ok(Poll::Ready(None))), "cancelled once");
            }
            None => panic!("a watcher ended by itself"),
        }
    }
}

/// HashKV against the model's.
pub(crate) fn hash(shared: &Shared, at: usize) {
    let ks = ks(shared, at);
    let (revision, alone) = {
        let mut world = shared.borrow_mut();
        let world = &mut *world;
        let back = world.rng.below(12).cast_signed();
        let revision = (ks.revision() - back).max(0);
        (revision, world.rng.one_in(2))
    };
    let floors = ks.probe().floors_shown;
    let found = if alone { ks.hash_kv(revision) } else { among_others(shared, || ks.hash_kv(revision)) };
    let world = shared.borrow();
    match found {
        Ok(found) => {
            let model = &world.spaces[at].model;
            let hashed = if revision == 0 { found.revision } else { revision };
            assert!(hashed == found.hash_revision && hashed >= found.compact_revision);
            // Where one rose meanwhile nobody can tell which it was hashed with.
            if floors == ks.probe().floors_shown {
                let expected = model.hash_kv(hashed, found.compact_revision, &floors, found.revision);
                assert_eq!(found, expected, "HashKV at {revision}");
            }
        }
        Err(Error::Refused(Refusal::Compacted { revision: floor })) => {
            assert!(revision < floor || !alone, "{revision} is not below {floor}");
        }
        Err(Error::Storage(error)) => assert!(world.allows(&error), "{error}"),
        Err(error) => panic!("HashKV at {revision}: {error}"),
    }
}

/// Leases, tables, attachments.
pub(crate) fn leases_and_tables(world: &World, at: usize) {
    let space = &world.spaces[at];
    let ks = space.ks.as_ref().expect("the keyspace is open");
    let mut found = ks.leases();
    found.sort_unstable();
    assert_eq!(found, space.model.now.leases.keys().copied().collect::<Vec<_>>(), "leases");
    for (id, ttl) in &space.model.now.leases {
        let lease = ks.lease_time_to_live(*id, true).expect("it was just listed");
        assert_eq!((lease.granted_ttl, lease.keys), (*ttl, space.model.keys_of(*id)), "lease {id}");
    }
    assert_eq!(ks.applied_index(), space.model.now.applied_index);
}

/// The tables. Waits until they are durable.
pub(crate) fn tables(shared: &Shared, at: usize) {
    let ks = ks(shared, at);
    for table in ["users", "roles"] {
        let found = among_others(shared, || ks.table_list(table));
        let world = shared.borrow();
        let tables = &world.spaces[at].model.now.tables;
        let expected: Vec<(Bytes, Bytes)> = tables
            .iter()
            .filter(|((of, _), _)| of == table)
            .map(|((_, key), value)| (key.clone(), value.clone()))
            .collect();
        match found {
            Ok(found) => assert_eq!(found, expected, "table {table}"),
            Err(Error::Storage(error)) => assert!(world.allows(&error), "{error}"),
            Err(error) => panic!("{error}"),
        }
    }
}

/// Everything at rest: answers given, watchers told, rows exactly those that there have to be, files sound.
pub(crate) fn quiet(shared: &Shared) {
    shared.borrow_mut().quiesce();
    if shared.borrow().is_broken() {
        return;
    }
    let spaces = shared.borrow().spaces.len();
    for at in 0..spaces {
        drain(shared, at, true);
        leases_and_tables(&shared.borrow(), at);
        tables(shared, at);
        let everything = RangeRequest::new(Span { key: Bytes::from_static(b"\0"), end: SpanEnd::Open });
        compare_range(shared, at, &everything, true);
        rows(&mut shared.borrow_mut(), at);
    }
    let world = shared.borrow();
    match world.engine().verify(&mut |_| ()) {
        Ok(_) => {}
        Err(Error::Storage(error)) => assert!(world.allows(&error), "verify: {error}"),
        Err(error) => panic!("verify: {error}"),
    }
}

/// The rows of the files and buffers: none that was not written, and, once swept, none but CMP-4's.
pub(crate) fn rows(world: &mut World, at: usize) {
    let space = &world.spaces[at];
    let ks = space.ks.as_ref().expect("the keyspace is open");
    let found = match ks.stored_rows() {
        Ok(found) => found,
        Err(Error::Storage(error)) => {
            assert!(world.allows(&error), "{error}");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let probe = ks.probe();
    let Mark { compacted, floors, .. } = &space.model.now;
    let swept = probe.is_swept && ks.compact_revision() == *compacted && probe.floors_shown == *floors;
    let wanted = space.model.rows();
    for (row, kv) in &found {
        let Some((expected, stays)) = wanted.get(row) else { panic!("{row:?} {kv:?} was never written") };
        assert_eq!(kv, expected, "row {row:?}");
        assert!(
            *stays || !swept || probe.lingering.contains(row),
            "{row:?} is still there after compaction to {}",
            space.model.now.compacted
        );
    }
    for (row, (kv, stays)) in wanted {
        assert!(!stays || found.contains_key(&row), "{row:?} {kv:?} is gone");
        assert!(!stays || !probe.lingering.contains(&row), "{row:?} {kv:?} is to go");
    }
    for row in &probe.lingering {
        assert!(found.contains_key(row), "{row:?} lingers, and is gone");
    }
    world.coverage.add("rows that linger", probe.lingering.len() as u64);
}
