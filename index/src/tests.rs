//! The index against a list of all rows ever written.

use crate::walk::VISITED;
use crate::{Batch, Hit, Index, KeyRange, Life, Loader, Revision, Row, Swept};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

/// Every row ever, none forgotten.
#[derive(Default, Clone)]
struct Model {
    rows: BTreeMap<Revision, (Vec<u8>, Option<(u64, u64)>)>,
    gone: BTreeSet<Revision>,
}

impl Model {
    fn of_key(&self, key: &[u8]) -> impl DoubleEndedIterator<Item = (Revision, Option<(u64, u64)>)> + '_ {
        let key = key.to_vec();
        self.rows.iter().filter(move |(_, (have, _))| *have == key).map(|(at, (_, row))| (*at, *row))
    }

    fn get(&self, key: &[u8], at: u64) -> Option<Hit> {
        let (modified, row) = self.of_key(key).rfind(|(row, _)| row.main <= at)?;
        let newest = self.of_key(key).next_back().is_some_and(|(newest, _)| newest == modified);
        row.map(|(created, version)| Hit { modified, life: newest.then_some(Life { created, version }) })
    }

    fn put(&mut self, key: &[u8], at: Revision) -> Life {
        let (created, version) = match self.of_key(key).next_back() {
            Some((_, Some((created, version)))) => (created, version + 1),
            _ => (at.main, 1),
        };
        self.rows.insert(at, (key.to_vec(), Some((created, version))));
        Life { created, version }
    }

    fn tombstone(&mut self, key: &[u8], at: Revision) -> Option<Hit> {
        let hit = self.get(key, u64::MAX)?;
        self.rows.insert(at, (key.to_vec(), None));
        Some(hit)
    }

    fn keys(&self) -> BTreeSet<Vec<u8>> {
        self.rows.values().map(|(key, _)| key.clone()).collect()
    }

    fn live(&self, range: KeyRange<'_>, at: u64) -> Vec<(Vec<u8>, Hit)> {
        let keys = self.keys().into_iter().filter(|key| range.contains(key));
        keys.filter_map(|key| self.get(&key, at).map(|hit| (key, hit))).collect()
    }

    /// What CMP-4 removes at `upto`, as far as it is still there.
    fn compact(&mut self, upto: u64) -> BTreeSet<Revision> {
        let mut removed = BTreeSet::new();
        for key in self.keys() {
            let below: Vec<_> = self.of_key(&key).filter(|(at, _)| at.main <= upto).collect();
            for (place, (at, row)) in below.iter().enumerate() {
                let newest = place + 1 == below.len();
                if !(newest && (row.is_some() || at.main == upto)) && self.gone.insert(*at) {
                    removed.insert(*at);
                }
            }
        }
        removed
    }
}

/// Keys that are parts of each other, end in zeros, share much, or nothing.
fn name(key: u8) -> Vec<u8> {
    match key % 6 {
        0 => format!("k{key:02}").into_bytes(),
        1 => format!("k{:02}\0", key - 1).into_bytes(),
        2 => format!("k{:02}\0\0\0\0\0\0\0", key - 2).into_bytes(),
        3 => format!("{}{key:02}", "k".repeat(200)).into_bytes(),
        4 => format!("k{:02}-and-a-tail-{key}", key - 4).into_bytes(),
        _ => vec![key],
    }
}

fn walked(index: &Index, range: KeyRange<'_>, at: u64, limit: usize, up: bool) -> Vec<(Vec<u8>, Hit)> {
    let mut found = Vec::new();
    let visit = &mut |key: &[u8], hit| {
        found.push((key.to_vec(), hit));
        if found.len() == limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    if up {
        index.walk(range, at, visit)
    } else {
        index.walk_back(range, at, visit)
    }
    found
}

fn check_reads(index: &Index, model: &Model, from: u64, newest: u64) {
    let bounds: &[&[u8]] = if cfg!(miri) { &[b"", b"k05", b"k2"] } else { &[b"", b"a", b"k05", b"k2", b"zz"] };
    for at in (from..=newest + 1).step_by(if cfg!(miri) { 5 } else { 1 }) {
        for start in bounds.iter().copied() {
            for end in bounds.iter().copied().map(Some).chain([None]) {
                let range = KeyRange { start, end };
                let want = model.live(range, at);
                assert_eq!(index.count(range, at), want.len() as u64, "{range:?} at {at}");
                assert_eq!(counted_in_parts(index, range, at), want.len() as u64, "{range:?} at {at}");
                assert_eq!(walked(index, range, at, usize::MAX, true), want, "{range:?} at {at}");
                let back: Vec<_> = want.iter().rev().take(2).cloned().collect();
                assert_eq!(walked(index, range, at, 2, false), back);
            }
        }
        for key in model.keys() {
            assert_eq!(index.get(&key, at), model.get(&key, at));
        }
    }
    for (start, end) in [(&b""[..], None), (b"a", Some(&b"k05"[..])), (b"k05", Some(b"k2")), (b"k2", None)] {
        let range = KeyRange { start, end };
        for (from, to) in [(from, newest), (from + 3, newest), (from + 1, newest.saturating_sub(2)), (newest, newest)] {
            for budget in [usize::MAX, 1, 3] {
                check_changes(index, model, range, (from, to), budget);
            }
        }
    }
}

fn check_changes(index: &Index, model: &Model, range: KeyRange<'_>, (from, to): (u64, u64), budget: usize) {
    let (mut found, mut resume) = (Vec::new(), None);
    loop {
        let mut left = budget;
        resume = index.changes(range, resume, (from, to), &mut left, &mut |at| found.push(at));
        if resume.is_none() {
            break;
        }
        assert_eq!(left, 0);
    }
    let wanted = |at: &Revision| (from..=to).contains(&at.main) && !model.gone.contains(at);
    let mut want = Vec::new();
    for key in model.keys().into_iter().filter(|key| range.contains(key)) {
        want.extend(model.of_key(&key).rev().map(|(at, _)| at).filter(wanted));
    }
    assert_eq!(found, want, "{range:?}, {from} to {to}, {budget} at a time");
}

#[derive(Debug, Clone)]
enum Step {
    Txn(Vec<(u8, bool)>),
    Sweep { back: u64, budget: usize },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => prop::collection::vec((0u8..30, prop::bool::weighted(0.65)), 1..4).prop_map(Step::Txn),
        1 => (0u64..6, 1usize..5).prop_map(|(back, budget)| Step::Sweep { back, budget }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 1 } else { 64 }))]
    #[test]
    fn it_answers_like_the_list_of_all_rows(
        steps in prop::collection::vec(step(), 1..if cfg!(miri) { 16 } else { 60 }),
        // From where on mains, and by how much subs, and some do not fit what they are packed in.
        first in prop_oneof![2 => Just(1), 1 => Just((1u64 << 42) - 8)],
        stride in prop_oneof![2 => Just(1u32), 1 => Just(1 << 20)],
        // Rows that are loaded one by one first, and together then.
        (alone, together) in (0usize..30, 1usize..40),
    ) {
        let (mut index, mut model, mut main, mut compacted) = (Index::new(), Model::default(), first, 0);
        let mut removed = Vec::new();
        for step in steps {
            match step {
                Step::Txn(changes) => {
                    main += 1;
                    for (sub, (key, put)) in changes.into_iter().enumerate() {
                        let (key, at) = (name(key), Revision::new(main, sub as u32 * stride));
                        if put {
                            prop_assert_eq!(index.put(&key, at), model.put(&key, at));
                        } else {
                            prop_assert_eq!(index.tombstone(&key, at), model.tombstone(&key, at));
                        }
                    }
                }
                Step::Sweep { back, budget } => {
                    compacted = compacted.max(main.saturating_sub(back));
                    let already = removed.len();
                    let mut swept = Swept::More;
                    for _ in 0..=back {
                        swept = index.sweep(compacted, budget, &mut removed);
                    }
                    prop_assert!(removed.len() - already <= budget * (back as usize + 1));
                    // Half-way through, and at the end, reads answer the same.
                    check_partial(&index, &model, compacted, main);
                    while swept == Swept::More {
                        swept = index.sweep(compacted, budget, &mut removed);
                    }
                    let got: BTreeSet<_> = removed[already..].iter().copied().collect();
                    prop_assert_eq!(got.len(), removed.len() - already, "removed once");
                    prop_assert_eq!(got, model.compact(compacted));
                    prop_assert!(!index.has_garbage(compacted));
                }
            }
        }
        let from = compacted.max(main.saturating_sub(70));
        check_reads(&index, &model, from, main);
        // What survives builds the same index again, however it is cut.
        let (mut loader, mut batch) = (Loader::new(), Batch::default());
        let rows = model.rows.iter().filter(|(at, _)| !model.gone.contains(at));
        for (nth, (at, (key, row))) in rows.enumerate() {
            let row = row.map_or(Row::Tombstone, |(created, version)| Row::Put { created, version });
            if nth < alone {
                loader.row(key, *at, row).unwrap();
                continue;
            }
            batch.row(key, *at, row).unwrap();
            if batch.len() == together {
                loader.batch(&mut batch).unwrap();
            }
        }
        loader.batch(&mut batch).unwrap();
        let mut loaded = loader.finish();
        check_reads(&loaded, &model, from, main);
        let stats = (loaded.stats().keys, loaded.stats().live);
        prop_assert_eq!(stats, (index.stats().keys, index.stats().live));
        let (mut a, mut b) = (Vec::new(), Vec::new());
        index.sweep(main, usize::MAX / 2, &mut a);
        loaded.sweep(main, usize::MAX / 2, &mut b);
        a.sort_unstable();
        b.sort_unstable();
        prop_assert_eq!(a, b);
    }
}

fn check_partial(index: &Index, model: &Model, from: u64, newest: u64) {
    for at in [from, newest] {
        assert_eq!(walked(index, KeyRange::ALL, at, usize::MAX, true), model.live(KeyRange::ALL, at));
        assert_eq!(index.count(KeyRange::ALL, at), model.live(KeyRange::ALL, at).len() as u64);
    }
}

/// CMP-5: one key's history, compacted at every revision.
#[test]
fn compaction_keeps_what_etcd_keeps() {
    let history = [
        (2, 0, true),
        (4, 0, true),
        (6, 0, false),
        (8, 0, true),
        (10, 0, true),
        (12, 0, false),
        (14, 0, true),
        (15, 1, true),
        (16, 0, false),
    ];
    let kept: [(u64, Option<(u64, u32)>); 17] = [
        (1, None),
        (2, Some((2, 0))),
        (3, Some((2, 0))),
        (4, Some((4, 0))),
        (5, Some((4, 0))),
        (6, Some((6, 0))),
        (7, None),
        (8, Some((8, 0))),
        (9, Some((8, 0))),
        (10, Some((10, 0))),
        (11, Some((10, 0))),
        (12, Some((12, 0))),
        (13, None),
        (14, Some((14, 0))),
        (15, Some((15, 1))),
        (16, Some((16, 0))),
        (17, None),
    ];
    for (upto, want) in kept {
        let mut index = Index::new();
        for (main, sub, put) in history {
            let at = Revision::new(main, sub);
            if put {
                index.put(b"foo", at);
            } else {
                index.tombstone(b"foo", at);
            }
        }
        let mut removed = Vec::new();
        assert_eq!(index.sweep(upto, 100, &mut removed), Swept::Done);
        let below = history.iter().map(|(main, sub, _)| Revision::new(*main, *sub)).filter(|at| at.main <= upto);
        let survivors: Vec<_> = below.filter(|at| !removed.contains(at)).collect();
        let want: Vec<_> = want.map(|(main, sub)| Revision::new(main, sub)).into_iter().collect();
        assert_eq!(survivors, want, "compacted at {upto}");
        assert_eq!(index.stats().keys, u64::from(upto != 17));
    }
}

/// TXN-24: what etcd loses. A key deleted and put again under one main survives compaction there.
#[test]
fn a_delete_and_a_put_under_one_main_keep_the_put() {
    let mut index = Index::new();
    index.put(b"k", Revision::new(2, 0));
    index.tombstone(b"k", Revision::new(3, 0));
    let life = index.put(b"k", Revision::new(3, 1));
    assert_eq!((life.created, life.version), (3, 1));
    let mut removed = Vec::new();
    index.sweep(3, 10, &mut removed);
    assert_eq!(removed, [Revision::new(2, 0), Revision::new(3, 0)]);
    assert_eq!(index.get(b"k", 3), Some(Hit { modified: Revision::new(3, 1), life: Some(life) }));
}

/// Keys of an index that is large; Miri has less time.
const KEYS: u64 = if cfg!(miri) { 120 } else { 20_000 };

/// The count, a few keys at a time.
fn counted_in_parts(index: &Index, range: KeyRange<'_>, at: u64) -> u64 {
    let (mut count, mut resume) = index.count_some(range, at, 3);
    while let Some(start) = resume {
        let (more, next) = index.count_some(KeyRange { start: &start, ..range }, at, 3);
        assert!(next.as_ref().is_none_or(|next| *next > start), "each part gets on");
        (count, resume) = (count + more, next);
    }
    count
}

/// B4.
#[test]
fn counts_and_limits_cost_what_they_return() {
    let mut index = Index::new();
    let key = |at: u64| format!("k{:06}", at * 7919 % KEYS).into_bytes();
    for at in 0..KEYS {
        index.put(&key(at), Revision::new(at + 2, 0));
    }
    let cost = |run: &mut dyn FnMut()| {
        VISITED.with(|count| count.set(0));
        run();
        VISITED.with(std::cell::Cell::get)
    };
    let (start, end) = (format!("k{:06}", KEYS / 20), format!("k{:06}", KEYS / 20 * 19));
    let range = KeyRange { start: start.as_bytes(), end: Some(end.as_bytes()) };
    let counted = cost(&mut || assert_eq!(index.count(range, u64::MAX), KEYS / 10 * 9));
    // The test tree has a fanout of 4: its paths are some ten nodes deep.
    assert!(counted <= 2 * 4 * 14, "{counted} nodes for a count");
    let limited = cost(&mut || assert_eq!(walked(&index, range, u64::MAX, 20, true).len(), 20));
    assert!(limited <= 14 + 2 * 20, "{limited} nodes for 20 keys");
    // Ten keys born since: a count at the revision before looks into their paths only.
    for at in 0..10 {
        index.put(format!("k{:06}x", KEYS / 14 * at).as_bytes(), Revision::new(30_000 + at, 0));
    }
    let older = cost(&mut || assert_eq!(index.count(KeyRange::ALL, 29_999), KEYS));
    assert!(older <= 10 * 4 * 14, "{older} nodes for an old count");
    let overwritten = index.count(KeyRange::ALL, u64::MAX);
    index.put(&key(5), Revision::new(40_000, 0));
    assert_eq!(index.count(KeyRange::ALL, u64::MAX), overwritten);
}

/// WCH-29: what it costs to find what changed.
#[test]
fn changes_cost_what_changed() {
    let mut index = Index::new();
    let key = |at: u64| format!("k{at:06}").into_bytes();
    for at in 0..KEYS {
        index.put(&key(at), Revision::new(at + 2, 0));
    }
    for at in 0..100 {
        index.put(&key(7), Revision::new(30_000 + at, 0));
        index.put(&key(KEYS - 50), Revision::new(40_000 + at, 0));
    }
    let cost = |range, from| {
        let (mut budget, mut found) = (1_000_000, 0);
        assert_eq!(index.changes(range, None, (from, u64::MAX), &mut budget, &mut |_| found += 1), None);
        (found, 1_000_000 - budget)
    };
    let (found, cost_of_two) = cost(KeyRange::ALL, 30_000);
    assert!(found == 200 && cost_of_two <= 200 + 2 * 4, "{cost_of_two} looks for the history of two keys in {KEYS}");
    let one = KeyRange { start: b"k000007", end: Some(b"k000007\0") };
    let (found, cost_of_one) = cost(one, 30_050);
    assert!(found == 50 && cost_of_one <= 52, "{cost_of_one} looks for 50 revisions of one key");
}

#[test]
fn rows_out_of_order_are_refused() {
    let mut loader = Loader::new();
    loader.base(b"a", Revision::new(5, 0), Row::Put { created: 5, version: 1 }).unwrap();
    assert!(loader.base(b"a", Revision::new(6, 0), Row::Tombstone).is_err());
    let error = loader.row(b"b", Revision::new(4, 0), Row::Tombstone).unwrap_err();
    assert_eq!(error.to_string(), "the row at revision 4.0 is out of order");
    assert!(loader.row(b"b", Revision::new(7, 0), Row::Put { created: 8, version: 1 }).is_err());
    assert!(loader.row(b"b", Revision::new(8, 0), Row::Put { created: 8, version: 0 }).is_err());
}
