//! Many rows at a time: sorted by key, so that each leaf is looked for, and written, once for all of its rows.
//!
//! Rows come in the order of revisions, which scatters keys: taken in one by one, each waits for memory at every level
//! of the tree. In a batch only the sort jumps around, in few megabytes; the tree is passed from left to right.
//!
//! What a batch supersedes has to go to the ring in the order of revisions. Until all of a batch is known, a state
//! links to the row that superseded what is older; then those rows get their places, and the links are set right.

use crate::history::Older;
use crate::inner::{Child, Inner, Node};
use crate::leaf::{self, HEAD, head_of};
use crate::map::{Beside, FANOUT, Grave, Index, LEAF_BYTES_MAX, Write};
use crate::packed::{Link, Newest};
use crate::revision::{Life, Revision};

/// Keys that begin alike are compared one by one if there are so few, or if they do for long.
const SORTED_AT_ONCE: usize = 12;
const HEADS_MAX: usize = 64;

/// Rows that wait to be taken into an index together, in the order of their revisions.
#[derive(Debug, Default)]
pub struct Batch {
    rows: Vec<Waiting>,
    /// Their keys, one behind the other.
    keys: Vec<u8>,
    order: Vec<Place>,
    /// The keys once more, in that order: what is used together lies together.
    sorted: Vec<u8>,
    /// Both are those of the rows.
    is_sorted: bool,
    older: Vec<Option<Older>>,
}

#[derive(Debug)]
struct Waiting {
    at: Revision,
    /// None is a tombstone.
    life: Option<Life>,
    from: usize,
    len: usize,
}

/// A row's place in the order of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    /// While rows are sorted, bytes of the key in which those that are sorted together may differ first; then
    /// where the key lies among the sorted ones.
    head: u64,
    row: u32,
    len: u32,
}

impl Batch {
    /// How many rows wait.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// True if none does.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Bytes that the rows and what is needed to take them in use.
    pub fn bytes(&self) -> usize {
        let a_row = size_of::<Waiting>() + size_of::<Place>() + size_of::<Option<Older>>() + size_of::<Link>();
        2 * self.keys.len() + self.rows.len() * a_row
    }

    /// The revision of the first row.
    pub(crate) fn first(&self) -> Option<Revision> {
        self.rows.first().map(|row| row.at)
    }

    /// The revision of the last row.
    pub(crate) fn last(&self) -> Option<Revision> {
        self.rows.last().map(|row| row.at)
    }

    /// Adds a row; None is a tombstone. Requires: its revision is above those before.
    pub(crate) fn add(&mut self, key: &[u8], at: Revision, life: Option<Life>) {
        self.is_sorted = false;
        self.rows.push(Waiting { at, life, from: self.keys.len(), len: key.len() });
        self.keys.extend_from_slice(key);
    }

    fn waiting(&self, place: &Place) -> &Waiting {
        &self.rows[place.row as usize]
    }

    /// The key of a place while rows are sorted.
    fn unsorted_key(&self, place: &Place) -> &[u8] {
        let row = self.waiting(place);
        &self.keys[row.from..row.from + row.len]
    }

    /// The key of a place in the finished order.
    fn key(&self, place: &Place) -> &[u8] {
        &self.sorted[place.head as usize..][..place.len as usize]
    }

    /// Puts the rows in the order in which they are taken in, a third of that work, if that was not done before.
    /// O(rows log rows).
    pub fn sort(&mut self) {
        if std::mem::replace(&mut self.is_sorted, true) {
            return;
        }
        let mut order = std::mem::take(&mut self.order);
        order.clear();
        let rows = u32::try_from(self.rows.len()).expect("a batch has few rows");
        let len = |row: &Waiting| u32::try_from(row.len).expect("keys are below 4 GiB");
        order.extend((0..rows).zip(&self.rows).map(|(at, row)| Place { head: 0, row: at, len: len(row) }));
        self.sort_from(0, HEADS_MAX, &mut order);
        let mut sorted = std::mem::take(&mut self.sorted);
        sorted.clear();
        sorted.reserve(self.keys.len());
        for place in &mut order {
            place.head = sorted.len() as u64;
            sorted.extend_from_slice(self.unsorted_key(place));
        }
        (self.order, self.sorted) = (order, sorted);
    }

    /// Sorts places whose keys have the first `depth` bytes in common, by a head of each at a time.
    fn sort_from(&self, depth: usize, heads: usize, places: &mut [Place]) {
        let Some((first, rest)) = places.split_first() else { return };
        let suffix = |place: &Place| self.unsorted_key(place).get(depth..).unwrap_or_default();
        if places.len() <= SORTED_AT_ONCE || heads == 0 {
            return places.sort_unstable_by(|a, b| suffix(a).cmp(suffix(b)).then(a.row.cmp(&b.row)));
        }
        let first = suffix(first);
        let common = rest.iter().fold(first.len(), |common, place| {
            let (first, suffix) = (&first[..common], suffix(place));
            if suffix.starts_with(first) { common } else { leaf::common(first, suffix) }
        });
        let mut short = false;
        for place in &mut *places {
            let suffix = &self.unsorted_key(place)[depth + common..];
            short |= suffix.len() < HEAD;
            place.head = head_of(suffix);
        }
        if short {
            // A head does not tell an end from zeros.
            let key = |place: &Place| &self.unsorted_key(place)[depth + common..];
            return places
                .sort_unstable_by(|a, b| a.head.cmp(&b.head).then_with(|| key(a).cmp(key(b))).then(a.row.cmp(&b.row)));
        }
        places.sort_unstable();
        for alike in places.chunk_by_mut(|a, b| a.head == b.head).filter(|alike| alike.len() > 1) {
            self.sort_from(depth + common + HEAD, heads - 1, alike);
        }
    }
}

/// What a batch did below a node.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    born: u64,
    died: u64,
    fresh: u64,
    /// The newest main at which a key was born or died, and at which one was written.
    changed: u64,
    written: u64,
}

/// A batch on its way into an index.
struct Taking<'a> {
    batch: &'a Batch,
    beside: &'a mut Beside,
    /// Pushes to the ring before the batch. A link to this many and `n` more is one to what row `n` superseded.
    pushes: u64,
    /// What each row superseded.
    older: Vec<Option<Older>>,
    /// The newest rows of keys whose links are still to rows.
    linked: Vec<Place>,
}

impl Index {
    /// Takes in the rows of a batch, which is empty then. O(rows log rows), and O(n) at most.
    ///
    /// Requires: its revisions are above all of the index.
    pub(crate) fn take(&mut self, batch: &mut Batch) {
        batch.sort();
        let graves = batch.rows.iter().filter(|row| row.life.is_none());
        let graves = graves.map(|row| Grave { at: row.at, key: batch.keys[row.from..][..row.len].into(), void: false });
        self.beside.graves.extend(graves);
        let mut older = std::mem::take(&mut batch.older);
        older.clear();
        older.resize(batch.rows.len(), None);
        let pushes = self.beside.ring.pushes();
        let mut taking = Taking { batch, beside: &mut self.beside, pushes, older, linked: Vec::new() };
        let mut sums = Sums::default();
        let mut behind = taking.write(&mut self.root, &batch.order, &mut sums);
        while !behind.is_empty() {
            let mut children = Vec::with_capacity(1 + behind.len());
            children.push(Child::of(std::mem::take(&mut self.root), Box::default(), taking.beside));
            children.append(&mut behind);
            let mut inner = Inner::new(children);
            taking.beside.tree_bytes += inner.heap_bytes();
            behind = taking.split(&mut inner);
            self.root = Node::Inner(Box::new(inner));
        }
        taking.link(&mut self.root);
        batch.older = taking.older;
        self.live = self.live + sums.born - sums.died;
        self.keys += sums.fresh;
        batch.rows.clear();
        batch.keys.clear();
        batch.is_sorted = false;
    }
}

impl Taking<'_> {
    /// Takes rows into a node; returns what of it has to lie in nodes of their own behind it.
    fn write(&mut self, node: &mut Node, places: &[Place], sums: &mut Sums) -> Vec<Child> {
        let batch = self.batch;
        let inner = match node {
            Node::Leaf(leaf) => return self.write_leaf(leaf, places, sums),
            Node::Inner(inner) => inner,
        };
        let (mut rest, mut behind) = (places, Vec::new());
        while let Some(first) = rest.first() {
            let key = batch.key(first);
            inner.lower(key);
            let which = inner.child_of(key);
            let here;
            (here, rest) = rest.split_at(batch.end_of(inner, which, rest));
            let child = inner.child_mut(which);
            let mut below = Sums::default();
            let mut more = self.write(&mut child.node, here, &mut below);
            child.live = child.live + below.born - below.died;
            child.changed = child.changed.max(below.changed);
            child.written = child.written.max(below.written);
            if !more.is_empty() {
                (child.live, _, child.written) = child.node.sums(self.beside);
                // Any part may hold what changed last, if it was written then.
                more.iter_mut().for_each(|right| right.changed = right.changed.min(child.changed));
                behind.push((which, more));
            }
            sums.add(below);
        }
        if behind.is_empty() {
            return Vec::new();
        }
        self.beside.edit(inner, |children| {
            let more: usize = behind.iter().map(|(_, more)| more.len()).sum();
            let mut all = Vec::with_capacity(children.len() + more);
            let mut old = children.drain(..);
            let mut before = 0;
            for (which, more) in behind {
                all.extend(old.by_ref().take(which + 1 - before));
                all.extend(more);
                before = which + 1;
            }
            all.extend(old);
            *children = all;
        });
        self.split(inner)
    }

    fn write_leaf(&mut self, leaf: &mut leaf::Leaf, places: &[Place], sums: &mut Sums) -> Vec<Child> {
        let batch = self.batch;
        let mut changes = Vec::with_capacity(places.len());
        let mut first = 0;
        for of_key in places.chunk_by(|a, b| batch.key(a) == batch.key(b)) {
            let key = batch.key(&of_key[0]);
            let place = leaf.search_from(first, key);
            first = place.unwrap_or_else(|at| at);
            let before = place.ok().map(|at| self.beside.state(leaf, at));
            let newest = self.succeed(before, of_key, sums);
            let (is, was) = (newest.is_live(), before.is_some_and(|before| before.is_live()));
            sums.born += u64::from(is && !was);
            sums.died += u64::from(was && !is);
            sums.fresh += u64::from(before.is_none());
            changes.push(leaf::Change { key, place, newest });
        }
        let bytes = leaf.heap_bytes();
        let rights = leaf.merge(&changes, FANOUT, LEAF_BYTES_MAX);
        let after: usize = rights.iter().map(leaf::Leaf::heap_bytes).sum();
        self.beside.tree_bytes = self.beside.tree_bytes + leaf.heap_bytes() + after - bytes;
        for change in &changes {
            self.beside.keep(change.key, &change.newest, change.fits());
        }
        let (mut below, mut behind) = (Vec::new(), Vec::with_capacity(rights.len()));
        let mut left = &*leaf;
        for right in &rights {
            let mut low = Vec::new();
            left.key(left.len() - 1, &mut below);
            right.key(0, &mut low);
            low.truncate(leaf::common(&below, &low) + 1);
            behind.push(low);
            left = right;
        }
        let child = |(right, low): (leaf::Leaf, Vec<u8>)| Child::of(Node::Leaf(right), low.into(), self.beside);
        rights.into_iter().zip(behind).map(child).collect()
    }

    /// The state of a key after its rows; what they supersede waits for its place in the ring.
    fn succeed(&mut self, before: Option<Newest>, of_key: &[Place], sums: &mut Sums) -> Newest {
        let mut state = before;
        for place in of_key {
            let &Waiting { at, life, .. } = self.batch.waiting(place);
            let was_live = state.is_some_and(|state| state.is_live());
            let mut older = Link::NONE;
            if let Some(state) = &state {
                self.older[place.row as usize] = Some(self.beside.superseded(state, at));
                older = Link::to(self.pushes + u64::from(place.row));
            }
            let write = life.map_or(Write::Tombstone, |life| Write::Put(Some(life)));
            let newest = Newest::after(state.as_ref(), at, write, older);
            if newest.is_live() != was_live {
                sums.changed = at.main.max(sums.changed);
            }
            sums.written = at.main.max(sums.written);
            state = Some(newest);
        }
        let newest = state.expect("a key has a row");
        if newest.older != Link::NONE {
            self.linked.extend(of_key.last());
        }
        newest
    }

    /// Gives what was superseded its place in the ring, and sets the links to it.
    fn link(&mut self, root: &mut Node) {
        let mut places = vec![Link::NONE; self.older.len()];
        for at in 0..self.older.len() {
            if let Some(mut older) = self.older[at].take() {
                older.older = self.place(older.older, &places);
                places[at] = self.beside.ring.push(older);
            }
        }
        let linked = std::mem::take(&mut self.linked);
        self.link_in(root, &linked, &places);
    }

    fn place(&self, link: Link, places: &[Link]) -> Link {
        let row = link.after(self.pushes).and_then(|row| places.get(usize::try_from(row).ok()?));
        row.copied().unwrap_or(link)
    }

    fn link_in(&mut self, node: &mut Node, mut linked: &[Place], places: &[Link]) {
        let batch = self.batch;
        match node {
            Node::Leaf(leaf) => {
                for row in linked {
                    let key = batch.key(row);
                    let Ok(at) = leaf.search(key) else { continue };
                    let mut newest = self.beside.state(leaf, at);
                    newest.older = self.place(newest.older, places);
                    let fits = leaf.set(at, &newest);
                    self.beside.keep(key, &newest, fits);
                }
            }
            Node::Inner(inner) => {
                while let Some(first) = linked.first() {
                    let which = inner.child_of(batch.key(first));
                    let here;
                    (here, linked) = linked.split_at(batch.end_of(inner, which, linked));
                    self.link_in(&mut inner.child_mut(which).node, here, places);
                }
            }
        }
    }

    /// Splits an overfull inner node evenly; returns what comes behind it.
    fn split(&mut self, inner: &mut Inner) -> Vec<Child> {
        let len = inner.children().len();
        let parts = len.div_ceil(FANOUT);
        if parts <= 1 {
            return Vec::new();
        }
        let mut behind = Vec::with_capacity(parts - 1);
        self.beside.edit(inner, |children| {
            for part in (1..parts).rev() {
                behind.push(children.split_off(part * len / parts));
            }
            children.shrink_to_fit();
        });
        let child = |children: Vec<Child>| {
            let low = children[0].low.clone();
            let right = Inner::new(children);
            self.beside.tree_bytes += right.heap_bytes();
            Child::of(Node::Inner(Box::new(right)), low, self.beside)
        };
        behind.into_iter().rev().map(child).collect()
    }
}

impl Batch {
    /// How many of `places`, the first of which is in child `which`, are in it.
    fn end_of(&self, inner: &Inner, which: usize, places: &[Place]) -> usize {
        let Some(next) = inner.children().get(which + 1) else { return places.len() };
        let is_before = |place: &Place| *self.key(place) < *next.low;
        // There are few, as a rule: in steps that double, from the front.
        let (mut end, mut step) = (1, 1);
        while places.get(end + step - 1).is_some_and(is_before) {
            end += step;
            step *= 2;
        }
        end + places[end..(end + step).min(places.len())].partition_point(is_before)
    }
}

impl Sums {
    fn add(&mut self, more: Sums) {
        self.born += more.born;
        self.died += more.died;
        self.fresh += more.fresh;
        self.changed = self.changed.max(more.changed);
        self.written = self.written.max(more.written);
    }
}
