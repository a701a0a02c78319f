//! Revisions, what a lookup finds, and key ranges.

/// A place in a keyspace's history: the `sub`th change of transaction `main`. Mains may jump.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Revision {
    /// The transaction.
    pub main: u64,
    /// The change in it, from 0.
    pub sub: u32,
}

impl Revision {
    /// `(main, sub)`.
    pub fn new(main: u64, sub: u32) -> Self {
        Revision { main, sub }
    }
}

/// A key that is live at the revision asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hit {
    /// The revision of its newest version there.
    pub modified: Revision,
    /// None if it has a newer state by now: then its record says.
    pub life: Option<Life>,
}

/// One life of a key: from a put of what was not there to a delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    /// The main at which it began.
    pub created: u64,
    /// How many puts since then, that one included.
    pub version: u64,
}

/// The keys from `start` up to before `end`, or to the last key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyRange<'a> {
    /// The first key, inclusive.
    pub start: &'a [u8],
    /// Before this key; None is no bound. An end at or below the start leaves nothing.
    pub end: Option<&'a [u8]>,
}

impl KeyRange<'_> {
    /// Every key.
    pub const ALL: KeyRange<'static> = KeyRange { start: b"", end: None };

    /// True if `key` is below the end.
    pub fn is_below_end(&self, key: &[u8]) -> bool {
        self.end.is_none_or(|end| key < end)
    }

    /// True if `key` lies in it.
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= self.start && self.is_below_end(key)
    }

    /// True if no key can lie in it.
    pub fn is_empty(&self) -> bool {
        self.end.is_some_and(|end| end <= self.start)
    }
}
