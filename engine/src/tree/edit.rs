//! Applies a sorted batch to a tree and gives the new root.
//!
//! One pass, left to right: a leaf is rebuilt once however many keys of the batch fall in it, and a
//! branch once after its last child. Neighbouring rebuilt nodes are repacked together; one that
//! became small takes in a neighbour; an empty one goes. The old tree stays whole; its replaced
//! pages and extents are given up through the sink.
//!
//! Not here: where pages come from and go to, and when given-up pages may be used again.

use super::pack::{Packed, Run};
use super::{Edit, PageSink, PageSource, Root};
use crate::error::Result;
use crate::ids::{PagePtr, UNIT_BYTES};
use crate::page::layout::HEADER_BYTES;
use crate::page::leaf::{self, BodyAt, Entry, ExtentRef};
use crate::page::{Branch, Leaf};
use bytes::Bytes;
use std::ops::Range;

/// What became of a node.
struct Outcome<'a> {
    /// The node stays as it is, before `run`.
    keep: bool,
    /// Items that take its place, or follow it.
    run: Run<'a>,
}

struct Editor<'a> {
    source: &'a dyn PageSource,
    sink: &'a mut dyn PageSink,
    edits: &'a [(Bytes, Edit)],
    page_bytes: usize,
    added: u64,
    removed: u64,
}

/// Applies `edits`, ascending by key and each key once. Requires: keys, heads and bodies within
/// `limits.rs`. Cost: the pages of the touched leaves and their paths.
pub fn edit(source: &dyn PageSource, sink: &mut dyn PageSink, root: Root, edits: &[(Bytes, Edit)]) -> Result<Root> {
    debug_assert!(edits.windows(2).all(|pair| pair[0].0 < pair[1].0));
    if edits.is_empty() {
        return Ok(root);
    }
    let page_bytes = source.page_bytes();
    let mut editor = Editor { source, sink, edits, page_bytes, added: 0, removed: 0 };
    let (children, height) = editor.root(root)?;
    let entries = root.entries + editor.added - editor.removed;
    editor.grow(children, height, entries)
}

impl<'a> Editor<'a> {
    /// The new nodes at the old root's height (or lower, where only one child was left).
    fn root(&mut self, root: Root) -> Result<(Vec<Packed>, u8)> {
        let all = 0..self.edits.len();
        let Some(ptr) = root.ptr else {
            let mut run = Run::new(true);
            self.put_all(all, &mut run)?;
            return Ok((run.pack(0, self.page_bytes, self.edits, self.sink)?, 0));
        };
        let outcome = self.node(ptr, root.height, all)?;
        let mut children = Vec::new();
        if outcome.keep {
            children.push(Packed { key: Vec::new(), ptr });
        } else if root.height > 0
            && let Some(only) = outcome.run.only_child()
        {
            return Ok((vec![Packed { key: Vec::new(), ptr: only }], root.height - 1));
        }
        children.extend(outcome.run.pack(root.height, self.page_bytes, self.edits, self.sink)?);
        Ok((children, root.height))
    }

    /// Puts branches over `children` until one node is left.
    fn grow(&mut self, mut children: Vec<Packed>, mut height: u8, entries: u64) -> Result<Root> {
        while children.len() > 1 {
            let mut run = Run::new(true);
            for child in &children {
                run.push_child(&child.key, child.ptr);
            }
            height += 1;
            children = run.pack(height, self.page_bytes, self.edits, self.sink)?;
        }
        Ok(children.pop().map_or(Root::default(), |top| Root { ptr: Some(top.ptr), height, entries }))
    }

    fn node(&mut self, ptr: PagePtr, height: u8, edits: Range<usize>) -> Result<Outcome<'a>> {
        if height == 0 { self.leaf(ptr, edits) } else { self.branch(ptr, height, edits) }
    }

    fn leaf(&mut self, ptr: PagePtr, edits: Range<usize>) -> Result<Outcome<'a>> {
        let page = self.source.page(ptr, 0)?;
        let old = Leaf::new(&page);
        let above = self.edits[edits.start].0[..] > *old.key(old.len() - 1);
        if above {
            let first = edits.clone().find(|at| matches!(self.edits[*at].1, Edit::Put { .. }));
            let used: usize = (0..old.len()).map(|at| 2 + old.raw(at).len()).sum();
            let capacity = self.page_bytes - HEADER_BYTES;
            let full = first.is_none_or(|at| used + 2 + self.encoded_len(at) > capacity);
            if full {
                let mut run = Run::new(true);
                self.put_all(edits, &mut run)?;
                return Ok(Outcome { keep: true, run });
            }
        }
        let changes = above
            || edits
                .clone()
                .any(|at| matches!(self.edits[at].1, Edit::Put { .. }) || old.find(&self.edits[at].0).is_ok());
        if !changes {
            return Ok(Outcome { keep: true, run: Run::default() });
        }
        let mut run = Run::new(above);
        let held = run.hold(page.clone());
        let mut next = edits.start;
        for at in 0..old.len() {
            while next < edits.end && self.edits[next].0[..] < *old.key(at) {
                self.put_all(next..next + 1, &mut run)?;
                next += 1;
            }
            if next < edits.end && self.edits[next].0[..] == *old.key(at) {
                self.drop_entry(old.entry(at));
                self.put_all(next..next + 1, &mut run)?;
                next += 1;
                continue;
            }
            let raw = old.raw(at);
            run.push_old(held, crate::page::layout::slot(&page, at), raw.len());
        }
        self.put_all(next..edits.end, &mut run)?;
        self.give_up(ptr, &page);
        Ok(Outcome { keep: false, run })
    }

    /// The items of a node that is merged though no edit falls in it.
    fn load(&mut self, ptr: PagePtr, height: u8) -> Result<Run<'a>> {
        let page = self.source.page(ptr, height)?;
        let mut run = Run::default();
        let held = run.hold(page.clone());
        if height == 0 {
            let leaf = Leaf::new(&page);
            for at in 0..leaf.len() {
                run.push_old(held, crate::page::layout::slot(&page, at), leaf.raw(at).len());
            }
        } else {
            push_children(&mut run, held, &page, 0..Branch::new(&page).len());
        }
        self.give_up(ptr, &page);
        Ok(run)
    }

    fn branch(&mut self, ptr: PagePtr, height: u8, edits: Range<usize>) -> Result<Outcome<'a>> {
        let page = self.source.page(ptr, height)?;
        let branch = Branch::new(&page);
        let mut out = Run::default();
        let held = out.hold(page.clone());
        let (mut at, mut from) = (0, edits.start);
        // The index of the child that `out` ends with, if that child is untouched.
        let mut untouched: Option<usize> = None;
        while at < branch.len() {
            let to = self.edits_below(&branch, at, from, edits.end);
            if to == from {
                push_children(&mut out, held, &page, at..at + 1);
                untouched = Some(at);
                at += 1;
                continue;
            }
            if from == edits.start && at + 1 == branch.len() {
                out.rising = true;
            }
            let mut first = at;
            let outcome = self.node(branch.child(at), height - 1, from..to)?;
            (at, from) = (at + 1, to);
            if outcome.keep {
                push_children(&mut out, held, &page, first..at);
                untouched = None;
                if outcome.run.is_empty() {
                    untouched = Some(first);
                }
                self.emit(outcome.run, height, None, &mut out)?;
                continue;
            }
            let mut run = outcome.run;
            let mut kept: Option<(usize, Run<'_>)> = None;
            while at < branch.len() {
                let to = self.edits_below(&branch, at, from, edits.end);
                if to == from {
                    break;
                }
                let next = self.node(branch.child(at), height - 1, from..to)?;
                (at, from) = (at + 1, to);
                if next.keep {
                    kept = Some((at - 1, next.run));
                    break;
                }
                run.absorb(next.run);
            }
            let small = !run.is_empty() && run.bytes() < (self.page_bytes - HEADER_BYTES) / 4;
            if small && kept.is_none() && at < branch.len() && self.edits_below(&branch, at, from, edits.end) == from {
                run.absorb(self.load(branch.child(at), height - 1)?);
                at += 1;
            } else if small && let Some(before) = untouched {
                out.pop();
                let mut merged = self.load(branch.child(before), height - 1)?;
                merged.absorb(run);
                (run, first) = (merged, before);
            }
            untouched = None;
            self.emit(run, height, Some(branch.key(first)), &mut out)?;
            if let Some((child, run)) = kept {
                push_children(&mut out, held, &page, child..child + 1);
                untouched = Some(child).filter(|_| run.is_empty());
                self.emit(run, height, None, &mut out)?;
            }
        }
        self.give_up(ptr, &page);
        Ok(Outcome { keep: false, run: out })
    }

    /// Packs the items of a run one level down and adds the new nodes as children. The first keeps
    /// the old lower bound `low`, so that keys between it and the first entry still lead there.
    fn emit(&mut self, run: Run<'_>, height: u8, low: Option<&[u8]>, out: &mut Run<'_>) -> Result<()> {
        let packed = run.pack(height - 1, self.page_bytes, self.edits, self.sink)?;
        for (at, child) in packed.iter().enumerate() {
            let key = match low {
                Some(low) if at == 0 => low.min(&child.key),
                _ => &child.key,
            };
            out.push_child(key, child.ptr);
        }
        Ok(())
    }

    /// The end of the edits from `from` on that fall into child `at`.
    fn edits_below(&self, branch: &Branch<'_>, at: usize, from: usize, end: usize) -> usize {
        if at + 1 == branch.len() {
            return end;
        }
        let bound = branch.key(at + 1);
        from + self.edits[from..end].partition_point(|(key, _)| key[..] < *bound)
    }

    /// Adds the puts among `edits` to a run; bodies that are too large go to extents first.
    fn put_all(&mut self, edits: Range<usize>, run: &mut Run<'a>) -> Result<()> {
        for at in edits {
            let (key, Edit::Put { head, body }) = &self.edits[at] else {
                continue;
            };
            self.added += 1;
            if !leaf::overflows(key.len(), head.len(), body.len(), self.page_bytes) {
                run.push_new(at, self.encoded_len(at));
                continue;
            }
            let ptr = self.sink.allocate(leaf::extent_units(body.len()))?;
            self.sink.write_extent(ptr, body)?;
            let len = u32::try_from(body.len()).expect("a body is at most BODY_BYTES_MAX");
            let extent = ExtentRef { ptr, len, crc: crc32fast::hash(body) };
            run.push_made(|out| leaf::encode(out, Entry { key, head, body: BodyAt::There(extent) }));
        }
        Ok(())
    }

    fn encoded_len(&self, at: usize) -> usize {
        let (key, edit) = &self.edits[at];
        match edit {
            Edit::Put { head, body } if leaf::overflows(key.len(), head.len(), body.len(), self.page_bytes) => {
                10 + key.len() + head.len() + 16
            }
            edit => 10 + key.len() + edit.len(),
        }
    }

    fn drop_entry(&mut self, entry: Entry<'_>) {
        self.removed += 1;
        if let BodyAt::There(extent) = entry.body {
            self.sink.free_extent(extent);
        }
    }

    fn give_up(&mut self, ptr: PagePtr, page: &[u8]) {
        let units = u32::try_from(page.len() / UNIT_BYTES).expect("a page has few units");
        self.sink.free(ptr, units);
    }
}

fn push_children(run: &mut Run<'_>, held: u32, page: &[u8], children: Range<usize>) {
    for at in children {
        let start = crate::page::layout::slot(page, at);
        run.push_old(held, start, 14 + Branch::new(page).key(at).len());
    }
}
