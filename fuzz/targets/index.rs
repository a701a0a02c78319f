//! Puts, deletes, sweeps and reads at any revision, against a list of everything that ever happened.
#![no_main]

use libfuzzer_sys::fuzz_target;
use polybolt_index::{Index, KeyRange, Revision, Swept};
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// (main, created, version); version 0 is a tombstone.
type History = Vec<(u64, u64, u64)>;

fn at(history: &History, main: u64) -> Option<(u64, u64, u64)> {
    history.iter().rev().find(|row| row.0 <= main).copied().filter(|row| row.2 > 0)
}

fuzz_target!(|input: Vec<(u8, u8)>| {
    let mut index = Index::new();
    let mut model: BTreeMap<Vec<u8>, History> = BTreeMap::new();
    let (mut main, mut floor) = (1, 0);
    for (operation, argument) in input {
        let key = vec![b'k', argument % 23, argument % 3];
        match operation % 8 {
            0..4 => {
                main += 1;
                let hit = index.put(&key, Revision::new(main, 0));
                let history = model.entry(key).or_default();
                let (created, version) = at(history, main).map_or((main, 1), |row| (row.1, row.2 + 1));
                assert_eq!((hit.created, hit.version), (created, version));
                history.push((main, created, version));
            }
            4 => {
                let history = model.entry(key.clone()).or_default();
                if at(history, main).is_some() {
                    main += 1;
                    assert!(index.tombstone(&key, Revision::new(main, 0)).is_some());
                    history.push((main, 0, 0));
                } else {
                    assert!(index.latest(&key).is_none());
                }
            }
            5 => {
                floor = floor.max(main.saturating_sub(u64::from(argument) % 20));
                let mut removed = Vec::new();
                while index.sweep(floor, 1 + usize::from(argument % 5), &mut removed) != Swept::Done {}
                assert!(removed.iter().all(|row| row.main <= floor));
            }
            _ => {
                let revision = (floor + u64::from(argument)).min(main + 1);
                let (start, end) = (vec![b'k', argument % 7], vec![b'k', argument % 7 + argument % 19]);
                let range = KeyRange { start: &start, end: Some(&end) };
                let mut found = Vec::new();
                index.walk(range, revision, &mut |key, hit| {
                    found.push((key.to_vec(), hit.modified.main, hit.created, hit.version));
                    ControlFlow::Continue(())
                });
                let wanted: Vec<_> = model
                    .iter()
                    .filter(|(key, _)| **key >= start && **key < end)
                    .filter_map(|(key, history)| at(history, revision).map(|row| (key.clone(), row.0, row.1, row.2)))
                    .collect();
                assert_eq!(found, wanted);
                assert_eq!(index.count(range, revision), wanted.len() as u64);
            }
        }
    }
});
