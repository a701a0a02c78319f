//! The names of things: spaces, trees, and places in a tree file.

use std::fmt;

/// Tree files are allocated in units of this many bytes; a page or overflow extent is one or more.
pub const UNIT_BYTES: usize = 4096;

/// A space: a group of trees that commit together and are created and dropped together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpaceId(pub u32);

/// A tree, unique in its store and never used again. It is also the file id in the tree's pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TreeId(pub u32);

/// A pointer to a page or extent: its first unit, and the checkpoint that must have written it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PagePtr {
    /// The first unit of the page.
    pub unit: u32,
    /// The checkpoint that wrote it; a page there with another epoch is stale or misplaced.
    pub epoch: u64,
}

impl fmt::Display for SpaceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for TreeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
