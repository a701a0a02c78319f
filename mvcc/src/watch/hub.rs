//! Feeding watchers.
//!
//! The writer queues the events of a revision before it can become visible; [`Hub::publish`] hands
//! them to the watchers that match, in order, whole revisions at a time, once the revision is
//! visible. A watcher is *synced* while it is fed this way. One whose queue is full, or that begins
//! in the past, is *lagging*: it reads history from its next revision on, a bounded piece at a time,
//! whenever its consumer asks, and is synced again when history has nothing more for it. So a slow
//! watcher costs a bounded queue and slows nobody, and each event reaches it exactly once.
//!
//! What always holds for a watcher: all matching events below `next` were put in its queue, none at
//! or above. A revision is fed only if it is at or above `next`.

use super::ranges::Ranges;
use crate::request::{Event, EventKind, SpanEnd, WatchRequest};
use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Waker;
use std::time::Duration;

/// All watchers of a keyspace.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    // Lock order: `state`, then a feed's own lock.
    state: Mutex<State>,
    watchers: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    feeds: BTreeMap<u64, Arc<Feed>>,
    /// Watchers of one key.
    singles: HashMap<Bytes, Vec<u64>>,
    /// Watchers of more than one key.
    ranges: Ranges,
    /// Those that are not synced.
    lagging: BTreeSet<u64>,
    next_id: u64,
    queued: VecDeque<(u64, Vec<Arc<Event>>)>,
    /// Everything up to here was fed.
    published: u64,
}

impl State {
    /// The watchers of a key.
    fn watchers_of(&self, key: &[u8]) -> impl Iterator<Item = &u64> {
        self.singles.get(key).into_iter().flatten().chain(self.ranges.at(key))
    }
}

/// What the writer has to know about a key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Interest {
    /// Somebody watches it.
    pub(crate) any: bool,
    /// Somebody wants to see the version before.
    pub(crate) prev: bool,
}

/// One watcher's side of the hub.
#[derive(Debug)]
pub(crate) struct Feed {
    id: u64,
    pub(crate) request: WatchRequest,
    bytes_max: usize,
    state: Mutex<FeedState>,
    moved: Condvar,
}

#[derive(Debug, Default)]
struct FeedState {
    /// Shared with other watchers until they are taken.
    queue: VecDeque<(u64, Vec<Arc<Event>>)>,
    bytes: usize,
    /// The lowest revision that was not looked at for this watcher.
    next: u64,
    synced: bool,
    ended: bool,
    waker: Option<Waker>,
}

/// What a consumer gets.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Take {
    /// Events of whole revisions up to `upto`, in order.
    Events { upto: u64, events: Vec<Event> },
    /// Nothing is queued and history from this revision on has to be read.
    Behind(u64),
    /// Nothing now.
    Nothing,
    /// The watcher has ended.
    Ended,
}

/// The most revisions handed out at once (WCH-19).
const MAINS_PER_TAKE: usize = 1000;

impl Hub {
    /// What is wanted of a key. Nearly free while nobody watches.
    pub(crate) fn interest(&self, key: &[u8]) -> Interest {
        if self.watchers.load(Ordering::Acquire) == 0 {
            return Interest::default();
        }
        let state = self.state.lock();
        let mut interest = Interest::default();
        for id in state.watchers_of(key) {
            interest.any = true;
            if state.feeds[id].request.prev_kv {
                interest.prev = true;
                break;
            }
        }
        interest
    }

    /// True if anybody watches anything.
    pub(crate) fn is_watched(&self) -> bool {
        self.watchers.load(Ordering::Acquire) > 0
    }

    /// How many watchers there are.
    pub(crate) fn len(&self) -> usize {
        self.watchers.load(Ordering::Acquire)
    }

    /// Events of a revision that is not visible yet. Requires: the keyspace's writer is held.
    pub(crate) fn queue(&self, main: u64, events: Vec<Arc<Event>>) {
        if !events.is_empty() {
            self.state.lock().queued.push_back((main, events));
        }
    }

    /// Registers a watcher that needs every revision from `next` on. `applied` is the newest revision
    /// whose events may not have been queued. Requires: the keyspace's writer is held.
    pub(crate) fn register(
        &self,
        request: WatchRequest,
        next: u64,
        applied: u64,
        bytes_max: usize,
    ) -> (u64, Arc<Feed>) {
        let mut state = self.state.lock();
        state.next_id += 1;
        let id = state.next_id;
        let synced = next > applied;
        if !synced {
            state.lagging.insert(id);
        }
        let feed = Arc::new(Feed {
            id,
            request,
            bytes_max,
            state: Mutex::new(FeedState { next, synced, ..FeedState::default() }),
            moved: Condvar::new(),
        });
        match &feed.request.span.end {
            SpanEnd::Single => state.singles.entry(feed.request.span.key.clone()).or_default().push(id),
            _ => state.ranges.add(id, &feed.request.span),
        }
        state.feeds.insert(id, Arc::clone(&feed));
        self.watchers.store(state.feeds.len(), Ordering::Release);
        (id, feed)
    }

    /// Takes a watcher out.
    pub(crate) fn cancel(&self, id: u64) {
        let mut state = self.state.lock();
        let Some(feed) = state.feeds.remove(&id) else { return };
        state.lagging.remove(&id);
        match &feed.request.span.end {
            SpanEnd::Single => {
                if let Some(ids) = state.singles.get_mut(&feed.request.span.key) {
                    ids.retain(|have| *have != id);
                    if ids.is_empty() {
                        state.singles.remove(&feed.request.span.key);
                    }
                }
            }
            _ => state.ranges.remove(id, &feed.request.span),
        }
        self.watchers.store(state.feeds.len(), Ordering::Release);
        if state.feeds.is_empty() {
            state.queued.clear();
        }
        drop(state);
        feed.end();
    }

    /// Feeds everything up to `visible`. Called in order of revisions.
    pub(crate) fn publish(&self, visible: u64) {
        let mut state = self.state.lock();
        let state = &mut *state;
        state.published = state.published.max(visible);
        if state.feeds.is_empty() {
            state.queued.clear();
            return;
        }
        while state.queued.front().is_some_and(|(main, _)| *main <= visible) {
            let Some((main, events)) = state.queued.pop_front() else { break };
            let mut matching: BTreeMap<u64, Vec<Arc<Event>>> = BTreeMap::new();
            for event in &events {
                for id in state.watchers_of(&event.kv.key) {
                    let wanted = state.feeds[id].wants(event.kind).then(|| Arc::clone(event));
                    matching.entry(*id).or_default().extend(wanted);
                }
            }
            for (id, events) in matching {
                if !state.feeds[&id].feed(main, events) {
                    state.lagging.insert(id);
                }
            }
        }
        for id in &state.lagging {
            state.feeds[id].nudge();
        }
    }

    /// Ends the catching up of a watcher whose next revision has not been fed to anybody yet; false
    /// if it has, and history has to be read on.
    pub(crate) fn sync(&self, feed: &Feed, applied_at_registration: u64) -> bool {
        let mut state = self.state.lock();
        let mut own = feed.state.lock();
        if own.next > state.published && own.next > applied_at_registration {
            own.synced = true;
            state.lagging.remove(&feed.id);
        }
        own.synced
    }

    /// Up to where everything that matches was fed and taken; None while it lags or has some queued.
    /// Not the visible revision: that moves before its events are fed.
    pub(crate) fn progress(&self, feed: &Feed) -> Option<u64> {
        let state = self.state.lock();
        let own = feed.state.lock();
        let idle = own.synced && own.queue.is_empty() && !own.ended;
        let reached = feed.request.start_revision <= state.published.cast_signed();
        // History may have shown it more than was published since.
        (idle && reached).then_some(state.published.max(own.next.saturating_sub(1)))
    }

    /// Fails all watchers: the keyspace goes.
    pub(crate) fn close(&self) {
        let state = self.state.lock();
        state.feeds.values().for_each(|feed| feed.end());
    }
}

impl Feed {
    /// True if its filters let the event pass.
    pub(crate) fn wants(&self, kind: EventKind) -> bool {
        match kind {
            EventKind::Put => !self.request.no_put,
            EventKind::Delete => !self.request.no_delete,
        }
    }

    /// The event as this watcher sees it.
    fn seen(&self, event: Arc<Event>) -> Event {
        let mut event = Arc::unwrap_or_clone(event);
        if !self.request.prev_kv {
            event.prev_kv = None;
        }
        event
    }

    /// A live revision. A full queue makes the watcher lag from here on: false if it does.
    fn feed(&self, main: u64, events: Vec<Arc<Event>>) -> bool {
        let mut state = self.state.lock();
        if !state.synced || main < state.next || state.ended {
            return state.synced || state.ended;
        }
        let bytes: usize = events.iter().map(|event| event_bytes(event)).sum();
        if state.bytes > 0 && state.bytes + bytes > self.bytes_max {
            state.synced = false;
            state.next = main;
            return false;
        }
        state.next = main + 1;
        if !events.is_empty() {
            state.bytes += bytes;
            state.queue.push_back((main, events));
            self.wake(&mut state);
        }
        true
    }

    /// What history holds for it: events of whole revisions up to `upto`, everything looked at.
    pub(crate) fn caught_up(&self, upto: u64, events: Vec<(u64, Vec<Event>)>) {
        let mut state = self.state.lock();
        for (main, events) in events {
            if main >= state.next && !events.is_empty() {
                state.bytes += events.iter().map(event_bytes).sum::<usize>();
                state.queue.push_back((main, events.into_iter().map(Arc::new).collect()));
            }
        }
        state.next = state.next.max(upto + 1);
    }

    /// Takes what is queued.
    pub(crate) fn take(&self) -> Take {
        let mut state = self.state.lock();
        if state.ended {
            return Take::Ended;
        }
        let count = state.queue.len().min(MAINS_PER_TAKE);
        if count == 0 {
            return if state.synced { Take::Nothing } else { Take::Behind(state.next) };
        }
        let taken: Vec<_> = state.queue.drain(..count).collect();
        let upto = taken.last().map_or(0, |(main, _)| *main);
        let bytes: usize = taken.iter().flat_map(|(_, events)| events).map(|event| event_bytes(event)).sum();
        state.bytes = state.bytes.saturating_sub(bytes);
        drop(state);
        // Outside of the lock: the publisher does not wait for copies.
        let all = taken.into_iter().flat_map(|(_, events)| events).map(|event| self.seen(event)).collect();
        Take::Events { upto, events: all }
    }

    /// True if it is synced with nothing queued: all that is visible was taken.
    pub(crate) fn is_idle(&self) -> bool {
        let state = self.state.lock();
        state.synced && state.queue.is_empty() && !state.ended
    }

    /// The revision it needs next, while it lags with nothing queued.
    pub(crate) fn take_next(&self) -> Option<u64> {
        let state = self.state.lock();
        (!state.synced && state.queue.is_empty()).then_some(state.next)
    }

    /// Remembers whom to wake.
    pub(crate) fn set_waker(&self, waker: &Waker) {
        self.state.lock().waker = Some(waker.clone());
    }

    /// Waits for something to take, or for time to pass.
    pub(crate) fn wait(&self, limit: Duration) {
        let mut state = self.state.lock();
        if state.queue.is_empty() && !state.ended {
            self.moved.wait_for(&mut state, limit);
        }
    }

    /// Ends it.
    pub(crate) fn end(&self) {
        let mut state = self.state.lock();
        state.ended = true;
        self.wake(&mut state);
    }

    /// More is visible: a lagging watcher may read on.
    fn nudge(&self) {
        self.wake(&mut self.state.lock());
    }

    fn wake(&self, state: &mut FeedState) {
        self.moved.notify_all();
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }
}

fn event_bytes(event: &Event) -> usize {
    let prev = event.prev_kv.as_ref().map_or(0, |kv| kv.key.len() + kv.value.len());
    event.kv.key.len() + event.kv.value.len() + prev + size_of::<Event>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{KeyValue, Span};

    fn request(span: Span) -> WatchRequest {
        WatchRequest { span, start_revision: 0, no_put: false, no_delete: false, prev_kv: false }
    }

    fn event(key: &'static str, main: u64) -> Arc<Event> {
        let kv = KeyValue {
            key: Bytes::from_static(key.as_bytes()),
            mod_revision: main.cast_signed(),
            ..KeyValue::default()
        };
        Arc::new(Event { kind: EventKind::Put, kv, prev_kv: None })
    }

    fn mains(take: Take) -> Vec<i64> {
        match take {
            Take::Events { events, .. } => events.iter().map(|event| event.kv.mod_revision).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn events_wait_until_they_are_visible_and_reach_those_who_match() {
        let hub = Hub::default();
        let (_, one) = hub.register(request(Span::key("a")), 3, 2, 1 << 20);
        let (_, all) = hub.register(request(Span::prefix("")), 3, 2, 1 << 20);
        assert!(hub.interest(b"a").any && hub.interest(b"b").any);
        hub.queue(3, vec![event("a", 3), event("b", 3)]);
        hub.queue(4, vec![event("b", 4)]);
        assert_eq!(one.take(), Take::Nothing);
        hub.publish(3);
        assert_eq!(mains(one.take()), [3]);
        assert_eq!(mains(all.take()), [3, 3]);
        hub.publish(4);
        assert_eq!(one.take(), Take::Nothing);
        assert_eq!(mains(all.take()), [4]);
    }

    #[test]
    fn a_full_queue_lags_from_the_first_revision_that_did_not_fit() {
        let hub = Hub::default();
        let (id, feed) = hub.register(request(Span::key("a")), 3, 2, 1);
        for main in 3..6 {
            hub.queue(main, vec![event("a", main)]);
        }
        hub.publish(5);
        assert_eq!(mains(feed.take()), [3]);
        assert_eq!(feed.take(), Take::Behind(4));
        assert!(!hub.sync(&feed, 2));
        feed.caught_up(5, vec![(4, vec![(*event("a", 4)).clone()]), (5, vec![(*event("a", 5)).clone()])]);
        assert!(hub.sync(&feed, 2));
        assert_eq!(mains(feed.take()), [4, 5]);
        hub.queue(6, vec![event("a", 6)]);
        hub.publish(6);
        assert_eq!(mains(feed.take()), [6]);
        hub.cancel(id);
        assert_eq!(feed.take(), Take::Ended);
        assert_eq!(hub.len(), 0);
    }
}
