//! The scrub: reads every page that the newest trees reach, again and again, at a bounded rate, so that
//! damage is found before somebody needs the page.
//!
//! Pages are read from the file, not from a mapping or cache, and checked as if for the first time. A step
//! reads a bounded run of leaves of one tree through a view of its own (R7); what is damaged is noted and
//! passed over. The job never ends, and never stops the store.

use crate::catalog::Tree;
use crate::core::Core;
use crate::error::{Error, Result};
use crate::file::TreeFile;
use crate::finding::{Finding, Scrubbed};
use crate::ids::{PagePtr, TreeId, UNIT_BYTES};
use crate::page::leaf::BodyAt;
use crate::page::{Branch, Leaf};
use crate::run::{Job, Next, Signal};
use crate::tree::PageSource;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// About what one step reads, but for a single larger value.
const STEP_BYTES: u64 = 128 << 10;
/// A round of a small store does not begin sooner after the one before.
const ROUND: Duration = Duration::from_secs(3600);
/// The most damaged places that are remembered.
const FINDINGS_MAX: usize = 1000;

/// Scrubs a store.
#[derive(Debug)]
pub struct ScrubJob {
    core: Arc<Core>,
    signal: Signal,
    /// Trees that this round has yet to read.
    left: VecDeque<TreeId>,
    under_way: Option<UnderWay>,
    /// When the next round may begin.
    round_at: Duration,
    in_round: bool,
}

/// A tree that is being read.
#[derive(Debug)]
struct UnderWay {
    tree: TreeId,
    /// The next key.
    from: Vec<u8>,
    found: Vec<Finding>,
}

impl ScrubJob {
    /// The job of a store.
    pub fn new(core: Arc<Core>) -> Self {
        ScrubJob {
            core,
            signal: Signal::default(),
            left: VecDeque::new(),
            under_way: None,
            round_at: Duration::ZERO,
            in_round: false,
        }
    }

    /// The tree to go on with; None if the round is over.
    fn current(&mut self) -> Option<(Arc<Tree>, UnderWay)> {
        loop {
            let under_way = match self.under_way.take() {
                Some(under_way) => under_way,
                None => UnderWay { tree: self.left.pop_front()?, from: Vec::new(), found: Vec::new() },
            };
            // Dropped trees are passed over.
            if let Some(tree) = self.core.catalog.tree(under_way.tree) {
                return Some((tree, under_way));
            }
        }
    }

    fn begin_round(&mut self, now: Duration) {
        let spaces = self.core.catalog.spaces();
        let trees = || spaces.iter().flat_map(|space| &space.trees);
        self.left = trees().map(|tree| tree.id).collect();
        self.core.scrubbed.lock().round_of = trees().map(|tree| tree.in_use()).sum();
        self.round_at = now + ROUND;
        self.in_round = true;
    }
}

impl Job for ScrubJob {
    fn name(&self) -> &'static str {
        "scrub"
    }

    fn gives_way(&self) -> bool {
        true
    }

    fn signal(&self) -> Signal {
        self.signal.clone()
    }

    fn step(&mut self, now: Duration) -> Next {
        if matches!(self.core.poison.check(), Err(Error::Closed)) {
            return Next::Done;
        }
        if !self.in_round {
            if now < self.round_at {
                return Next::At(self.round_at);
            }
            self.begin_round(now);
        }
        let Some((tree, mut under_way)) = self.current() else {
            self.in_round = false;
            let mut total = self.core.scrubbed.lock();
            total.rounds += 1;
            (total.round_bytes, total.round_of) = (0, 0);
            return Next::At(self.round_at.max(now));
        };
        let was_open = tree.file.is_open();
        let mut step = Step { file: &tree.file, scrubbed: Scrubbed::default(), next: None };
        if under_way.from.is_empty() {
            step.header();
        }
        let root = tree.published();
        // A file that does not open has been noted.
        if let Some(ptr) = root.root.ptr.filter(|_| tree.file.is_open()) {
            step.node(ptr, root.root.height, &under_way.from);
        }
        drop(root);
        let Step { scrubbed: read, next, .. } = step;
        if !was_open {
            tree.file.close_idle();
        }
        let rate = self.core.options.scrub_bytes_per_second.max(1);
        let pause = Duration::from_micros(read.bytes.saturating_mul(1_000_000) / rate);
        if self.core.catalog.tree(tree.id).is_some() {
            under_way.found.extend(read.damage.iter().cloned());
            let mut total = self.core.scrubbed.lock();
            total.bytes += read.bytes;
            total.round_bytes += read.bytes;
            // Others write meanwhile.
            total.round_of = total.round_of.max(total.round_bytes);
            total.pages += read.pages;
            for finding in read.damage {
                let known = |known: &Finding| known.file == finding.file && known.place == finding.place;
                if total.damage.len() < FINDINGS_MAX && !total.damage.iter().any(known) {
                    total.damage.push(finding);
                }
            }
            if next.is_none() {
                // What was found in an earlier round and is written anew since, is whole again.
                let again = |old: &Finding| under_way.found.iter().any(|found| found.place == old.place);
                total.damage.retain(|old| old.file != tree.file.path() || again(old));
            }
        }
        if let Some(from) = next {
            self.under_way = Some(UnderWay { from, ..under_way });
        }
        Next::At(now + pause)
    }
}

/// One run of leaves.
struct Step<'a> {
    file: &'a TreeFile,
    scrubbed: Scrubbed,
    /// Where to go on; None at the end.
    next: Option<Vec<u8>>,
}

impl Step<'_> {
    fn header(&mut self) {
        self.scrubbed.bytes += UNIT_BYTES as u64;
        let read = self.file.header_afresh();
        self.sound(PagePtr { unit: 0, epoch: 0 }, read);
    }

    fn node(&mut self, ptr: PagePtr, height: u8, from: &[u8]) {
        let page = self.file.page_afresh(ptr, height);
        self.scrubbed.bytes += self.file.page_bytes() as u64;
        self.scrubbed.pages += 1;
        let Some(page) = self.sound(ptr, page) else { return };
        if height == 0 {
            return self.leaf(&page, from);
        }
        let branch = Branch::new(&page);
        let first = branch.find(from);
        for at in first..branch.len() {
            if at > first && self.scrubbed.bytes >= STEP_BYTES {
                self.next = Some(branch.key(at).to_vec());
                return;
            }
            self.node(branch.child(at), height - 1, from);
            if self.next.is_some() {
                return;
            }
        }
    }

    fn leaf(&mut self, page: &[u8], from: &[u8]) {
        let leaf = Leaf::new(page);
        let first = leaf.find(from).unwrap_or_else(|at| at);
        for at in first..leaf.len() {
            let entry = leaf.entry(at);
            let BodyAt::There(extent) = entry.body else { continue };
            if at > first && self.scrubbed.bytes >= STEP_BYTES {
                self.next = Some(entry.key.to_vec());
                return;
            }
            let body = self.file.extent(extent);
            self.scrubbed.bytes += u64::from(extent.len);
            self.sound(extent.ptr, body);
        }
    }

    fn sound<T>(&mut self, ptr: PagePtr, read: Result<T>) -> Option<T> {
        read.map_err(|error| {
            let mut finding = Finding::of(&error, self.file.path());
            finding.place = crate::error::Place::Unit(ptr.unit);
            self.scrubbed.damage.push(finding);
        })
        .ok()
    }
}
