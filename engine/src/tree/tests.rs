//! The tree against a `BTreeMap`, over pages in memory.

use super::*;
use crate::error::Error;
use crate::ids::{TreeId, UNIT_BYTES};
use crate::page::layout::{self, HEADER_BYTES};
use crate::page::{self, Branch, Head, Kind, Leaf, Stamp, search};
use crate::run::seeded::Rng;
use crate::space::{Extent, FreeSpace};
use crate::sync::Mutex;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;

const STAMP: Stamp = Stamp { engine: 1, file: TreeId(1) };

#[derive(Debug)]
struct Memory {
    pages: Mutex<BTreeMap<u32, Arc<[u8]>>>,
    page_bytes: usize,
}

struct Sink<'a> {
    memory: &'a Memory,
    space: &'a mut FreeSpace,
    epoch: u64,
    freed: Vec<Extent>,
    written: usize,
}

fn bad(ptr: PagePtr, damage: Damage) -> Error {
    Error::corrupt(Path::new("memory"), crate::error::Place::Unit(ptr.unit), damage)
}

impl PageSource for Memory {
    fn page(&self, ptr: PagePtr, height: u8) -> Result<PageRef<'_>> {
        let bytes = self.pages.lock().get(&ptr.unit).cloned();
        let bytes = bytes.ok_or_else(|| bad(ptr, Damage::Malformed { what: "no page" }))?;
        page::check(&bytes, STAMP, ptr, height).map_err(|damage| bad(ptr, damage))?;
        Ok(PageRef::Owned(bytes))
    }

    fn extent(&self, extent: ExtentRef) -> Result<Bytes> {
        let bytes = self.pages.lock()[&extent.ptr.unit].clone();
        layout::check(&bytes, STAMP, extent.ptr, Kind::Overflow, 0).map_err(|damage| bad(extent.ptr, damage))?;
        Ok(Bytes::copy_from_slice(&bytes[HEADER_BYTES..HEADER_BYTES + extent.len as usize]))
    }

    fn page_bytes(&self) -> usize {
        self.page_bytes
    }
}

impl PageSink for Sink<'_> {
    fn allocate(&mut self, units: u32) -> Result<PagePtr> {
        Ok(PagePtr { unit: self.space.allocate(units)?, epoch: self.epoch })
    }

    fn write(&mut self, ptr: PagePtr, mut page: Vec<u8>, head: Head) -> Result<()> {
        layout::seal(&mut page, STAMP, ptr, head);
        self.written += page.len();
        self.memory.pages.lock().insert(ptr.unit, page.into());
        Ok(())
    }

    fn write_extent(&mut self, ptr: PagePtr, body: &Bytes) -> Result<()> {
        let mut page = vec![0; (HEADER_BYTES + body.len()).next_multiple_of(UNIT_BYTES)];
        page[HEADER_BYTES..HEADER_BYTES + body.len()].copy_from_slice(body);
        self.write(ptr, page, Head { kind: Kind::Overflow, height: 0, count: body.len() as u32 })
    }

    fn free(&mut self, ptr: PagePtr, units: u32) {
        self.freed.push(Extent { unit: ptr.unit, units });
    }
}

struct Tested {
    memory: Arc<Memory>,
    space: FreeSpace,
    root: Root,
    epoch: u64,
    model: BTreeMap<Vec<u8>, (Vec<u8>, Vec<u8>)>,
    written: usize,
    /// Of this root or one before it.
    leaves: Leaves,
}

impl Tested {
    fn new(page_bytes: usize) -> Self {
        let memory = Arc::new(Memory { pages: Mutex::default(), page_bytes });
        let (space, model) = (FreeSpace::unknown(1), BTreeMap::new());
        let leaves = Leaves::list(&*memory, Root::default(), None);
        Tested { memory, space, root: Root::default(), epoch: 0, model, written: 0, leaves }
    }

    fn apply(&mut self, batch: BTreeMap<Vec<u8>, Option<(Vec<u8>, Vec<u8>)>>) {
        let edits: Vec<_> = batch
            .iter()
            .map(|(key, value)| {
                let edit = match value {
                    Some((head, body)) => Edit::Put { head: head.clone().into(), body: body.clone().into() },
                    None => Edit::Remove,
                };
                (Bytes::from(key.clone()), edit)
            })
            .collect();
        self.epoch += 1;
        let mut sink =
            Sink { memory: &self.memory, space: &mut self.space, epoch: self.epoch, freed: Vec::new(), written: 0 };
        self.root = edit(&*self.memory, &mut sink, self.root, &edits).unwrap();
        let (freed, written) = (sink.freed, sink.written);
        self.written = written;
        for extent in freed {
            self.memory.pages.lock().remove(&extent.unit).expect("freed once");
            self.space.release(extent);
        }
        for (key, value) in batch {
            match value {
                Some(value) => self.model.insert(key, value),
                None => self.model.remove(&key),
            };
        }
        if !self.epoch.is_multiple_of(3) {
            self.leaves = Leaves::list(&*self.memory, self.root, Some(&self.leaves));
        }
        self.check();
    }

    fn check(&mut self) {
        let mut used = vec![Extent { unit: 0, units: 1 }];
        let mut entries = Vec::new();
        let shape = reach(&*self.memory, self.root, &bad, &mut |reached| {
            match reached {
                Reached::Page(extent) | Reached::Overflow(extent) => used.push(extent),
                Reached::Entry(entry) => entries.push((entry.key.to_vec(), entry.head.to_vec())),
            }
            Ok(())
        })
        .unwrap();
        let want: Vec<_> = self.model.iter().map(|(key, (head, _))| (key.clone(), head.clone())).collect();
        assert_eq!(entries, want);
        assert_eq!(shape.entries, self.root.entries);
        let mut learned = FreeSpace::unknown(self.space.end());
        learned.learn(&mut used).unwrap();
        assert!(learned.extents().eq(self.space.extents()), "every unit is reached or free, exactly once");
        assert_eq!(used.len() - 1, self.memory.pages.lock().len());
    }

    /// Whoever takes all keys up to the last one of each leaf that is shown misses none.
    fn check_leaves(&self, mut probes: Vec<&[u8]>, leaves: &Leaves, stop: usize) {
        probes.sort_unstable();
        probes.dedup();
        let is_there = |key: &&[u8]| self.model.contains_key(*key);
        for listed in [true, false] {
            let (mut taken, mut shown) = (0, 0);
            let mut see = |at: usize, leaf: Leaf<'_>| {
                assert!(!probes[taken.min(at)..at].iter().any(is_there), "they were in a leaf before");
                taken = taken.max(at);
                while let Some(key) = probes.get(taken).filter(|key| **key <= leaf.key(leaf.len() - 1)) {
                    assert_eq!(leaf.find(key).is_ok(), is_there(key));
                    taken += 1;
                }
                shown += 1;
                shown <= stop
            };
            if listed {
                leaves.leaves_of(&*self.memory, &probes, &mut see).unwrap();
            } else {
                leaves_of(&*self.memory, self.root, &probes, &mut see).unwrap();
            }
            assert!(shown == stop + 1 || !probes[taken..].iter().any(is_there));
        }
    }

    fn check_reads(&self, rng: &mut Rng) {
        let keys: Vec<Vec<u8>> = self.model.keys().cloned().chain([vec![], vec![255; 9]]).collect();
        let probes: Vec<&[u8]> =
            (0..keys.len() / 2).map(|_| &keys[rng.below(keys.len() as u64) as usize][..]).collect();
        let leaves = Leaves::list(&*self.memory, self.root, Some(&self.leaves));
        assert_eq!(leaves, Leaves::list(&*self.memory, self.root, None));
        assert_eq!(leaves.root(), self.root);
        let stop = rng.below(probes.len() as u64 * 2 + 1) as usize;
        for listed in [true, false] {
            let mut seen = Vec::new();
            let mut see = |at, entry: Option<Lent<'_>>| {
                assert_eq!(at, seen.len());
                let copy = |lent| Entry::copy(lent);
                seen.push(
                    entry
                        .map(copy)
                        .map(|entry| (entry.head.to_vec(), entry.body.load(&*self.memory).unwrap().to_vec())),
                );
                Ok::<_, Error>(at != stop)
            };
            if listed {
                leaves.get_many(&*self.memory, &probes, &mut see).unwrap();
            } else {
                get_many(&*self.memory, self.root, &probes, &mut see).unwrap();
            }
            assert_eq!(seen.len(), probes.len().min(stop + 1));
            for (probe, found) in probes.iter().zip(&seen) {
                assert_eq!(found.as_ref(), self.model.get(*probe));
                let one = get(&*self.memory, self.root, probe).unwrap().map(|entry| entry.head.to_vec());
                assert_eq!(one.as_ref(), found.as_ref().map(|(head, _)| head));
                let one = leaves.find(&*self.memory, probe, |lent| lent.head.to_vec()).unwrap();
                assert_eq!(one.as_ref(), found.as_ref().map(|(head, _)| head));
            }
        }
        self.check_leaves(probes, &leaves, stop);
        let mut cursor = Cursor::new(&*self.memory, self.root);
        for _ in 0..4 {
            let key = &keys[rng.below(keys.len() as u64) as usize][..];
            let exact = rng.one_in(2);
            let bound = if exact { Bound::Included(key) } else { Bound::Excluded(key) };
            cursor.seek(bound).unwrap();
            for want in self.model.range::<[u8], _>((bound, Bound::Unbounded)).map(Some).chain([None]) {
                assert_eq!(cursor.key(), want.map(|(key, _)| &key[..]));
                cursor.advance().unwrap();
            }
            cursor.seek_back(bound).unwrap();
            for want in self.model.range::<[u8], _>((Bound::Unbounded, bound)).rev().map(Some).chain([None]) {
                assert_eq!(cursor.key(), want.map(|(key, _)| &key[..]));
                cursor.retreat().unwrap();
            }
        }
    }
}

fn value(rng: &mut Rng, page_bytes: usize) -> (Vec<u8>, Vec<u8>) {
    let len = match rng.below(8) {
        0 => 0,
        1 => rng.below(3 * page_bytes as u64),
        2 => page_bytes as u64 / 4 - rng.below(60),
        _ => rng.below(200),
    };
    let head = vec![rng.next_u64() as u8; rng.below(60) as usize];
    (head, vec![rng.next_u64() as u8; len as usize])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 1 } else { 48 }))]
    #[test]
    fn it_is_an_ordered_map(seed in any::<u64>(), size in 0u32..3, key_space in 1u64..600) {
        let page_bytes = 4096 << (2 * size);
        let mut rng = Rng::new(seed);
        let mut tested = Tested::new(page_bytes);
        let mut next = 0u64;
        for _ in 0..if cfg!(miri) { 3 } else { 12 } {
            let mut batch = BTreeMap::new();
            let style = rng.below(4);
            for _ in 0..rng.below(150) {
                let key = match style {
                    0 => { next += 1; format!("z{next:08}").into_bytes() }
                    1 => format!("{:05}", rng.below(key_space)).into_bytes(),
                    _ => vec![b'k'; 1 + rng.below(key_space.min(512)) as usize],
                };
                let edit = if style == 3 || rng.one_in(4) { None } else { Some(value(&mut rng, page_bytes)) };
                batch.insert(key, edit);
            }
            if rng.one_in(5) {
                batch = tested.model.keys().filter(|_| !rng.one_in(8)).map(|key| (key.clone(), None)).collect();
            }
            tested.apply(batch);
        }
        tested.check_reads(&mut rng);
    }
}

#[test]
fn rising_keys_fill_pages_and_cost_what_they_write() {
    let mut tested = Tested::new(4096);
    let rounds = if cfg!(miri) { 4 } else { 40 };
    for round in 0..rounds {
        let batch =
            (0..50).map(|at| (format!("{:08}", round * 50 + at).into_bytes(), Some((vec![1; 16], vec![2; 100]))));
        tested.apply(batch.collect());
        // Fifty entries of 136 bytes take two pages; one leaf is continued and one path is copied.
        assert!(tested.written <= 5 * 4096, "{} bytes in round {round}", tested.written);
    }
    let leaves = rounds as usize * 50 / (4032 / (10 + 8 + 16 + 100 + 2)) + 1;
    assert!(tested.memory.pages.lock().len() <= leaves + 3);
}

#[test]
fn leaves_are_listed_for_the_newest_root_if_it_is_worth_it() {
    let mut tested = Tested::new(4096);
    let key = |n: u32| format!("{n:08}").into_bytes();
    tested.apply((0..300).map(|n| (key(n), Some((vec![], vec![1; 90])))).collect());
    let (memory, newest) = (Arc::clone(&tested.memory), Newest::default());
    let listed = |root: Root| {
        newest.of(&*memory, root, 1, &key(7)).as_ref().map(|leaves| {
            assert_eq!(leaves.root(), root);
            Arc::as_ptr(leaves)
        })
    };
    let old = tested.root;
    assert_eq!(listed(Root { entries: u64::MAX, ..old }), None, "not for one lookup of so many entries");
    assert_eq!(newest.bytes(), 0);
    let first = listed(old);
    assert!(first.is_some() && listed(old) == first);
    // 24 bytes of a leaf, of which each is full, and 48 of their branch.
    let leaves = 300usize.div_ceil((4096 - HEADER_BYTES) / (10 + 8 + 90 + 2));
    assert_eq!(newest.bytes(), leaves * 24 + 48);
    tested.apply(BTreeMap::from([(key(9999), Some((vec![], vec![2])))]));
    let second = listed(tested.root);
    assert!(second.is_some() && second != first);
    assert_eq!(listed(old), None, "an older root does without");
    assert_eq!(listed(tested.root), second);
    newest.forget();
    assert_eq!(newest.bytes(), 0);
}

#[test]
fn the_table_tells_where_leaves_begin_and_end() {
    let mut tested = Tested::new(4096);
    let count = if cfg!(miri) { 600u32 } else { 20_000 };
    let key = |n: u32| [&u64::from(n / 3).to_be_bytes()[..], &(n % 3).to_be_bytes()].concat();
    // The odd ones are not there, nor is what is below the first.
    tested.apply((5..count).map(|n| (key(2 * n), Some((vec![], vec![1; 40])))).collect());
    let leaves = Leaves::list(&*tested.memory, tested.root, None);
    assert_eq!(Leaves::list(&*tested.memory, Root::default(), None).bounds_of(&key(10), &mut Place::default()), None);
    assert_eq!(leaves.bounds_of(&key(9), &mut Place::default()), None);
    let (mut ends, mut near, mut far) = (vec![(0, 0)], Place::default(), Place::default());
    let keys: Vec<_> = (10..2 * count).map(key).collect();
    for (key, other) in keys.iter().zip(keys.iter().cycle().step_by(997)) {
        let ordinal = search::long_ordinal(key);
        let mut of_leaf = None;
        leaves
            .leaves_of(&*tested.memory, &[key], &mut |_, leaf| {
                of_leaf = Some([leaf.key(0), leaf.key(leaf.len() - 1)].map(search::long_ordinal));
                false
            })
            .unwrap();
        let [first, last] = of_leaf.unwrap();
        let bounds = leaves.bounds_of(key, &mut Place::default());
        leaves.bounds_of(other, &mut far);
        assert_eq!(
            [leaves.bounds_of(key, &mut near), leaves.bounds_of(key, &mut far)],
            [bounds.clone(), bounds.clone()]
        );
        match bounds {
            Some(bounds) => {
                assert!(bounds.contains(&ordinal) && bounds.contains(&first) && bounds.contains(&last));
                if bounds.end != ends[ends.len() - 1] {
                    ends.push(bounds.end);
                }
            }
            None => assert!(ordinal >= ends[ends.len() - 1], "only of the last leaf"),
        }
    }
    assert!(ends.len() > 10 && ends.is_sorted(), "{}", ends.len());
}

#[test]
fn a_table_reads_no_branch_that_the_one_before_has() {
    let mut tested = Tested::new(4096);
    let key = |n: u32| format!("{n:08}{:0492}", 0).into_bytes();
    tested.apply((0..60).map(|n| (key(n), Some((Vec::new(), vec![1])))).collect());
    assert_eq!(tested.root.height, 2);
    let before = Leaves::list(&*tested.memory, tested.root, None);
    let top = tested.memory.page(tested.root.ptr.unwrap(), 2).unwrap();
    let branches: Vec<PagePtr> = (0..Branch::new(&top).len()).map(|at| Branch::new(&top).child(at)).collect();
    // The right edge changes, and the rest is not there to be read.
    tested.apply(BTreeMap::from([(key(9999), Some((Vec::new(), vec![2])))]));
    let unchanged = &branches[..branches.len() - 1];
    let hidden: Vec<_> =
        unchanged.iter().map(|ptr| tested.memory.pages.lock().remove(&ptr.unit).expect("it is unchanged")).collect();
    let leaves = Leaves::list(&*tested.memory, tested.root, Some(&before));
    let found = |n: u32| leaves.find(&*tested.memory, &key(n), |lent| lent.joined.to_vec()).unwrap();
    assert_eq!([found(0), found(17), found(9999), found(9998)], [Some(vec![1]), Some(vec![1]), Some(vec![2]), None]);
    // Without the table they are missed.
    let empty = Leaves::list(&*tested.memory, tested.root, None);
    let error = empty.find(&*tested.memory, &key(0), |_| ()).unwrap_err();
    assert!(error.to_string().contains("no page"), "{error}");
    for (ptr, page) in unchanged.iter().zip(hidden) {
        tested.memory.pages.lock().insert(ptr.unit, page);
    }
    assert_eq!(leaves, Leaves::list(&*tested.memory, tested.root, None));
}

/// Pages on a device: what is read of a leaf has to be begun before.
struct Far<'a>(&'a Memory, Mutex<Vec<u32>>);

impl PageSource for Far<'_> {
    fn page(&self, ptr: PagePtr, height: u8) -> Result<PageRef<'_>> {
        assert!(height > 0 || self.1.lock().contains(&ptr.unit), "unit {} is waited for", ptr.unit);
        self.0.page(ptr, height)
    }

    fn is_near(&self, _: PagePtr) -> bool {
        false
    }

    fn will_read(&self, pages: &mut dyn Iterator<Item = PagePtr>) {
        self.1.lock().extend(pages.map(|ptr| ptr.unit));
    }

    fn extent(&self, extent: ExtentRef) -> Result<Bytes> {
        self.0.extent(extent)
    }

    fn page_bytes(&self) -> usize {
        self.0.page_bytes
    }
}

#[test]
fn leaves_that_are_not_in_memory_are_read_side_by_side() {
    let mut tested = Tested::new(4096);
    let keys: Vec<_> = (0..if cfg!(miri) { 600 } else { 3000 }).map(|n| format!("{n:08}").into_bytes()).collect();
    tested.apply(keys.iter().map(|key| (key.clone(), Some((vec![], vec![1; 90])))).collect());
    let leaves = Leaves::list(&*tested.memory, tested.root, None);
    let far = Far(&tested.memory, Mutex::default());
    let mut seen = 0;
    let all = leaves.get_many(&far, &keys, &mut |_, lent| {
        seen += usize::from(lent.is_some());
        Ok::<_, Error>(true)
    });
    all.unwrap();
    assert_eq!(seen, keys.len());
    let begun_once = || {
        let mut begun = std::mem::take(&mut *far.1.lock());
        let asked = begun.len();
        begun.sort_unstable();
        begun.dedup();
        assert!(asked - begun.len() <= keys.len() / 512, "a leaf is asked for once");
        begun.len()
    };
    let all = begun_once();
    let mut shown = 0;
    let show = &mut |_, _: Leaf<'_>| {
        shown += 1;
        true
    };
    leaves.leaves_of(&far, &keys, show).unwrap();
    assert_eq!((shown, begun_once()), (all, all));
}

#[test]
fn a_damaged_leaf_is_told_in_its_turn() {
    let mut tested = Tested::new(4096);
    let key = |n: u32| format!("{n:08}").into_bytes();
    tested.apply((0..300).map(|n| (key(n), Some((vec![n as u8], vec![1; 90])))).collect());
    let leaves = Leaves::list(&*tested.memory, tested.root, None);
    let top = tested.memory.page(tested.root.ptr.unwrap(), 1).unwrap();
    let (unit, from) = (Branch::new(&top).child(3).unit, Branch::new(&top).key(3).to_vec());
    let mut page = tested.memory.pages.lock()[&unit].to_vec();
    page[2000] ^= 1;
    tested.memory.pages.lock().insert(unit, page.into());
    let first_bad = (0..300).find(|n| key(*n) >= from).unwrap();
    for lists_again in [false, true] {
        let again = lists_again.then(|| Leaves::list(&*tested.memory, tested.root, None));
        let keys: Vec<_> = (0..300).map(key).collect();
        let mut seen = 0;
        let error = again.as_ref().unwrap_or(&leaves).get_many(&*tested.memory, &keys, &mut |at, lent| {
            assert_eq!(lent.unwrap().head, [at as u8]);
            seen += 1;
            Ok::<_, Error>(true)
        });
        let error = error.unwrap_err();
        assert!(
            matches!(&error, Error::Corrupt { place: crate::error::Place::Unit(at), .. } if *at == unit),
            "{error}"
        );
        assert_eq!(seen, first_bad);
        let mut shown = 0;
        let show = &mut |_, leaf: Leaf<'_>| {
            shown += leaf.len();
            true
        };
        let error = again.as_ref().unwrap_or(&leaves).leaves_of(&*tested.memory, &keys, show).unwrap_err();
        assert!(matches!(error, Error::Corrupt { .. }), "{error}");
        assert_eq!(shown, first_bad as usize);
    }
}

#[test]
fn removing_from_the_left_gives_pages_back() {
    let mut tested = Tested::new(4096);
    let key = |at: u32| format!("{at:08}").into_bytes();
    let runs = if cfg!(miri) { 3 } else { 30 };
    tested.apply((0..runs * 100).map(|at| (key(at), Some((vec![], vec![7; 90])))).collect());
    for at in 0..runs {
        tested.apply((at * 100..at * 100 + 99).map(|at| (key(at), None)).collect());
    }
    assert_eq!(tested.model.len(), runs as usize);
    assert!(tested.memory.pages.lock().len() <= 4, "{} pages", tested.memory.pages.lock().len());
    tested.apply(tested.model.clone().into_keys().map(|key| (key, None)).collect());
    assert_eq!(tested.root, Root::default());
}

/// Nobody met it, as no key lies there, until an edit merged the branch with the one before and wrote a page whose
/// keys are out of order.
#[test]
fn a_branch_whose_first_key_is_below_its_bounds_is_found() {
    let mut tested = Tested::new(4096);
    let key = |n: u32| format!("{n:0500}").into_bytes();
    tested.apply((0..55).map(|n| (key(n), Some((Vec::new(), vec![1])))).collect());
    let root = tested.root;
    assert_eq!(root.height, 2);
    let damaged = |ptr, damage| bad(ptr, damage);
    reach(&*tested.memory, root, &damaged, &mut |_| Ok(())).unwrap();
    let top = tested.memory.page(root.ptr.unwrap(), 2).unwrap();
    let ptr = Branch::new(&top).child(1);
    let mut branch = tested.memory.page(ptr, 1).unwrap().to_vec();
    let first = layout::slot(&branch, 0) + 14;
    branch[first] = 0;
    let count = layout::count(&branch);
    layout::seal(&mut branch, STAMP, ptr, Head { kind: Kind::Branch, height: 1, count });
    tested.memory.pages.lock().insert(ptr.unit, branch.into());
    let error = reach(&*tested.memory, root, &damaged, &mut |_| Ok(())).unwrap_err();
    assert!(error.to_string().contains("a key lies outside its page's bounds"), "{error}");
}
