//! The offline check of a data directory: everything that is wrong with it, and nothing changed.
//!
//! The engine's check reads pages and groups; here is what they mean: rows against routes, the lives and
//! versions of keys, leases, and the state of each keyspace.

use crate::error::Result;
use crate::meta::{self, MetaEntry};
use crate::request::KeyValue;
use crate::row::{self, RowHead};
use crate::survey::{self, Progress, Seen, Survey};
use bytes::Bytes;
use polybolt_engine::check::JournalReport;
use polybolt_engine::disk::Disk;
use polybolt_engine::disk::os::OsDisk;
use polybolt_engine::ids::PagePtr;
use polybolt_engine::{Damage, Finding, Findings, Place, Severity};
use polybolt_index::Revision;
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The most findings that a report lists.
pub const FINDINGS_MAX: usize = 1000;

/// What a check found and what it looked at.
#[derive(Debug, Clone, Default)]
pub struct CheckReport {
    /// All that is wrong, at most [`FINDINGS_MAX`] of it listed.
    pub findings: Findings,
    /// Keyspaces.
    pub keyspaces: u64,
    /// Trees.
    pub trees: u64,
    /// Pages, branches and leaves.
    pub pages: u64,
    /// Overflow extents.
    pub extents: u64,
    /// Rows, with those that only the journal has.
    pub rows: u64,
    /// Live keys.
    pub keys: u64,
    /// Leases.
    pub leases: u64,
    /// Bytes of tree files.
    pub bytes: u64,
    /// Bytes of them that hold nothing.
    pub free: u64,
    /// The journal, and what opening would replay of it.
    pub journal: JournalReport,
}

/// Checks a data directory that no process has open. Writes nothing but its own process id into `LOCK`.
/// Memory: about that of the indexes of the largest shard, and of the journal's records that are not in the
/// tree files yet.
///
/// # Errors
/// If it cannot be checked: it is locked, no store, of another version, or cannot be listed. Damage is no
/// error but a finding.
pub fn check(path: impl AsRef<Path>, progress: &mut dyn FnMut(Progress<'_>)) -> Result<CheckReport> {
    check_on(Arc::new(OsDisk::default()), path.as_ref(), progress)
}

/// [`check`] on a disk of the caller's.
///
/// # Errors
/// As [`check`].
pub fn check_on(disk: Arc<dyn Disk>, path: &Path, progress: &mut dyn FnMut(Progress<'_>)) -> Result<CheckReport> {
    let mut survey = Survey::begin(disk, path, FINDINGS_MAX, progress)?;
    let mut report = CheckReport { keyspaces: survey.spaces.len() as u64, ..CheckReport::default() };
    for space in 0..survey.spaces.len() {
        check_space(&mut survey, space, &mut report, progress);
    }
    report.findings = std::mem::take(&mut survey.check.findings);
    report.journal = survey.journal;
    Ok(report)
}

fn check_space(survey: &mut Survey, space: usize, report: &mut CheckReport, progress: &mut dyn FnMut(Progress<'_>)) {
    let trees = survey.spaces[space].entry.trees.len();
    // The meta tree is the last: leases are known before keys name them.
    let mut leases = BTreeSet::new();
    for tree in (0..trees).rev() {
        let path = survey.tree_path(space, tree);
        let shard = survey.shard(space, tree, &path);
        let found = if tree + 1 == trees {
            let mut each = |seen: Seen<'_>, findings: &mut Findings| check_meta(&path, seen, &mut leases, findings);
            survey.tree(space, tree, &mut each, progress)
        } else {
            let mut rows = Rows { shard, keys: HashMap::new(), rows: 0 };
            let found = survey.tree(space, tree, &mut |seen, findings| rows.see(seen, findings), progress);
            rows.attachments(&leases, &mut survey.check.findings);
            report.rows += rows.rows;
            report.keys += rows.keys.values().filter(|last| last.life.version > 0).count() as u64;
            found
        };
        report.trees += 1;
        report.pages += found.pages;
        report.extents += found.extents;
        report.bytes += found.bytes;
        report.free += found.free;
    }
    report.leases += leases.len() as u64;
}

fn check_meta(path: &Path, seen: Seen<'_>, leases: &mut BTreeSet<i64>, findings: &mut Findings) {
    let Seen::Entry { leaf, key, body: Some(body), .. } = seen else { return };
    match meta::entry(key, &body) {
        Ok(MetaEntry::Lease(id)) => drop(leases.insert(id)),
        Ok(MetaEntry::Table) => {}
        Err(damage) => findings.push(Finding::damage(path, place(leaf), &damage)),
    }
}

fn place(leaf: Option<PagePtr>) -> Place {
    leaf.map_or(Place::File, |leaf| Place::Unit(leaf.unit))
}

/// What rows of a shard are held against.
pub(crate) struct ShardRules {
    pub(crate) path: PathBuf,
    pub(crate) at: usize,
    pub(crate) routes: Option<crate::routes::Routes>,
    /// The newest main.
    pub(crate) main: u64,
    /// Up to here rows may be missing: they were compacted, or are below the floor.
    pub(crate) floor: u64,
}

impl Survey {
    /// The rules of a tree that is a shard.
    pub(crate) fn shard(&self, space: usize, at: usize, path: &Path) -> ShardRules {
        let space = &self.spaces[space];
        let state = space.state.as_ref();
        let compacted = state.map_or(u64::MAX, |state| state.compacted.max(0).cast_unsigned());
        let floor = state.and_then(|state| state.floors.get(at)).copied().unwrap_or(0);
        ShardRules {
            path: path.to_owned(),
            at,
            routes: space.routes.clone(),
            main: state.map_or(u64::MAX, |state| state.main),
            floor: compacted.max(floor),
        }
    }
}

/// A key's newest row so far.
#[derive(Debug, Clone, Copy)]
struct Last {
    life: Life,
    lease: i64,
}

/// Where in the life of its key a row is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Life {
    pub(crate) at: Revision,
    pub(crate) created: u64,
    /// 0 is a tombstone.
    pub(crate) version: u64,
}

impl Life {
    /// Where the row of a key-value is.
    pub(crate) fn of(at: Revision, kv: &KeyValue) -> Self {
        Life { at, created: kv.create_revision.cast_unsigned(), version: kv.version.cast_unsigned() }
    }
}

struct Rows {
    shard: ShardRules,
    keys: HashMap<Bytes, Last>,
    rows: u64,
}

impl Rows {
    fn see(&mut self, seen: Seen<'_>, findings: &mut Findings) {
        match seen {
            Seen::Entry { leaf, key, head, body } => {
                self.rows += 1;
                if let Err((damage, at)) = self.row(key, head, body) {
                    let mut finding = Finding::damage(&self.shard.path, place(leaf), &damage);
                    if let Some(at) = at {
                        finding.what = format!("the row at revision {}.{}: {}", at.main, at.sub, finding.what);
                    }
                    findings.push(finding);
                }
            }
            // What was in it may explain anything that comes after.
            Seen::Lost { .. } => self.shard.floor = u64::MAX,
        }
    }

    fn row(&mut self, tree_key: &[u8], head: &[u8], body: Option<Bytes>) -> Result<(), (Damage, Option<Revision>)> {
        let at = row::row_revision(tree_key).map_err(|damage| (damage, None))?;
        let damaged = |damage| (damage, Some(at));
        let head = Bytes::copy_from_slice(head);
        let row = RowHead::decode(&head).map_err(damaged)?;
        let Some(key) = survey::row_key_of(&row, body.as_ref()).map_err(damaged)? else { return Ok(()) };
        if let Some(body) = &body {
            row::open_row(tree_key, &head, body).map_err(damaged)?;
        }
        let ShardRules { routes, main, floor, .. } = &self.shard;
        let malformed = |what| Err(damaged(Damage::Malformed { what }));
        if routes.as_ref().is_some_and(|routes| routes.shard_of(key) != self.shard.at) {
            return malformed("its key belongs to another shard");
        }
        let lost_body = body.is_none();
        let life = Life { at, created: row.created, version: row.version };
        let wrong = if at.main > *main {
            Some("it is above the keyspace's revision")
        } else {
            wrong(self.keys.get(key).map(|last| last.life), life, *floor)
        };
        self.keys.insert(Bytes::copy_from_slice(key), Last { life, lease: row.lease });
        match wrong {
            Some(what) if !lost_body => malformed(what),
            _ => Ok(()),
        }
    }

    /// A key whose lease is gone is attached to none (LSE-15), and never expires.
    fn attachments(&self, leases: &BTreeSet<i64>, findings: &mut Findings) {
        let mut gone: Vec<(i64, &Bytes)> = Vec::new();
        for (key, last) in &self.keys {
            if last.life.version > 0 && last.lease != 0 && !leases.contains(&last.lease) {
                gone.push((last.lease, key));
            }
        }
        gone.sort_unstable();
        for (lease, key) in gone {
            let what = format!("key {:?} names lease {lease:x}, which is not there", String::from_utf8_lossy(key));
            findings.push(Finding::new(Severity::Note, &self.shard.path, Place::File, what));
        }
    }
}

/// Why a row cannot come after what its key was before. Rows up to `floor` may be missing.
pub(crate) fn wrong(before: Option<Life>, row: Life, floor: u64) -> Option<&'static str> {
    let Life { at, created, version } = row;
    let gaps = at.main <= floor;
    if version == 0 {
        let live = before.is_some_and(|before| before.version > 0);
        return (!live && !gaps).then_some("it deletes a key that is not there");
    }
    if created > at.main {
        return Some("it was created after itself");
    }
    if version == 1 && created != at.main {
        return Some("it is the first of its key and was created before");
    }
    let follows = match before {
        None => version == 1 || gaps,
        Some(before) if before.version > 0 && created == before.created => {
            version == before.version + 1 || (gaps && version > before.version)
        }
        // A txn may delete a key and put it again.
        Some(before) if before.version == 0 => created >= before.at.main && (version == 1 || gaps),
        Some(before) => created > before.at.main && gaps,
    };
    (!follows).then_some("its version does not follow from the key's row before")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(main: u64, created: u64, version: u64) -> Life {
        Life { at: Revision::new(main, 0), created, version }
    }

    #[test]
    fn versions_follow_from_each_other_but_for_what_was_compacted() {
        assert_eq!(wrong(None, row(5, 5, 1), 0), None);
        assert_eq!(wrong(Some(row(5, 5, 1)), row(7, 5, 2), 0), None);
        assert_eq!(wrong(Some(row(7, 5, 2)), row(8, 0, 0), 0), None);
        assert_eq!(wrong(Some(row(8, 0, 0)), row(9, 9, 1), 0), None);
        assert_eq!(wrong(Some(row(8, 0, 0)), Life { at: Revision::new(8, 1), ..row(8, 8, 1) }, 0), None);
        for (before, after) in [
            (None, row(5, 3, 2)),
            (None, row(5, 0, 0)),
            (Some(row(5, 5, 1)), row(7, 5, 3)),
            (Some(row(8, 0, 0)), row(9, 7, 3)),
            (Some(row(8, 0, 0)), row(9, 0, 0)),
            (Some(row(5, 5, 1)), row(9, 9, 1)),
        ] {
            let grave = before.filter(|before| before.version == 0 && after.version > 0);
            let is_late = grave.is_some_and(|before| after.created < before.at.main);
            assert!(wrong(before, after, 0).is_some(), "{before:?} {after:?}");
            assert_eq!(wrong(before, after, 9).is_some(), is_late, "{before:?} {after:?}");
        }
        assert!(wrong(Some(row(5, 5, 2)), row(7, 5, 2), 9).is_some());
        assert!(wrong(None, row(5, 6, 2), 9).is_some());
        assert!(wrong(None, row(5, 4, 1), 9).is_some());
    }
}
