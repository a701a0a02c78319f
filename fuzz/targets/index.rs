//! Puts, deletes, sweeps and reads at any revision, against a list of everything that ever happened.
//!
//! Input: operations, each a byte and two that its key is made of.
#![no_main]

use libfuzzer_sys::fuzz_target;
use polybolt_index::{Hit, Index, KeyRange, Life, Revision, Swept};
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// (main, created, version); version 0 is a tombstone.
type Row = (u64, u64, u64);
type Model = BTreeMap<Vec<u8>, Vec<Row>>;

/// How far the next revision is from the last one; numbers that are far apart are stored otherwise.
const STEPS: [u64; 8] = [1, 1, 1, 1, 2, 300, 1 << 20, 1 << 34];
/// What keys share at their fronts.
const PREFIXES: [usize; 5] = [0, 1, 7, 40, 300];

fn at(history: &[Row], main: u64) -> Option<Row> {
    history.iter().rev().find(|row| row.0 <= main).copied().filter(|row| row.2 > 0)
}

fn key(a: u8, b: u8) -> Vec<u8> {
    let mut key = vec![b'k'; PREFIXES[usize::from(b) % PREFIXES.len()]];
    key.extend_from_slice(&[a % 64, b / 5 % 8]);
    key
}

/// A hit is that row of the history, and knows its life unless there is a newer row.
fn check(hit: Hit, history: &[Row], row: Row) {
    assert_eq!(hit.modified.main, row.0);
    match hit.life {
        Some(life) => assert_eq!((life.created, life.version), (row.1, row.2)),
        None => assert!(history.last().is_some_and(|last| last.0 > row.0), "the newest row knows its life"),
    }
}

fn read(index: &Index, model: &Model, revision: u64, start: &[u8], end: &[u8]) {
    let range = KeyRange { start, end: Some(end) };
    let mut wanted: Vec<(&Vec<u8>, &Vec<Row>, Row)> = Vec::new();
    for (key, history) in model.iter().filter(|(key, _)| key[..] >= *start && key[..] < *end) {
        wanted.extend(at(history, revision).map(|row| (key, history, row)));
        assert_eq!(index.get(key, revision).map(|hit| hit.modified.main), at(history, revision).map(|row| row.0));
    }
    let (mut found, mut back) = (Vec::new(), Vec::new());
    index.walk(range, revision, &mut |key, hit| {
        found.push((key.to_vec(), hit));
        ControlFlow::Continue(())
    });
    index.walk_back(range, revision, &mut |key, hit| {
        back.push((key.to_vec(), hit));
        ControlFlow::Continue(())
    });
    assert_eq!((found.len(), back.len()), (wanted.len(), wanted.len()));
    for ((key, hit), (wanted, history, row)) in found.iter().zip(&wanted).chain(back.iter().rev().zip(&wanted)) {
        assert_eq!(key, *wanted);
        check(*hit, history, *row);
    }
    assert_eq!(index.count(range, revision), wanted.len() as u64);
}

fuzz_target!(|input: &[u8]| {
    let mut index = Index::new();
    let mut model = Model::new();
    let (mut main, mut floor, mut mains) = (1, 0, vec![1]);
    for operation in input.chunks_exact(3) {
        let [operation, a, b] = operation else { unreachable!("three bytes") };
        let (key, step) = (key(*a, *b), STEPS[usize::from(operation / 8) % STEPS.len()]);
        match operation % 8 {
            0..4 => {
                main += step;
                mains.push(main);
                let Life { created, version } = index.put(&key, Revision::new(main, 0));
                let history = model.entry(key).or_default();
                let expected = at(history, main).map_or((main, 1), |row| (row.1, row.2 + 1));
                assert_eq!((created, version), expected);
                history.push((main, created, version));
            }
            4 => {
                let history = model.entry(key.clone()).or_default();
                let Some(row) = at(history, main) else {
                    assert!(index.latest(&key).is_none());
                    continue;
                };
                main += step;
                mains.push(main);
                check(index.tombstone(&key, Revision::new(main, 0)).expect("it is live"), history, row);
                history.push((main, 0, 0));
            }
            5 => {
                floor = floor.max(mains[mains.len() - 1 - usize::from(*a) % mains.len()]);
                let mut removed = Vec::new();
                while index.sweep(floor, 1 + usize::from(b % 5), &mut removed) != Swept::Done {}
                assert!(removed.iter().all(|row| row.main <= floor));
            }
            _ => {
                let revision = mains[mains.len() - 1 - usize::from(*a) % mains.len()].max(floor) + u64::from(b % 2);
                let end = [&key[..], &[b % 64]].concat();
                read(&index, &model, revision, &key, &end);
                read(&index, &model, revision, b"", &key);
            }
        }
    }
    read(&index, &model, main, b"", &[255]);
});
