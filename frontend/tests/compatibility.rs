//! `docs/compatibility.md`: no rule is left out, and the tests that it names are there.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The areas of the contract, and how many rules each has.
const AREAS: [(&str, u32); 19] = [
    ("REV", 17),
    ("RNG", 24),
    ("RST", 9),
    ("PUT", 8),
    ("DEL", 7),
    ("TXN", 24),
    ("CMP", 18),
    ("HSH", 12),
    ("WCH", 34),
    ("LSE", 19),
    ("BKE", 12),
    ("QTA", 8),
    ("IDX", 8),
    ("SRV", 11),
    ("MNT", 11),
    ("CLU", 3),
    ("AUTH", 8),
    ("HTTP", 5),
    ("GW", 5),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The rules of a cell such as `HSH-1..5, HSH-8`.
fn rules(cell: &str) -> BTreeSet<(String, u32)> {
    let mut rules = BTreeSet::new();
    for part in cell.split(',').map(str::trim) {
        let (area, numbers) = part.split_once('-').unwrap_or_else(|| panic!("{part} is no rule"));
        let (first, last) = numbers.split_once("..").unwrap_or((numbers, numbers));
        for number in first.parse().unwrap()..=last.parse().unwrap() {
            rules.insert((area.to_owned(), number));
        }
    }
    rules
}

fn sources(dir: &Path, all: &mut String) {
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, all);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            all.push_str(&std::fs::read_to_string(path).unwrap());
        }
    }
}

#[test]
fn every_rule_has_a_line_and_every_test_is_there() {
    let text = std::fs::read_to_string(root().join("docs/compatibility.md")).unwrap();
    let mut code = String::new();
    for package in ["index", "mvcc", "frontend"] {
        for dir in ["src", "tests"].map(|dir| root().join(package).join(dir)) {
            if dir.exists() {
                sources(&dir, &mut code);
            }
        }
    }
    let mut lines: BTreeMap<(String, u32), u32> = BTreeMap::new();
    // `HSH-1..5, HSH-8`, and no words.
    let is_rule = |cell: &str| {
        cell.split(',').all(|part| {
            part.trim().split_once('-').is_some_and(|(area, numbers)| {
                AREAS.iter().any(|(known, _)| *known == area)
                    && numbers.chars().all(|character| character.is_ascii_digit() || character == '.')
            })
        })
    };
    for line in text.lines().filter(|line| line.starts_with('|')) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        if !is_rule(cells[0]) {
            continue;
        }
        for rule in rules(cells[0]) {
            *lines.entry(rule).or_default() += 1;
        }
        if let [_, _, tests] = cells[..] {
            let names: Vec<&str> = tests.split_whitespace().map(|name| name.trim_matches('`')).collect();
            assert!(!names.is_empty(), "{line}");
            for name in names {
                assert!(code.contains(&format!("fn {name}(")), "{name} is not a test");
            }
        }
    }
    for (area, count) in AREAS {
        for number in 1..=count {
            let found = lines.get(&(area.to_owned(), number)).copied().unwrap_or(0);
            assert_eq!(found, 1, "lines of {area}-{number}");
        }
    }
}
