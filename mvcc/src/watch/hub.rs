//! Feeding watchers.
//!
//! The writer queues the events of a revision before it can become visible; [`Hub::publish`] hands
//! them to the watchers that match, in order, whole revisions at a time, once the revision is
//! visible. A watcher is *synced* while it is fed this way. One whose queue is full, or that begins
//! in the past, is *lagging*: it reads history from its next revision on, a bounded piece at a time,
//! whenever its consumer asks, and is synced again when history has nothing more for it. So a slow
//! watcher costs a bounded queue, and each event reaches it exactly once.
//!
//! Writers and the publisher look up who watches a key. A lagging watcher is not found there, so it
//! costs them nothing however slow it is. Near the end of its history it is *enlisted*: found again from
//! the next revision on that the writer begins, and synced once it has read all before that.
//!
//! What always holds for a watcher: all matching events below `next` were put in its queue, none at
//! or above. A revision is fed only if it is at or above `next`.

use super::ranges::Ranges;
use crate::event::{Event, EventKind};
use crate::request::{SpanEnd, WatchRequest};
use bytes::Bytes;
use polybolt_engine::defect::{Defect, is_on};
use polybolt_engine::sync::Mutex;
use polybolt_engine::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::task::Waker;

/// All watchers of a keyspace.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    // Lock order: `state`, then a feed's own lock.
    state: Mutex<State>,
    watchers: AtomicUsize,
    /// Those that writers find.
    enlisted: AtomicUsize,
    counts: Arc<Counts>,
}

/// Events of all watchers.
#[derive(Debug, Default)]
struct Counts {
    /// In queues.
    pending: AtomicU64,
    /// Taken out of them.
    taken: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    feeds: BTreeMap<u64, Arc<Feed>>,
    /// Enlisted watchers of one key.
    singles: HashMap<Bytes, Vec<u64>>,
    /// Enlisted watchers of more than one key.
    ranges: Ranges,
    /// Those that are not synced.
    lagging: BTreeSet<u64>,
    /// Those of them that have read all there is, until more is published.
    waiting: BTreeSet<u64>,
    next_id: u64,
    queued: VecDeque<Revision>,
    /// Everything up to here was fed.
    published: u64,
}

/// The events of a revision that is not visible yet.
#[derive(Debug)]
struct Revision {
    main: u64,
    events: Vec<Event>,
    /// Bytes that any of them keeps alive: its record's.
    record_bytes: usize,
}

impl State {
    /// The enlisted watchers of a key.
    fn watchers_of(&self, key: &[u8]) -> impl Iterator<Item = &u64> {
        self.singles.get(key).into_iter().flatten().chain(self.ranges.at(key))
    }

    fn enlist(&mut self, feed: &Feed) {
        match &feed.request.span.end {
            SpanEnd::Single => self.singles.entry(feed.request.span.key.clone()).or_default().push(feed.id),
            _ => self.ranges.add(feed.id, &feed.request.span),
        }
    }

    fn strike(&mut self, feed: &Feed) {
        match &feed.request.span.end {
            SpanEnd::Single => {
                if let Some(ids) = self.singles.get_mut(&feed.request.span.key) {
                    ids.retain(|have| *have != feed.id);
                    if ids.is_empty() {
                        self.singles.remove(&feed.request.span.key);
                    }
                }
            }
            _ => self.ranges.remove(feed.id, &feed.request.span),
        }
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
    counts: Arc<Counts>,
    state: Mutex<FeedState>,
}

#[derive(Debug, Default)]
struct FeedState {
    /// Events of whole revisions, and the bytes that each is counted as.
    queue: VecDeque<(Event, usize)>,
    bytes: usize,
    /// The lowest revision that was not looked at for this watcher.
    next: u64,
    synced: bool,
    /// Writers find it from the revision after this one on.
    enlisted: Option<u64>,
    /// Revisions that found it lagging since it was enlisted.
    missed: u32,
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

/// An enlisted watcher that lags for so many of its revisions has stopped reading: it is struck off again.
const MISSED_MAX: u32 = 64;
/// The most revisions handed out at once (WCH-19).
const MAINS_PER_TAKE: usize = 1000;

impl Hub {
    /// What is wanted of a key. Nearly free while nobody that keeps up watches.
    pub(crate) fn interest(&self, key: &[u8]) -> Interest {
        if !self.is_watched() {
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

    /// True if anybody that keeps up watches anything.
    pub(crate) fn is_watched(&self) -> bool {
        self.enlisted.load(Ordering::Acquire) > 0
    }

    /// How many watchers there are.
    pub(crate) fn len(&self) -> usize {
        self.watchers.load(Ordering::Acquire)
    }

    /// Watchers that lag, events that are queued, and events that were taken.
    pub(crate) fn counts(&self) -> (u64, u64, u64) {
        let lagging = self.state.lock().lagging.len() as u64;
        (lagging, self.counts.pending.load(Ordering::Relaxed), self.counts.taken.load(Ordering::Relaxed))
    }

    /// Events of a revision that is not visible yet. Requires: the keyspace's writer is held.
    pub(crate) fn queue(&self, main: u64, events: Vec<Event>, record_bytes: usize) {
        if !events.is_empty() {
            self.state.lock().queued.push_back(Revision { main, events, record_bytes });
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
        let own = FeedState { next, synced, enlisted: synced.then_some(applied), ..FeedState::default() };
        let feed = Arc::new(Feed { id, request, bytes_max, counts: Arc::clone(&self.counts), state: Mutex::new(own) });
        if synced {
            state.enlist(&feed);
            self.enlisted.fetch_add(1, Ordering::AcqRel);
        } else {
            state.lagging.insert(id);
        }
        state.feeds.insert(id, Arc::clone(&feed));
        self.watchers.store(state.feeds.len(), Ordering::Release);
        (id, feed)
    }

    /// Lets writers find a lagging watcher, from the revision after `applied` on. Requires: the
    /// keyspace's writer is held, and `applied` is its newest revision.
    pub(crate) fn enlist(&self, feed: &Feed, applied: u64) {
        let mut state = self.state.lock();
        let mut own = feed.state.lock();
        if own.enlisted.is_none() && !own.ended {
            (own.enlisted, own.missed) = (Some(applied), 0);
            state.enlist(feed);
            self.enlisted.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Takes a watcher out.
    pub(crate) fn cancel(&self, id: u64) {
        let mut state = self.state.lock();
        let Some(feed) = state.feeds.remove(&id) else { return };
        state.lagging.remove(&id);
        state.waiting.remove(&id);
        if feed.state.lock().enlisted.take().is_some() {
            state.strike(&feed);
            self.enlisted.fetch_sub(1, Ordering::AcqRel);
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
        while state.queued.front().is_some_and(|next| next.main <= visible) {
            let Some(Revision { main, events, record_bytes }) = state.queued.pop_front() else { break };
            let mut lagging = Vec::new();
            let mut feed = |id: u64, events: &[Event]| {
                if !state.feeds[&id].feed(main, events, record_bytes) {
                    lagging.push(id);
                }
            };
            if let [event] = &events[..] {
                state.watchers_of(&event.kv().key).for_each(|id| feed(*id, std::slice::from_ref(event)));
            } else {
                // A revision reaches a watcher as a whole (WCH-15).
                let mut matching: BTreeMap<u64, Vec<Event>> = BTreeMap::new();
                for event in &events {
                    for id in state.watchers_of(&event.kv().key) {
                        matching.entry(*id).or_default().push(event.clone());
                    }
                }
                matching.iter().for_each(|(id, events)| feed(*id, events));
            }
            for id in lagging {
                let feed = Arc::clone(&state.feeds[&id]);
                feed.state.lock().enlisted = None;
                state.strike(&feed);
                self.enlisted.fetch_sub(1, Ordering::AcqRel);
                state.lagging.insert(id);
            }
        }
        for id in std::mem::take(&mut state.waiting) {
            state.feeds[&id].nudge();
        }
    }

    /// Ends the catching up of a watcher whose next revision has not been fed to anybody yet, if writers
    /// knew of it since before that one; otherwise false, and history has to be read on.
    pub(crate) fn sync(&self, feed: &Feed) -> bool {
        let mut state = self.state.lock();
        let mut own = feed.state.lock();
        if own.next > state.published && !own.ended {
            if own.enlisted.is_some_and(|applied| own.next > applied) {
                own.synced = true;
                state.lagging.remove(&feed.id);
            } else {
                state.waiting.insert(feed.id);
            }
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

    /// The contents of the keyspace were replaced by a state at `main`. What was queued and not shown is
    /// part of that or never was; every watcher goes on from its next revision, out of history if that
    /// has it. Requires: the keyspace's writer is held.
    pub(crate) fn reset(&self, main: u64) {
        let mut state = self.state.lock();
        let State { feeds, lagging, waiting, queued, published, .. } = &mut *state;
        queued.clear();
        waiting.clear();
        *lagging = feeds.values().filter(|feed| !feed.reset(*published, main)).map(|feed| feed.id).collect();
        *published = main;
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

    /// A live revision: those of its events that match, in a record of so many bytes. A full queue makes
    /// the watcher lag from here on. False if it is to be struck off.
    fn feed(&self, main: u64, events: &[Event], record_bytes: usize) -> bool {
        let mut state = self.state.lock();
        if !state.synced {
            state.missed += 1;
            return state.missed < MISSED_MAX;
        }
        if main < state.next || state.ended {
            return true;
        }
        let wanted = || events.iter().filter(|event| self.wants(event.kind()));
        let bytes = wanted().map(Event::kept_bytes).sum::<usize>() + record_bytes;
        if state.bytes > 0 && state.bytes + bytes > self.bytes_max && wanted().next().is_some() {
            state.synced = false;
            state.next = main + u64::from(is_on(Defect::SkipLaggingEvents));
            return false;
        }
        state.next = main + 1;
        self.push(&mut state, wanted().cloned(), record_bytes);
        true
    }

    /// Goes on at a state at `main`; false if it lags there. `published` was fed before. What the writer
    /// begins from now on is queued for it if it is enlisted.
    fn reset(&self, published: u64, main: u64) -> bool {
        let mut state = self.state.lock();
        if state.synced {
            // All of that was looked at, whether it matched or not.
            state.next = state.next.max(published + 1);
        }
        state.enlisted = state.enlisted.map(|_| main);
        state.missed = 0;
        state.synced = state.enlisted.is_some() && state.next > main;
        self.wake(&mut state);
        state.synced
    }

    /// Queues the events of a revision. What they share is counted with the first.
    fn push(&self, state: &mut FeedState, events: impl Iterator<Item = Event>, mut shared_bytes: usize) {
        let before = state.queue.len();
        for event in events {
            let bytes = event.kept_bytes() + std::mem::take(&mut shared_bytes);
            state.bytes += bytes;
            state.queue.push_back((event.seen(self.request.prev_kv), bytes));
        }
        if state.queue.len() > before {
            self.counts.pending.fetch_add((state.queue.len() - before) as u64, Ordering::Relaxed);
            self.wake(state);
        }
    }

    /// What history holds for it: events of whole revisions up to `upto`, everything looked at.
    pub(crate) fn caught_up(&self, upto: u64, events: Vec<Event>) {
        let mut state = self.state.lock();
        if state.ended {
            return;
        }
        let next = state.next.cast_signed();
        self.push(&mut state, events.into_iter().filter(|event| event.kv().mod_revision >= next), 0);
        state.next = state.next.max(upto + 1);
    }

    /// Takes what is queued, whole revisions.
    pub(crate) fn take(&self) -> Take {
        let mut state = self.state.lock();
        if state.ended {
            return Take::Ended;
        }
        let (mut events, mut mains, mut upto) = (Vec::with_capacity(state.queue.len()), 0, 0);
        while let Some((event, bytes)) = state.queue.pop_front() {
            let main = event.kv().mod_revision.cast_unsigned();
            if main != upto && mains == MAINS_PER_TAKE {
                state.queue.push_front((event, bytes));
                break;
            }
            mains += usize::from(main != upto);
            upto = main;
            state.bytes -= bytes;
            events.push(event);
        }
        self.counts.pending.fetch_sub(events.len() as u64, Ordering::Relaxed);
        self.counts.taken.fetch_add(events.len() as u64, Ordering::Relaxed);
        match events.is_empty() {
            false => Take::Events { upto, events },
            true if state.synced => Take::Nothing,
            true => Take::Behind(state.next),
        }
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

    /// True if it lags, has read all that is visible, and writers do not find it yet.
    pub(crate) fn is_to_be_enlisted(&self, visible: u64) -> bool {
        let state = self.state.lock();
        !state.synced && state.enlisted.is_none() && state.next > visible
    }

    /// Remembers whom to wake.
    pub(crate) fn set_waker(&self, waker: &Waker) {
        self.state.lock().waker = Some(waker.clone());
    }

    /// Ends it; nobody takes what is queued.
    pub(crate) fn end(&self) {
        let mut state = self.state.lock();
        state.ended = true;
        self.counts.pending.fetch_sub(state.queue.len() as u64, Ordering::Relaxed);
        state.queue.clear();
        self.wake(&mut state);
    }

    /// More is visible: a lagging watcher may read on.
    fn nudge(&self) {
        self.wake(&mut self.state.lock());
    }

    fn wake(&self, state: &mut FeedState) {
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests;
