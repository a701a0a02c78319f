//! A data directory as it lies there, without being opened: what `check` looks at and salvage takes from.
//!
//! Journal records are held in memory, as an overlay over each tree: nothing is written.

use crate::error::Result;
use crate::record::{Record, State};
use crate::routes::Routes;
use crate::row::RowHead;
use bytes::Bytes;
use polybolt_engine::check::{Check, JournalReport, Met, TreeReport};
use polybolt_engine::disk::Disk;
use polybolt_engine::ids::PagePtr;
use polybolt_engine::manifest::SpaceEntry;
use polybolt_engine::{Damage, Edit, Finding, Findings, Place, TreeEdit, TreeId, TreeSpec};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How far a long command is.
#[derive(Debug, Clone, Copy)]
pub enum Progress<'a> {
    /// So many bytes there are to read.
    Total(u64),
    /// This is read now.
    At(&'a str),
    /// So many bytes more were read.
    Bytes(u64),
}

/// A data directory.
pub(crate) struct Survey {
    pub(crate) check: Check,
    pub(crate) spaces: Vec<Space>,
    pub(crate) journal: JournalReport,
}

/// A keyspace in it.
pub(crate) struct Space {
    pub(crate) entry: SpaceEntry,
    /// None if they cannot be decoded.
    pub(crate) routes: Option<Routes>,
    /// As of the last record; None if it cannot be decoded.
    pub(crate) state: Option<State>,
    overlay: HashMap<TreeId, BTreeMap<Bytes, Option<(Bytes, Bytes)>>>,
    /// Gaps of the journal before its last record.
    gaps: usize,
    /// Mains that may be gone with groups of the journal: from, and behind the last.
    pub(crate) gone: Vec<(u64, Option<u64>)>,
}

/// What is met in a tree with its overlay, ascending.
pub(crate) enum Seen<'a> {
    /// An entry, and its leaf if it is not from the journal. The body is None if it is lost.
    Entry { leaf: Option<PagePtr>, key: &'a [u8], head: &'a [u8], body: Option<Bytes> },
    /// Entries in a range of keys are lost with a page.
    Lost { ptr: PagePtr, low: &'a [u8], high: Option<&'a [u8]> },
}

type Visit<'a> = &'a mut dyn FnMut(Seen<'_>, &mut Findings);

/// An entry that the journal has, if it was not removed.
fn show(key: &[u8], edit: &Option<(Bytes, Bytes)>, each: Visit<'_>, findings: &mut Findings) {
    if let Some((head, body)) = edit {
        each(Seen::Entry { leaf: None, key, head, body: Some(body.clone()) }, findings);
    }
}

impl Survey {
    /// Reads the manifest and the journal.
    pub(crate) fn begin(
        disk: Arc<dyn Disk>,
        path: &Path,
        findings_max: usize,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Survey> {
        let mut check = Check::begin(disk, path, findings_max)?;
        progress(Progress::Total(check.bytes()));
        check.files()?;
        let mut spaces = Vec::new();
        for entry in check.manifest().map(|manifest| manifest.spaces.clone()).unwrap_or_default() {
            spaces.push(Space::new(entry, path, &mut check.findings));
        }
        progress(Progress::At("journal"));
        let journal = check.journal(
            &mut |gaps, position, id, record| {
                let space = spaces.iter_mut().find(|space| space.entry.id == id);
                match space.filter(|space| space.entry.replayed_to < position) {
                    Some(space) => space.replay(gaps, record),
                    None => Ok(()),
                }
            },
            &mut |bytes| progress(Progress::Bytes(bytes)),
        );
        Ok(Survey { check, spaces, journal })
    }

    /// How many records of a keyspace may be gone behind its last one: each has one main at most.
    pub(crate) fn lost_behind(&self, space: usize) -> u64 {
        let gaps = self.journal.gaps.iter().skip(self.spaces[space].gaps);
        gaps.map(|gap| gap.last.0 + 1 - gap.first.0).sum()
    }

    /// The path of a tree's file.
    pub(crate) fn tree_path(&self, space: usize, tree: usize) -> PathBuf {
        let entry = &self.spaces[space].entry;
        self.check.tree_path(&entry.name, &entry.trees[tree])
    }

    /// Shows all entries of a tree, with what the journal makes of them.
    pub(crate) fn tree(
        &mut self,
        space: usize,
        tree: usize,
        each: Visit<'_>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> TreeReport {
        let Survey { check, spaces, .. } = self;
        let space = &spaces[space];
        let entry = &space.entry.trees[tree];
        progress(Progress::At(&format!("{}.{}", space.entry.name, entry.spec.name)));
        let nothing = BTreeMap::new();
        let overlay = space.overlay.get(&entry.id).unwrap_or(&nothing);
        let mut rest = overlay.iter().peekable();
        let report = check.tree(
            &space.entry,
            entry,
            &mut |met, findings| {
                let low = match &met {
                    Met::Entry { key, .. } => *key,
                    Met::Lost { low, .. } => *low,
                };
                while let Some((key, edit)) = rest.next_if(|(key, _)| &key[..] < low) {
                    show(key, edit, each, findings);
                }
                match met {
                    Met::Entry { leaf, key, head, body } if !overlay.contains_key(key) => {
                        each(Seen::Entry { leaf: Some(leaf), key, head, body }, findings);
                    }
                    Met::Entry { .. } => {}
                    Met::Lost { ptr, low, high } => each(Seen::Lost { ptr, low, high }, findings),
                }
            },
            &mut |bytes| progress(Progress::Bytes(bytes)),
        );
        for (key, edit) in rest {
            show(key, edit, each, &mut check.findings);
        }
        report
    }
}

impl Space {
    fn new(entry: SpaceEntry, path: &Path, findings: &mut Findings) -> Self {
        let specs: Vec<TreeSpec> = entry.trees.iter().map(|tree| tree.spec.clone()).collect();
        let mut bad = |damage| findings.push(of_state(&entry, path, &damage));
        let routes = Routes::decode(&entry.config, &specs).map_err(&mut bad).ok();
        let state = State::decode(&entry.state).map_err(&mut bad).ok();
        if let (Some(routes), Some(state)) = (&routes, &state) {
            let shards = routes.shards().len();
            if entry.trees.len() != shards + 1 {
                let (expected, found) = (shards as u64 + 1, entry.trees.len() as u64);
                bad(Damage::Mismatch { field: "count of trees", expected, found });
                return Space { entry, routes: None, state: None, overlay: HashMap::new(), gaps: 0, gone: Vec::new() };
            }
            if state.floors.len() != shards {
                let (expected, found) = (shards as u64, state.floors.len() as u64);
                bad(Damage::Mismatch { field: "count of floors", expected, found });
            }
            if state.compacted > state.main.cast_signed() {
                bad(Damage::Malformed { what: "it is compacted above its revision" });
            }
        }
        Space { entry, routes, state, overlay: HashMap::new(), gaps: 0, gone: Vec::new() }
    }

    fn replay(&mut self, gaps: usize, record: &[u8]) -> polybolt_engine::Result<()> {
        let (Some(routes), Some(state)) = (&self.routes, &mut self.state) else { return Ok(()) };
        let name = format!("a record of keyspace {:?}", self.entry.name);
        let damaged = |damage| polybolt_engine::Error::corrupt(Path::new(&name), Place::File, damage);
        let record = Record::decode(record).map_err(damaged)?;
        let trees: Vec<TreeId> = self.entry.trees.iter().map(|tree| tree.id).collect();
        if gaps == self.gaps && !record.follows(state.history) {
            return Err(damaged(Damage::Malformed { what: "it does not follow from the history before it" }));
        }
        if gaps > self.gaps {
            self.gone.push((state.main + 1, Some(record.head.main)));
        }
        self.gaps = gaps;
        let head = record.head.clone();
        for TreeEdit { tree, key, edit } in record.edits(routes, &trees).map_err(damaged)? {
            let edit = match edit {
                Edit::Put { head, body } => Some((head, body)),
                Edit::Remove => None,
            };
            self.overlay.entry(tree).or_default().insert(key, edit);
        }
        state.follow(&head).map_err(damaged)?;
        Ok(())
    }

    /// What the journal has for a tree, by key.
    pub(crate) fn has_in_journal(&self, tree: usize, key: &[u8]) -> bool {
        self.overlay.get(&self.entry.trees[tree].id).is_some_and(|overlay| overlay.contains_key(key))
    }
}

/// Damage of a keyspace's state or routes.
pub(crate) fn of_state(entry: &SpaceEntry, path: &Path, damage: &Damage) -> Finding {
    let mut finding = Finding::damage(path, Place::File, damage);
    finding.what = format!("the state of keyspace {:?}: {}", entry.name, finding.what);
    finding
}

/// The key of a row; None if it is in a body that is lost.
pub(crate) fn row_key_of<'a>(row: &RowHead<'a>, body: Option<&'a Bytes>) -> Result<Option<&'a [u8]>, Damage> {
    match (row.key, body) {
        (Some(key), _) => Ok(Some(key)),
        (None, Some(body)) => row.key_in(body).map(Some),
        (None, None) => Ok(None),
    }
}
