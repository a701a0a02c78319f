//! Lookups: one key, or many in order with one shared descent.

use super::{Entry, PageSource, Root};
use crate::error::Result;
use crate::ids::PagePtr;
use crate::page::{Branch, Leaf};

/// The value of a key. O(depth) pages, one allocation.
pub fn get(source: &dyn PageSource, root: Root, key: &[u8]) -> Result<Option<Entry>> {
    let Some(mut ptr) = root.ptr else { return Ok(None) };
    for height in (1..=root.height).rev() {
        let page = source.page(ptr, height)?;
        let branch = Branch::new(&page);
        ptr = branch.child(branch.find(key));
    }
    let page = source.page(ptr, 0)?;
    let leaf = Leaf::new(&page);
    Ok(leaf.find(key).ok().map(|at| Entry::copy(leaf.entry(at))))
}

/// Looks up keys given in ascending order; shows each by its place in `keys`, in that order.
/// A page is fetched once however many of the keys lie in it.
pub fn get_many(
    source: &dyn PageSource,
    root: Root,
    keys: &[&[u8]],
    visit: &mut dyn FnMut(usize, Option<Entry>) -> Result<()>,
) -> Result<()> {
    debug_assert!(keys.windows(2).all(|pair| pair[0] <= pair[1]));
    match root.ptr {
        Some(ptr) => descend(source, ptr, root.height, keys, 0, visit),
        None => (0..keys.len()).try_for_each(|at| visit(at, None)),
    }
}

fn descend(
    source: &dyn PageSource,
    ptr: PagePtr,
    height: u8,
    keys: &[&[u8]],
    base: usize,
    visit: &mut dyn FnMut(usize, Option<Entry>) -> Result<()>,
) -> Result<()> {
    let page = source.page(ptr, height)?;
    if height == 0 {
        let leaf = Leaf::new(&page);
        return keys
            .iter()
            .enumerate()
            .try_for_each(|(at, key)| visit(base + at, leaf.find(key).ok().map(|slot| Entry::copy(leaf.entry(slot)))));
    }
    let branch = Branch::new(&page);
    let mut from = 0;
    while from < keys.len() {
        let child = branch.find(keys[from]);
        let to = if child + 1 < branch.len() {
            let bound = branch.key(child + 1);
            from + keys[from..].partition_point(|key| *key < bound)
        } else {
            keys.len()
        };
        descend(source, branch.child(child), height - 1, &keys[from..to], base + from, visit)?;
        from = to;
    }
    Ok(())
}
