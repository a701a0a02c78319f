//! Rules of the workspace that no compiler checks.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The modules of a crate in the order of its `mod` lines.
fn modules(lib: &str) -> Vec<String> {
    let name = |line: &str| {
        let rest = line.strip_prefix("pub mod ").or_else(|| line.strip_prefix("mod "))?;
        Some(rest.strip_suffix(';')?.to_owned())
    };
    lib.lines().filter_map(name).collect()
}

fn files(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, out);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            out.push(path);
        }
    }
}

/// Production code: what stands before the tests of a file.
fn production(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod ").next().unwrap_or(text)
}

#[test]
fn a_file_imports_only_from_lines_above_it() {
    for name in ["engine", "index", "mvcc", "frontend"] {
        let source = root().join(name).join("src");
        let order = modules(&fs::read_to_string(source.join("lib.rs")).unwrap());
        assert!(order.len() > 4, "{name}");
        let mut all = Vec::new();
        files(&source, &mut all);
        for file in all.into_iter().filter(|file| !file.ends_with("tests.rs")) {
            let relative = file.strip_prefix(&source).unwrap().to_string_lossy().into_owned();
            let own = relative.split(['/', '.']).next().unwrap().to_owned();
            let Some(at) = order.iter().position(|module| *module == own) else { continue };
            let text = fs::read_to_string(&file).unwrap();
            for line in production(&text).lines() {
                let Some(rest) = line.trim().strip_prefix("use crate::") else { continue };
                let used = rest.split("::").next().unwrap().trim_end_matches(';');
                let place = order.iter().position(|module| module == used);
                assert!(
                    place.is_none_or(|place| place <= at),
                    "{name}/src/{relative} imports {used}, which is below it"
                );
            }
        }
    }
}

#[test]
fn unsafe_code_lives_in_one_small_file() {
    let mut all = Vec::new();
    for name in ["engine", "index", "mvcc", "frontend", "benches"] {
        files(&root().join(name).join("src"), &mut all);
    }
    for file in all {
        let text = fs::read_to_string(&file).unwrap();
        let uses =
            text.lines().filter(|line| line.trim_start().starts_with("unsafe ") || line.contains(" unsafe {")).count();
        let allowed = file.ends_with("engine/src/disk/os.rs");
        assert!(uses == 0 || (allowed && uses < 10), "{}: {uses} unsafe blocks", file.display());
    }
}

#[test]
fn rooms_do_not_know_what_is_above_them() {
    for (name, foreign) in
        [("engine", "polybolt_index"), ("index", "polybolt_engine"), ("mvcc", "tokio"), ("engine", "tokio")]
    {
        let mut all = Vec::new();
        files(&root().join(name).join("src"), &mut all);
        for file in all {
            assert!(
                !fs::read_to_string(&file).unwrap().contains(&format!("{foreign}::")),
                "{} uses {foreign}",
                file.display()
            );
        }
    }
}
