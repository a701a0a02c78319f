//! Lookups through branches. What is found is lent where it lies.

use super::{Entry, PageSource, Root};
use crate::error::{Error, Result};
use crate::ids::PagePtr;
use crate::page::leaf::BodyAt;
use crate::page::{Branch, Leaf};
use std::ops::Range;

/// A value where it lies in its leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lent<'a> {
    /// The part that always stays in the leaf.
    pub head: &'a [u8],
    /// The rest.
    pub body: BodyAt<'a>,
    /// The head and, if it is in the leaf, the body, in one piece.
    pub joined: &'a [u8],
}

impl<'a> Lent<'a> {
    #[inline]
    pub(super) fn of(leaf: Leaf<'a>, at: usize) -> Self {
        let entry = leaf.entry(at);
        let joined = match entry.body {
            BodyAt::Here(_) => &leaf.raw(at)[leaf.raw(at).len() - entry.head.len() - entry.body_here().len()..],
            BodyAt::There(_) => entry.head,
        };
        Lent { head: entry.head, body: entry.body, joined }
    }
}

/// Where the leaf of a key is, and between which ordinals its keys lie if there is a branch that says so.
#[inline]
fn leaf_at<S: PageSource + ?Sized>(
    source: &S,
    root: Root,
    key: &[u8],
) -> Result<Option<(PagePtr, Option<Range<u64>>)>> {
    let Some(mut ptr) = root.ptr else { return Ok(None) };
    let mut bounds = None;
    for height in (1..=root.height).rev() {
        let page = source.page(ptr, height)?;
        let branch = Branch::new(&page);
        let child = branch.find(key);
        (ptr, bounds) = (branch.child(child), branch.bounds(child));
    }
    Ok(Some((ptr, bounds)))
}

/// Shows the value of a key. O(depth) pages.
pub fn find<S: PageSource + ?Sized, T>(
    source: &S,
    root: Root,
    key: &[u8],
    show: impl FnOnce(Lent<'_>) -> T,
) -> Result<Option<T>> {
    let Some((ptr, bounds)) = leaf_at(source, root, key)? else { return Ok(None) };
    let page = source.page(ptr, 0)?;
    let leaf = Leaf::new(&page);
    let first = leaf.guess(key, &bounds.unwrap_or_else(|| leaf.bounds()));
    Ok(leaf.find_from(first, key).ok().map(|at| show(Lent::of(leaf, at))))
}

/// Shows the leaf where a key lies or would; None of an empty tree. O(depth) pages.
fn leaf_of<S: PageSource + ?Sized, T>(
    source: &S,
    root: Root,
    key: &[u8],
    show: impl FnOnce(Leaf<'_>) -> T,
) -> Result<Option<T>> {
    let Some((ptr, _)) = leaf_at(source, root, key)? else { return Ok(None) };
    let page = source.page(ptr, 0)?;
    Ok(Some(show(Leaf::new(&page))))
}

/// Shows the leaves where ascending keys lie or would, until `visit` says false, each with the place in `keys` of the
/// first of its keys. O(depth) pages a leaf.
pub fn leaves_of<S: PageSource + ?Sized, K: AsRef<[u8]>>(
    source: &S,
    root: Root,
    keys: &[K],
    visit: &mut impl FnMut(usize, Leaf<'_>) -> bool,
) -> Result<()> {
    let mut at = 0;
    while let Some(key) = keys.get(at) {
        let shown = leaf_of(source, root, key.as_ref(), |leaf| {
            let here = keys[at + 1..].iter().take_while(|key| key.as_ref() <= leaf.key(leaf.len() - 1)).count();
            (1 + here, visit(at, leaf))
        })?;
        match shown {
            Some((here, true)) => at += here,
            _ => break,
        }
    }
    Ok(())
}

/// The value of a key. O(depth) pages, one allocation.
pub fn get<S: PageSource + ?Sized>(source: &S, root: Root, key: &[u8]) -> Result<Option<Entry>> {
    find(source, root, key, Entry::copy)
}

/// Looks up keys, one by one; shows each by its place in `keys`, until `visit` says false. O(depth) pages a key.
pub fn get_many<S: PageSource + ?Sized, K: AsRef<[u8]>, E: From<Error>>(
    source: &S,
    root: Root,
    keys: &[K],
    visit: &mut impl FnMut(usize, Option<Lent<'_>>) -> Result<bool, E>,
) -> Result<(), E> {
    for (at, key) in keys.iter().enumerate() {
        let more = match find(source, root, key.as_ref(), |lent| visit(at, Some(lent)))? {
            Some(shown) => shown?,
            None => visit(at, None)?,
        };
        if !more {
            break;
        }
    }
    Ok(())
}
