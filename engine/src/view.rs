//! One tree at one moment: its root, and the buffers over it.
//!
//! A view is one pointer load and holds no lock. Its pages stay while it lives (R7), so it should
//! not live long: a long read takes a fresh view per chunk (S3). Entries added to the newest buffer
//! after the view was taken may show; callers whose keys are revisions ask for none of those.

use crate::batch::Edit;
use crate::buffer::TreeBuffer;
use crate::error::{Error, Result};
use crate::file::{Pages, TreeFile};
use crate::ids::UNIT_BYTES;
use crate::page::Leaf;
use crate::page::leaf::{BodyAt, Entry, ExtentRef};
use crate::tree::{self, Low, PageSource, Place, Root};
use bytes::Bytes;
use std::ops::{Bound, Range};
use std::sync::Arc;

/// What readers of a tree see; replaced as a whole by a cut or a checkpoint.
#[derive(Debug)]
pub struct Published {
    /// The root of the last checkpoint.
    pub root: Root,
    /// The manifest commit that the root is of.
    pub commit: u64,
    /// The file; None for a tree that lives in its buffer alone.
    pub file: Option<Arc<TreeFile>>,
    /// Cut for a checkpoint that is under way.
    pub frozen: Option<Arc<TreeBuffer>>,
    /// What is applied since.
    pub active: Arc<TreeBuffer>,
}

/// A stored value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The part that stays in the leaf.
    pub head: Bytes,
    /// The part that may overflow.
    pub body: Bytes,
}

/// One tree at one moment.
#[derive(Debug, Clone)]
pub struct View {
    published: Arc<Published>,
}

/// How many buffered entries a walk takes at a time.
const RUN: usize = 64;
/// How many keys are looked up under one hold of a buffer's lock.
const KEYS_TOGETHER: usize = 256;

impl View {
    /// A view of what is published now.
    pub fn new(published: Arc<Published>) -> Self {
        View { published }
    }

    /// A view of a buffer alone.
    pub fn of_buffer(active: Arc<TreeBuffer>) -> Self {
        View::new(Arc::new(Published { root: Root::default(), commit: 0, file: None, frozen: None, active }))
    }

    /// The value of a key. O(log n).
    pub fn get(&self, key: &[u8]) -> Result<Option<Stored>> {
        self.show(key, true, |lent| lent.copy())
    }

    /// The head of a key's value; never reads an overflow extent. O(log n).
    pub fn head(&self, key: &[u8]) -> Result<Option<Bytes>> {
        self.show(key, false, |lent| Bytes::copy_from_slice(lent.head))
    }

    /// Shows the value of a key where it lies, its body only if `with_body`. O(log n), and nothing is allocated.
    pub fn show<T>(&self, key: &[u8], with_body: bool, show: impl FnOnce(Lent<'_>) -> T) -> Result<Option<T>> {
        self.published.show(key, with_body, show)
    }

    /// Looks up keys in the order in which they are given, and shows each with its place in `keys`, where it lies, until
    /// `visit` says false. Bodies in extents are read only if `with_body`.
    pub fn get_many<K: AsRef<[u8]>, E: From<Error>>(
        &self,
        keys: &[K],
        with_body: bool,
        visit: &mut impl FnMut(usize, Option<Lent<'_>>) -> Result<bool, E>,
    ) -> Result<(), E> {
        let mut edits = Vec::new();
        for (base, keys) in (0..).step_by(KEYS_TOGETHER).zip(keys.chunks(KEYS_TOGETHER)) {
            self.published.active.get_many(keys, base, &mut edits);
            if let Some(buffer) = &self.published.frozen {
                buffer.get_many(keys, base, &mut edits);
            }
        }
        if edits.is_empty() {
            return self.get_in_tree(keys, with_body, visit);
        }
        // Of two the newest holds, which a stable sort leaves in front.
        edits.sort_by_key(|(at, _)| *at);
        edits.dedup_by_key(|(at, _)| *at);
        let mut buffered = edits.iter().map(|(at, _)| *at).peekable();
        let rest: Vec<usize> = (0..keys.len()).filter(|at| buffered.next_if_eq(at).is_none()).collect();
        let mut edits = edits.into_iter().peekable();
        let rest_keys: Vec<&K> = rest.iter().map(|at| &keys[*at]).collect();
        let mut more = true;
        self.get_in_tree(&rest_keys, with_body, &mut |at, lent| {
            while let Some((before, edit)) = edits.next_if(|(before, _)| more && *before < rest[at]) {
                more = visit(before, Lent::of_edit(&edit, with_body))?;
            }
            more = more && visit(rest[at], lent)?;
            Ok::<_, E>(more)
        })?;
        while let Some((at, edit)) = edits.next_if(|_| more) {
            more = visit(at, Lent::of_edit(&edit, with_body))?;
        }
        Ok(())
    }

    fn get_in_tree<K: AsRef<[u8]>, E: From<Error>>(
        &self,
        keys: &[K],
        with_body: bool,
        visit: &mut impl FnMut(usize, Option<Lent<'_>>) -> Result<bool, E>,
    ) -> Result<(), E> {
        let root = self.published.root;
        let (Some(pages), Some(first)) = (self.pages()?, keys.first()) else {
            for at in 0..keys.len() {
                if !visit(at, None)? {
                    break;
                }
            }
            return Ok(());
        };
        let visit = &mut |at, lent: Option<tree::Lent<'_>>| {
            visit(at, lent.map(|lent| Lent::of_tree(&pages, lent, with_body)).transpose()?)
        };
        match &*pages.leaves(root, keys.len(), first.as_ref()) {
            Some(leaves) => leaves.get_many(&pages, keys, visit),
            None => tree::get_many(&pages, root, keys, visit),
        }
    }

    /// Shows the leaves of the tree where ascending keys lie or would, until `visit` says false, each with the place in
    /// `keys` of the first that may be in it. What buffers hold is not in them; if there is no tree but buffers, none is
    /// shown.
    pub fn leaves_of<K: AsRef<[u8]>>(
        &self,
        keys: &[K],
        visit: &mut impl FnMut(usize, LeafView<'_>) -> bool,
    ) -> Result<()> {
        let (Some(pages), Some(first)) = (self.pages()?, keys.first()) else { return Ok(()) };
        let root = self.published.root;
        let visit = &mut |at: usize, leaf: Leaf<'_>| visit(at, LeafView { leaf });
        match &*pages.leaves(root, keys.len(), first.as_ref()) {
            Some(leaves) => leaves.leaves_of(&pages, keys, visit),
            None => tree::leaves_of(&pages, root, keys, visit),
        }
    }

    /// Shows the bounds of the leaves where ascending keys of 12 bytes lie or would, from the table of leaves alone: each with
    /// the place in `keys` of the first that may be in it; None for the last leaf, and where that is not known without
    /// pages. `visit` says at which place to go on. What buffers hold is in no leaf.
    pub fn leaf_bounds_of(
        &self,
        keys: &[[u8; 12]],
        visit: &mut impl FnMut(usize, Option<Range<[u8; 12]>>) -> Option<usize>,
    ) -> Result<()> {
        let (Some(pages), Some(first)) = (self.pages()?, keys.first()) else { return Ok(()) };
        let leaves = pages.leaves(self.published.root, keys.len(), first.as_ref());
        let key_of = |(ordinal, next): Low| {
            let mut key = [0; 12];
            key[..8].copy_from_slice(&ordinal.to_be_bytes());
            key[8..].copy_from_slice(&next.to_be_bytes());
            key
        };
        let (mut at, mut near) = (Some(0), Place::default());
        while let Some(key) = at.and_then(|at| keys.get(at)) {
            let bounds = leaves.as_ref().and_then(|leaves| leaves.bounds_of(key, &mut near));
            at = visit(at.unwrap_or_default(), bounds.map(|bounds| key_of(bounds.start)..key_of(bounds.end)));
        }
        Ok(())
    }

    /// Walks entries from `from` on, ascending, until `visit` says false. Bodies are loaded on demand.
    pub fn ascend(
        &self,
        from: Bound<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8], Lazy<'_>) -> Result<bool>,
    ) -> Result<()> {
        let pages = self.pages()?;
        let mut walk = Walk::new(self, pages.as_ref(), from, true)?;
        walk.run(visit)
    }

    /// Walks entries from `from` down, descending, until `visit` says false.
    pub fn descend(
        &self,
        from: Bound<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8], Lazy<'_>) -> Result<bool>,
    ) -> Result<()> {
        let pages = self.pages()?;
        let mut walk = Walk::new(self, pages.as_ref(), from, false)?;
        walk.run(visit)
    }

    fn pages(&self) -> Result<Option<Pages<'_>>> {
        self.published.pages()
    }
}

impl Published {
    /// As [`View::show`].
    pub fn show<T>(&self, key: &[u8], with_body: bool, show: impl FnOnce(Lent<'_>) -> T) -> Result<Option<T>> {
        if let Some(edit) = self.buffered(key) {
            return Ok(Lent::of_edit(&edit, with_body).map(show));
        }
        let Some(pages) = self.pages()? else {
            return Ok(None);
        };
        let show = |lent: tree::Lent<'_>| Lent::of_tree(&pages, lent, with_body).map(show);
        let shown = match &*pages.leaves(self.root, 1, key) {
            Some(leaves) => leaves.find(&pages, key, show),
            None => tree::find(&pages, self.root, key, show),
        };
        shown?.transpose()
    }

    /// Bytes of memory of the table of the tree's leaves.
    pub fn leaves_bytes(&self) -> usize {
        self.file.as_ref().map_or(0, |file| file.leaves_bytes())
    }

    /// The pages of the tree; None if it has none: then the file is not even opened.
    fn pages(&self) -> Result<Option<Pages<'_>>> {
        let file = self.file.as_deref().filter(|_| self.root.ptr.is_some());
        file.map(TreeFile::pages).transpose()
    }

    fn buffered(&self, key: &[u8]) -> Option<Edit> {
        self.active.get(key).or_else(|| self.frozen.as_ref()?.get(key))
    }
}

/// A leaf where it lies.
#[derive(Debug, Clone, Copy)]
pub struct LeafView<'a> {
    leaf: Leaf<'a>,
}

/// An entry of a leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeafEntry<'a> {
    /// The part of its value that is always in the leaf.
    pub head: &'a [u8],
    /// Bytes that it takes in the leaf.
    pub leaf_bytes: usize,
    /// Bytes of its extent.
    pub extent_bytes: usize,
}

impl LeafEntry<'_> {
    /// Bytes that it takes in all.
    pub fn bytes(&self) -> usize {
        self.leaf_bytes + self.extent_bytes
    }
}

impl<'a> LeafView<'a> {
    /// Entries, at least one.
    pub fn entries(&self) -> usize {
        self.leaf.len()
    }

    /// Bytes that all entries take in it.
    pub fn bytes(&self) -> usize {
        self.leaf.entry_bytes()
    }

    /// Its first and its last key.
    pub fn ends(&self) -> [&'a [u8]; 2] {
        [self.leaf.key(0), self.leaf.key(self.leaf.len() - 1)]
    }

    /// The entry of a key.
    pub fn get(&self, key: &[u8]) -> Option<LeafEntry<'a>> {
        Some(self.entry(self.leaf.find_from(self.leaf.guess(key, &self.leaf.bounds()), key).ok()?))
    }

    /// The `at`th entry. Requires: there are so many.
    pub fn entry(&self, at: usize) -> LeafEntry<'a> {
        let Entry { head, body, .. } = self.leaf.entry(at);
        let extent_bytes = if let BodyAt::There(extent) = body { extent.units() as usize * UNIT_BYTES } else { 0 };
        LeafEntry { head, leaf_bytes: self.leaf.raw(at).len(), extent_bytes }
    }
}

/// A value where it lies.
#[derive(Debug)]
pub struct Lent<'a> {
    /// The part that stays in the leaf.
    pub head: &'a [u8],
    /// The part that may overflow.
    pub body: LentBody<'a>,
}

/// A body where it lies.
#[derive(Debug)]
pub enum LentBody<'a> {
    /// Behind the head, in one piece with it: this is both.
    Joined(&'a [u8]),
    /// In memory that is shared.
    Shared(Bytes),
    /// Nobody asked for it.
    Unread,
}

impl<'a> Lent<'a> {
    fn of_edit(edit: &'a Edit, with_body: bool) -> Option<Self> {
        match edit {
            Edit::Put { head, body } => {
                let body = if with_body { LentBody::Shared(body.clone()) } else { LentBody::Unread };
                Some(Lent { head, body })
            }
            Edit::Remove => None,
        }
    }

    fn of_tree(pages: &Pages<'_>, lent: tree::Lent<'a>, with_body: bool) -> Result<Self> {
        let body = match lent.body {
            _ if !with_body => LentBody::Unread,
            BodyAt::Here(_) => LentBody::Joined(lent.joined),
            BodyAt::There(extent) => LentBody::Shared(pages.extent(extent)?),
        };
        Ok(Lent { head: lent.head, body })
    }

    /// Its body; empty if nobody asked for it.
    pub fn body(&self) -> &[u8] {
        match &self.body {
            LentBody::Joined(both) => &both[self.head.len()..],
            LentBody::Shared(body) => body,
            LentBody::Unread => &[],
        }
    }

    /// A copy of its own.
    pub fn copy(self) -> Stored {
        let head = self.head.len();
        match self.body {
            LentBody::Joined(both) => {
                let mut head_and_body = Bytes::copy_from_slice(both);
                let body = head_and_body.split_off(head);
                Stored { head: head_and_body, body }
            }
            LentBody::Shared(body) => Stored { head: Bytes::copy_from_slice(self.head), body },
            LentBody::Unread => Stored { head: Bytes::copy_from_slice(self.head), body: Bytes::new() },
        }
    }
}

/// A body that is read only if asked for.
#[derive(Debug)]
pub enum Lazy<'a> {
    /// It is in a buffer.
    Here(&'a Bytes),
    /// It is in the leaf that is being shown.
    Near(&'a [u8]),
    /// It is in an extent of the file.
    There(ExtentRef, &'a TreeFile),
}

impl Lazy<'_> {
    /// Its length in bytes.
    pub fn len(&self) -> usize {
        match self {
            Lazy::Here(bytes) => bytes.len(),
            Lazy::Near(bytes) => bytes.len(),
            Lazy::There(extent, _) => extent.len as usize,
        }
    }

    /// True if it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its bytes.
    pub fn load(&self) -> Result<Bytes> {
        match self {
            Lazy::Here(bytes) => Ok((*bytes).clone()),
            Lazy::Near(bytes) => Ok(Bytes::copy_from_slice(bytes)),
            Lazy::There(extent, file) => file.extent(*extent),
        }
    }

    /// Copies its bytes to the end of `out`.
    pub fn append_to(&self, out: &mut Vec<u8>) -> Result<()> {
        match self {
            Lazy::Here(bytes) => out.extend_from_slice(bytes),
            Lazy::Near(bytes) => out.extend_from_slice(bytes),
            Lazy::There(extent, file) => out.extend_from_slice(&file.extent(*extent)?),
        }
        Ok(())
    }
}

/// One buffer's part in a walk: a run of copied handles, refilled as it is used up.
struct Layer<'a> {
    buffer: &'a TreeBuffer,
    run: std::vec::IntoIter<(Bytes, Edit)>,
    head: Option<(Bytes, Edit)>,
    ended: bool,
}

/// A merge of the buffers and the tree; of equal keys the newest layer holds.
struct Walk<'a> {
    up: bool,
    layers: Vec<Layer<'a>>,
    file: Option<&'a TreeFile>,
    cursor: Option<tree::Cursor<'a>>,
}

impl<'a> Layer<'a> {
    fn new(buffer: &'a TreeBuffer, from: Bound<&[u8]>, up: bool) -> Self {
        let mut layer = Layer { buffer, run: Vec::new().into_iter(), head: None, ended: false };
        layer.fill(from, up);
        layer.head = layer.run.next();
        layer
    }

    fn fill(&mut self, from: Bound<&[u8]>, up: bool) {
        let mut run = Vec::new();
        if up {
            self.buffer.ascend(from, RUN, &mut run);
        } else {
            self.buffer.descend(from, RUN, &mut run);
        }
        self.ended = run.len() < RUN;
        self.run = run.into_iter();
    }

    fn advance(&mut self, up: bool) {
        let last = self.head.take();
        self.head = self.run.next();
        if let (None, Some((key, _)), false) = (&self.head, last, self.ended) {
            self.fill(Bound::Excluded(&key), up);
            self.head = self.run.next();
        }
    }
}

impl<'a> Walk<'a> {
    fn new(view: &'a View, pages: Option<&'a Pages<'a>>, from: Bound<&[u8]>, up: bool) -> Result<Self> {
        let published = &view.published;
        let buffers = std::iter::once(&published.active).chain(published.frozen.as_ref());
        let layers = buffers.map(|buffer| Layer::new(buffer, from, up)).collect();
        let cursor = match pages {
            None => None,
            Some(pages) => {
                let mut cursor = tree::Cursor::new(pages, published.root);
                if up {
                    cursor.seek(from)?;
                } else {
                    cursor.seek_back(from)?;
                }
                Some(cursor)
            }
        };
        Ok(Walk { up, layers, file: published.file.as_deref(), cursor })
    }

    fn run(&mut self, visit: &mut dyn FnMut(&[u8], &[u8], Lazy<'_>) -> Result<bool>) -> Result<()> {
        loop {
            let first = |a: &[u8], b: &[u8]| if self.up { a < b } else { a > b };
            let mut newest: Option<usize> = None;
            for (at, layer) in self.layers.iter().enumerate() {
                if let Some((key, _)) = &layer.head
                    && newest
                        .is_none_or(|best| self.layers[best].head.as_ref().is_some_and(|(have, _)| first(key, have)))
                {
                    newest = Some(at);
                }
            }
            let in_tree = self.cursor.as_ref().and_then(tree::Cursor::key);
            let from_tree = match (newest, in_tree) {
                (None, None) => return Ok(()),
                (None, Some(_)) => true,
                (Some(_), None) => false,
                (Some(at), Some(key)) => self.layers[at].head.as_ref().is_some_and(|(have, _)| first(key, have)),
            };
            let more = if from_tree { self.show_tree(visit)? } else { self.show_layer(newest, visit)? };
            if !more {
                return Ok(());
            }
        }
    }

    fn show_tree(&mut self, visit: &mut dyn FnMut(&[u8], &[u8], Lazy<'_>) -> Result<bool>) -> Result<bool> {
        let (Some(cursor), Some(file)) = (&mut self.cursor, self.file) else {
            return Ok(false);
        };
        let Some(Entry { key, head, body }) = cursor.entry_here() else {
            return Ok(false);
        };
        let body = match body {
            BodyAt::Here(bytes) => Lazy::Near(bytes),
            BodyAt::There(extent) => Lazy::There(extent, file),
        };
        let more = visit(key, head, body)?;
        if self.up {
            cursor.advance()?
        } else {
            cursor.retreat()?
        };
        Ok(more)
    }

    fn show_layer(
        &mut self,
        newest: Option<usize>,
        visit: &mut dyn FnMut(&[u8], &[u8], Lazy<'_>) -> Result<bool>,
    ) -> Result<bool> {
        let Some((key, edit)) = newest.and_then(|at| self.layers[at].head.clone()) else {
            return Ok(false);
        };
        let more = match &edit {
            Edit::Put { head, body } => visit(&key, head, Lazy::Here(body))?,
            Edit::Remove => true,
        };
        for layer in &mut self.layers {
            if layer.head.as_ref().is_some_and(|(have, _)| *have == key) {
                layer.advance(self.up);
            }
        }
        if let Some(cursor) = &mut self.cursor
            && cursor.key() == Some(&key[..])
        {
            if self.up {
                cursor.advance()?
            } else {
                cursor.retreat()?
            };
        }
        Ok(more)
    }
}
