//! What watchers get: events, made once and shared by all watchers that match.

use crate::request::KeyValue;
use crate::wire;
use bytes::Bytes;
use std::fmt;
use std::sync::{Arc, OnceLock};

/// What kind of change an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// A put.
    Put,
    /// A delete, an expiry or a revoke.
    Delete,
}

/// One change of one key. Cloning it shares it.
#[derive(Clone)]
pub struct Event {
    shared: Arc<Shared>,
    /// The watcher asked for the version before.
    with_prev: bool,
}

struct Shared {
    kind: EventKind,
    kv: KeyValue,
    prev_kv: Option<KeyValue>,
    // Encoded by the first watcher that is sent it.
    wire: OnceLock<Bytes>,
    wire_with_prev: OnceLock<Bytes>,
}

impl Event {
    /// An event with the version before, None at a creation or if nobody wants it.
    pub(crate) fn new(kind: EventKind, kv: KeyValue, prev_kv: Option<KeyValue>) -> Event {
        let with_prev = prev_kv.is_some();
        let shared = Shared { kind, kv, prev_kv, wire: OnceLock::new(), wire_with_prev: OnceLock::new() };
        Event { shared: Arc::new(shared), with_prev }
    }

    /// The event as a watcher sees it that asked, or did not, for the version before.
    pub(crate) fn seen(mut self, with_prev: bool) -> Event {
        self.with_prev = with_prev && self.shared.prev_kv.is_some();
        self
    }

    /// What happened.
    pub fn kind(&self) -> EventKind {
        self.shared.kind
    }

    /// The new version; of a delete only key and `mod_revision` are set (WCH-13).
    pub fn kv(&self) -> &KeyValue {
        &self.shared.kv
    }

    /// The version before, captured when it happened; None at a creation, or if it was not asked for.
    pub fn prev_kv(&self) -> Option<&KeyValue> {
        self.shared.prev_kv.as_ref().filter(|_| self.with_prev)
    }

    /// The event as a protobuf `mvccpb.Event`. Encoded once, however many watchers it is sent to.
    pub fn wire(&self) -> Bytes {
        let slot = if self.with_prev { &self.shared.wire_with_prev } else { &self.shared.wire };
        slot.get_or_init(|| wire::event(self.kind() == EventKind::Delete, self.kv(), self.prev_kv())).clone()
    }

    /// Bytes that it keeps alive besides the record which its key and value are a part of: the version
    /// before, and both again as they are sent.
    pub(crate) fn kept_bytes(&self) -> usize {
        let bytes = |kv: &KeyValue| kv.key.len() + kv.value.len();
        bytes(&self.shared.kv) + 2 * self.shared.prev_kv.as_ref().map_or(0, bytes) + size_of::<Shared>()
    }
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        (self.kind(), self.kv(), self.prev_kv()) == (other.kind(), other.kv(), other.prev_kv())
    }
}

impl Eq for Event {}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Event");
        out.field("kind", &self.kind()).field("kv", self.kv()).field("prev_kv", &self.prev_kv());
        out.finish_non_exhaustive()
    }
}

/// What a watcher yields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchItem {
    /// Matching events of one or more whole revisions, in order.
    Events {
        /// The header revision: at least the last event's (WCH-20).
        revision: i64,
        /// The events; never empty.
        events: Vec<Event>,
    },
    /// What it needs next was compacted; the watcher has ended.
    Compacted {
        /// The compacted revision.
        compact_revision: i64,
    },
}
