//! Salvage: what is intact in a damaged data directory, copied into a new one, and a list of what is not.
//!
//! What the newest manifest slot reaches, and what the journal adds, is copied as it is, revision by
//! revision. Around that:
//!
//! - Where a page is lost, the file is searched for intact leaves that nothing leads to. A row found there
//!   with a revision above the compacted one was removed by nobody, since compaction is the only removal: it
//!   is copied, and listed as *recovered*. A row at or below it may have been compacted away, with the
//!   tombstone that hid it: it is *doubtful*, and copied only if asked for.
//! - Groups of the journal that are gone are passed over; the records behind them are whole in themselves.
//! - Where rows are lost, so may be a newer value of any key whose newest surviving row is older, or its
//!   delete. Such keys are kept as they last were and listed as *stale*.
//! - A row that does not follow from what its key was before shows that something in between is gone, though
//!   every page is whole: it counts as a loss. One that nothing can come before is not copied.
//! - A shard that lost something answers from the salvaged revision on only (its floor): an older revision
//!   would lack rows, and a watch from before would miss events.

use crate::check::{self, Life};
use crate::engine::{Engine, Runtime};
use crate::error::{Refusal, Result};
use crate::meta;
use crate::options::Options;
use crate::record::State;
use crate::routes::Routes;
use crate::row::{self, RowHead};
use crate::survey::{Progress, Seen, Survey};
use bytes::Bytes;
use polybolt_engine::check::TreeReport;
use polybolt_engine::disk::Disk;
use polybolt_engine::disk::os::OsDisk;
use polybolt_engine::ids::PagePtr;
use polybolt_engine::run::SystemClock;
use polybolt_engine::{Damage, Edit, Finding, Findings, Place, SpaceInfo, TreeEdit, TreeId};
use polybolt_index::Revision;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The most entries of each of a report's lists.
pub(crate) const LISTED_MAX: usize = 1000;
/// Bytes that go to the new store at a time.
const BATCH_BYTES: usize = 1 << 20;

/// What a salvage took and what it had to leave.
#[derive(Debug, Clone, Default)]
pub struct SalvageReport {
    /// What was wrong with the old store, as far as it was read.
    pub findings: Findings,
    /// Keyspaces that were copied.
    pub keyspaces: Vec<SalvagedKeyspace>,
    /// Names of keyspaces that were not, and why.
    pub left: Vec<(String, String)>,
}

/// What became of one keyspace.
#[derive(Debug, Clone, Default)]
pub struct SalvagedKeyspace {
    /// Its name.
    pub name: String,
    /// Its revision.
    pub revision: i64,
    /// Rows copied.
    pub rows: u64,
    /// Leases and table entries copied.
    pub entries: u64,
    /// What is lost.
    pub losses: List<Loss>,
    /// Rows copied from pages that nothing leads to.
    pub recovered: List<KeyAt>,
    /// Rows in such pages that may have been compacted away; copied only if asked for.
    pub doubtful: List<KeyAt>,
    /// Keys that may have been changed or deleted since the revision that was kept of them.
    pub stale: List<KeyAt>,
}

/// A bounded list, and how many there were.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List<T> {
    /// The first of them.
    pub first: Vec<T>,
    /// How many there are.
    pub count: u64,
}

impl<T> Default for List<T> {
    fn default() -> Self {
        List { first: Vec::new(), count: 0 }
    }
}

impl<T> List<T> {
    fn push(&mut self, item: T) {
        self.count += 1;
        if self.first.len() < LISTED_MAX {
            self.first.push(item);
        }
    }
}

/// A key and a revision.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyAt {
    /// The key.
    pub key: Bytes,
    /// The revision (main).
    pub revision: i64,
}

/// Something that is lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// The file it was in.
    pub file: PathBuf,
    /// Where.
    pub place: Place,
    /// What it was.
    pub what: Lost,
}

/// What is lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lost {
    /// Rows of a shard with revisions from `from` to before `to` (main, sub).
    Revisions {
        /// The first.
        from: (u64, u32),
        /// Behind the last; None is to the end.
        to: Option<(u64, u32)>,
    },
    /// One row.
    Row {
        /// Its key, if it is known.
        key: Bytes,
        /// Its revision (main).
        revision: i64,
    },
    /// Leases and table entries with keys from `from` to before `to`.
    Entries {
        /// The first.
        from: Bytes,
        /// Behind the last; None is to the end.
        to: Option<Bytes>,
    },
    /// Records of the journal, of which keys nobody can tell.
    Records {
        /// How many.
        count: u64,
    },
}

/// Copies what is intact in the data directory `from`, which no process may have open, into a new one `to`,
/// which may not exist or has to be empty. `doubtful` copies doubtful rows too.
///
/// Memory: the keys of the largest shard, the journal's records that are not in the tree files yet, and the
/// rows found where pages are lost.
///
/// # Errors
/// If `from` cannot be read at all (no manifest slot is whole: then nothing says which pages count), or `to`
/// cannot be written. Then what is in `to` is not to be used.
pub fn salvage(
    from: impl AsRef<Path>,
    to: impl AsRef<Path>,
    doubtful: bool,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<SalvageReport> {
    salvage_on(Arc::new(OsDisk::default()), from.as_ref(), to.as_ref(), doubtful, progress)
}

/// [`salvage`] on a disk of the caller's.
///
/// # Errors
/// As [`salvage`].
pub fn salvage_on(
    disk: Arc<dyn Disk>,
    from: &Path,
    to: &Path,
    doubtful: bool,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<SalvageReport> {
    let mut survey = Survey::begin(Arc::clone(&disk), from, check::FINDINGS_MAX, progress)?;
    if survey.check.manifest().is_none() {
        let why = format!("{}: neither manifest slot can be used: nothing says which pages count", from.display());
        return Err(polybolt_engine::Error::Invalid { why }.into());
    }
    let runtime = Runtime { disk, clock: Arc::new(SystemClock::default()), threads: true };
    let engine = Engine::open_with(to, Options::default(), runtime)?;
    if !engine.report().created {
        return Err(Refusal::Invalid { why: format!("{} is a store already", to.display()) }.into());
    }
    let mut report = SalvageReport::default();
    for at in 0..survey.spaces.len() {
        let name = survey.spaces[at].entry.name.clone();
        let why = match (&survey.spaces[at].routes, &survey.spaces[at].state) {
            (_, Some(state)) if state.unfinished => "it was being restored",
            (Some(routes), Some(state)) => {
                let (routes, state) = (elsewhere(routes), state.clone());
                report.keyspaces.push(copy(&mut survey, at, &engine, &routes, state, doubtful, progress)?);
                continue;
            }
            _ => "its state or its routes cannot be understood",
        };
        report.left.push((name, why.to_owned()));
    }
    engine.close()?;
    report.findings = std::mem::take(&mut survey.check.findings);
    Ok(report)
}

/// The same shards, all files in the new directory.
fn elsewhere(routes: &Routes) -> Routes {
    let mut shards = routes.shards().to_vec();
    shards.iter_mut().for_each(|shard| shard.dir = None);
    Routes::new(shards).unwrap_or_else(|_| routes.clone())
}

/// A keyspace on its way into the new store.
struct Target<'a> {
    engine: &'a Engine,
    routes: &'a Routes,
    info: SpaceInfo,
    state: State,
    edits: Vec<TreeEdit>,
    bytes: usize,
}

impl Target<'_> {
    fn put(&mut self, tree: usize, key: &[u8], head: Bytes, body: Bytes) -> Result<()> {
        self.bytes += key.len() + head.len() + body.len();
        let tree: TreeId = self.info.trees[tree].id;
        self.edits.push(TreeEdit { tree, key: Bytes::copy_from_slice(key), edit: Edit::Put { head, body } });
        if self.bytes >= BATCH_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        self.bytes = 0;
        self.engine.raw_batch(&self.info, self.routes, std::mem::take(&mut self.edits), &self.state)
    }
}

fn copy(
    survey: &mut Survey,
    space: usize,
    engine: &Engine,
    routes: &Routes,
    mut state: State,
    doubtful: bool,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<SalvagedKeyspace> {
    let name = survey.spaces[space].entry.name.clone();
    state.floors.resize(routes.shards().len(), state.main);
    // Revisions that were lost with the end of the journal are not used again.
    let lost_behind = survey.lost_behind(space);
    let mut gone = survey.spaces[space].gone.clone();
    if lost_behind > 0 {
        gone.push((state.main + 1, None));
        state.main += lost_behind;
    }
    let clean = survey.check.manifest().is_some_and(|manifest| manifest.clean);
    if !clean && state.reserve > state.main {
        // Anything up to the reserve may have been shown to somebody (R3, R4).
        state.main = state.reserve;
        state.floors.fill(state.main);
    }
    let mut report = SalvagedKeyspace { name: name.clone(), revision: state.main.cast_signed(), ..Default::default() };
    let unfinished = State { unfinished: true, ..state.clone() };
    let info = engine.create_space(&name, routes, unfinished.clone())?;
    let mut target = Target { engine, routes, info, state: unfinished, edits: Vec::new(), bytes: 0 };
    for gap in &survey.journal.gaps {
        let what = Lost::Records { count: gap.last.0 + 1 - gap.first.0 };
        report.losses.push(Loss { file: gap.file.clone(), place: Place::Offset(gap.offset), what });
    }
    let shards = routes.shards().len();
    let mut lossy = !gone.is_empty();
    copy_meta(survey, space, shards, &mut target, &mut report, progress)?;
    for shard in 0..shards {
        let mut copying = Copying {
            file: survey.tree_path(space, shard),
            routes,
            shard,
            sure_above: state.compacted.max(0).cast_unsigned().max(state.floors.get(shard).copied().unwrap_or(0)),
            main: state.main,
            is_sure: state.reserve == 0 && !routes.shards()[shard].volatile,
            doubtful,
            ranges: Vec::new(),
            rows: Vec::new(),
            newest: HashMap::new(),
            follows: gone.is_empty(),
            found_again: false,
            taken: 0,
            report: &mut report,
            target: &mut target,
            failed: None,
        };
        let found = survey.tree(space, shard, &mut |seen, findings| copying.see(seen, findings), progress);
        copying.search(survey, space, &found)?;
        let lost_none = copying.ranges.is_empty() && copying.rows.is_empty();
        let (follows, found_again, floor) = (copying.follows, copying.found_again, copying.sure_above);
        copying.stale(&gone);
        let mut is_whole = lost_none && follows;
        if is_whole && found_again {
            // That nothing is missing was by a count, which may be damaged too.
            target.flush()?;
            is_whole = engine.rows_follow(target.info.trees[shard].id, floor)?;
        }
        if !is_whole {
            lossy = true;
            if let Some(floor) = state.floors.get_mut(shard) {
                *floor = state.main;
            }
        }
    }
    if lossy {
        // It is a hash over what is no longer all there.
        state.history = 0;
    }
    target.flush()?;
    target.state = engine.reserved(routes, state);
    target.flush()?;
    engine.flush()?;
    Ok(report)
}

fn copy_meta(
    survey: &mut Survey,
    space: usize,
    tree: usize,
    target: &mut Target<'_>,
    report: &mut SalvagedKeyspace,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<()> {
    let file = survey.tree_path(space, tree);
    let (mut entries, mut failed) = (0, None);
    let mut lost = |place, from: &[u8], to: Option<&[u8]>| {
        let (from, to) = (Bytes::copy_from_slice(from), to.map(Bytes::copy_from_slice));
        report.losses.push(Loss { file: file.clone(), place, what: Lost::Entries { from, to } });
    };
    let mut each = |seen: Seen<'_>, _: &mut Findings| match seen {
        Seen::Entry { leaf, key, body, .. } => match body.filter(|body| meta::entry(key, body).is_ok()) {
            Some(body) => {
                entries += 1;
                failed = failed.take().or(target.put(tree, key, Bytes::new(), body).err());
            }
            // Up to the next key that there could be.
            None => lost(place(leaf), key, Some(&[key, &[0]].concat())),
        },
        Seen::Lost { ptr, low, high } => lost(Place::Unit(ptr.unit), low, high),
    };
    survey.tree(space, tree, &mut each, progress);
    report.entries = entries;
    failed.map_or(Ok(()), Err)
}

fn place(leaf: Option<PagePtr>) -> Place {
    leaf.map_or(Place::File, |leaf| Place::Unit(leaf.unit))
}

/// A shard under way.
struct Copying<'a, 'b> {
    file: PathBuf,
    routes: &'a Routes,
    shard: usize,
    /// Rows above this revision were removed by nobody.
    sure_above: u64,
    main: u64,
    /// False where pages may hold rows that no commit or journal ever had.
    is_sure: bool,
    doubtful: bool,
    /// Revisions of which rows may be missing: from, to, and the page that they were lost with.
    ranges: Vec<(Revision, Option<Revision>, PagePtr)>,
    /// Keys of single rows that are lost, and their revisions.
    rows: Vec<(Bytes, Revision)>,
    /// The newest row of each key.
    newest: HashMap<Bytes, Life>,
    /// False if something is missing that no page tells of: a row did not follow from the one of its key before, or
    /// the journal has a gap.
    follows: bool,
    /// True if something was lost, and all that the root counts is there again.
    found_again: bool,
    /// Rows of the tree file that were met.
    taken: u64,
    report: &'a mut SalvagedKeyspace,
    target: &'a mut Target<'b>,
    failed: Option<crate::error::Error>,
}

/// A row that can be copied.
struct Whole {
    life: Life,
    key: Bytes,
    head: Bytes,
    body: Bytes,
}

impl Copying<'_, '_> {
    fn see(&mut self, seen: Seen<'_>, findings: &mut Findings) {
        match seen {
            Seen::Entry { leaf, key, head, body } => {
                self.taken += u64::from(leaf.is_some());
                let whole = self.whole(key, head, body.as_ref());
                match whole.and_then(|row| self.following(row, leaf, findings)) {
                    Ok(row) => self.take(key, row),
                    Err(_) => self.lost_row(leaf, key, head),
                }
            }
            Seen::Lost { ptr, low, high } => {
                let from = row::row_revision(low).unwrap_or_default();
                let to = high.and_then(|high| row::row_revision(high).ok());
                self.ranges.push((from, to, ptr));
            }
        }
    }

    fn whole(&self, tree_key: &[u8], head: &[u8], body: Option<&Bytes>) -> Result<Whole, Damage> {
        let at = row::row_revision(tree_key)?;
        let body = body.ok_or(Damage::Malformed { what: "its body is lost" })?.clone();
        let head = Bytes::copy_from_slice(head);
        let kv = row::open_row(tree_key, &head, &body)?;
        if self.routes.shard_of(&kv.key) != self.shard || at.main > self.main {
            return Err(Damage::Malformed { what: "it is of another shard or revision" });
        }
        Ok(Whole { life: Life::of(at, &kv), key: Bytes::copy_from_slice(&kv.key), head, body })
    }

    /// The row, if it can come after what its key was before; with a finding if something is missing in between.
    fn following(&mut self, row: Whole, leaf: Option<PagePtr>, findings: &mut Findings) -> Result<Whole, Damage> {
        let before = self.newest.get(&row.key).copied();
        // Behind what is lost anything may be missing.
        let explained = !self.ranges.is_empty() || !self.follows;
        let floor = if explained { u64::MAX } else { self.sure_above };
        if let Some(what) = check::wrong(before, row.life, floor) {
            let damage = Damage::Malformed { what };
            findings.push(Finding::damage(&self.file, place(leaf), &damage));
            if check::wrong(before, row.life, u64::MAX).is_some() {
                return Err(damage);
            }
            self.follows = false;
        }
        Ok(row)
    }

    fn take(&mut self, tree_key: &[u8], row: Whole) {
        let newest = self.newest.entry(row.key).or_insert(row.life);
        if newest.at < row.life.at {
            *newest = row.life;
        }
        self.report.rows += 1;
        if let Err(error) = self.target.put(self.shard, tree_key, row.head, row.body) {
            self.failed.get_or_insert(error);
        }
    }

    fn lost_row(&mut self, leaf: Option<PagePtr>, tree_key: &[u8], head: &[u8]) {
        let at = row::row_revision(tree_key).unwrap_or_default();
        let key = RowHead::decode(head).ok().and_then(|row| row.key.map(Bytes::copy_from_slice)).unwrap_or_default();
        let revision = at.main.cast_signed();
        let what = Lost::Row { key: key.clone(), revision };
        self.report.losses.push(Loss { file: self.file.clone(), place: place(leaf), what });
        let after = Some(Revision { main: at.main, sub: at.sub + 1 });
        if key.is_empty() {
            self.ranges.push((at, after, leaf.unwrap_or(PagePtr { unit: 0, epoch: 0 })));
        } else {
            self.rows.push((key, at));
        }
    }

    /// Looks for what was lost in leaves that nothing leads to.
    fn search(&mut self, survey: &mut Survey, space: usize, found: &TreeReport) -> Result<()> {
        if !self.ranges.is_empty() {
            let entry = survey.spaces[space].entry.clone();
            // By revision, of the newest page.
            let mut rows: BTreeMap<Revision, (u64, Whole)> = BTreeMap::new();
            survey.check.leaves(&entry, &entry.trees[self.shard], &mut |leaf, row, body| {
                let Ok(row) = self.whole(row.key, row.head, body.as_ref()) else { return };
                let at = row.life.at;
                let lost =
                    |(from, to, _): &(Revision, Option<Revision>, PagePtr)| *from <= at && to.is_none_or(|to| at < to);
                let is_newer = rows.get(&at).is_none_or(|(epoch, _)| *epoch < leaf.epoch);
                if self.ranges.iter().any(lost) && is_newer {
                    rows.insert(at, (leaf.epoch, row));
                }
            });
            rows.retain(|at, _| !survey.spaces[space].has_in_journal(self.shard, &row::row_key(*at)));
            self.recover(rows, found);
        }
        self.failed.take().map_or(Ok(()), Err)
    }

    fn recover(&mut self, rows: BTreeMap<Revision, (u64, Whole)>, found: &TreeReport) {
        let missing = found.counted.saturating_sub(self.taken);
        let sure = |at: &Revision| self.is_sure && at.main > self.sure_above;
        // All that the root counts is there again, and nothing else.
        let is_whole = rows.len() as u64 == missing && rows.keys().all(sure);
        let sure: Vec<bool> = rows.keys().map(sure).collect();
        for ((at, (_, row)), sure) in rows.into_iter().zip(sure) {
            let item = KeyAt { key: row.key.clone(), revision: at.main.cast_signed() };
            let list = if sure { &mut self.report.recovered } else { &mut self.report.doubtful };
            list.push(item);
            if sure || self.doubtful {
                self.take(&row::row_key(at), row);
            }
        }
        if is_whole {
            self.ranges.clear();
            self.found_again = true;
        }
        for (from, to, ptr) in &self.ranges {
            let pair = |at: &Revision| (at.main, at.sub);
            let what = Lost::Revisions { from: pair(from), to: to.as_ref().map(pair) };
            let loss = Loss { file: self.file.clone(), place: Place::Unit(ptr.unit), what };
            self.report.losses.push(loss);
        }
    }

    /// Lists the keys that a lost row may have changed.
    fn stale(&mut self, gone: &[(u64, Option<u64>)]) {
        let ends = self.ranges.iter().map(|(_, to, _)| to.map_or(u64::MAX, |to| to.main));
        let end = ends.chain(gone.iter().map(|(_, to)| to.unwrap_or(u64::MAX))).max().unwrap_or(0);
        let in_range = self.newest.iter().filter(|(_, newest)| newest.at.main < end);
        let one_by_one = self.rows.iter().filter_map(|(key, lost)| {
            let newest = self.newest.get_key_value(key)?;
            (newest.1.at < *lost).then_some(newest)
        });
        let item = |(key, newest): (&Bytes, &Life)| KeyAt { key: key.clone(), revision: newest.at.main.cast_signed() };
        let mut stale: Vec<KeyAt> = in_range.chain(one_by_one).map(item).collect();
        stale.sort_unstable();
        stale.dedup();
        stale.into_iter().for_each(|key| self.report.stale.push(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::check;
    use crate::engine::Engine;
    use crate::request::{RangeRequest, Span};
    use crate::row::{NewPut, NewRow};
    use crate::snapshot::tests::row;
    use polybolt_engine::Severity;

    /// No page is damaged, but rows are missing, as by a writer with a bug: what was made of it had the same gaps, with
    /// nothing that said so.
    #[test]
    fn rows_that_do_not_follow_from_each_other_count_as_lost() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let engine = Engine::open(&from, Options::default()).unwrap();
        let (routes, state) = (Routes::single(), State { main: 9, ..State::new(1) });
        let info = engine.create_space("ks", &routes, state.clone()).unwrap();
        let mut target = Target { engine: &engine, routes: &routes, info, state, edits: Vec::new(), bytes: 0 };
        // A delete of nothing, versions that are missing, and one that nothing can come before.
        let mut late = Vec::new();
        let put = Some(NewPut { value: b"v", created: 2, version: 1, lease: 0 });
        row::encode_row(&mut late, NewRow { at: Revision::new(6, 0), key: b"d", put });
        for row in [row(2, b"a", 1), row(3, b"b", 0), row(5, b"c", 4), late] {
            let (key, rest) = row.split_at(row::ROW_KEY_BYTES);
            let (head, body) = rest.split_at(row::head_len(rest).unwrap());
            let [head, body] = [head, body].map(Bytes::copy_from_slice);
            target.put(0, key, head, body).unwrap();
        }
        target.flush().unwrap();
        engine.close().unwrap();

        let report = salvage(&from, &to, false, &mut |_| ()).unwrap();
        assert!(report.findings.list.iter().any(|finding| finding.what == "it deletes a key that is not there"));
        let losses = &report.keyspaces[0].losses;
        let lost = Lost::Row { key: Bytes::from_static(b"d"), revision: 6 };
        assert!(losses.count == 1 && losses.first[0].what == lost, "{losses:?}");
        let findings = check(&to, &mut |_| ()).unwrap().findings;
        assert!(findings.list.iter().all(|finding| finding.severity == Severity::Note), "{findings:?}");
        let engine = Engine::open(&to, Options::default()).unwrap();
        let ks = engine.keyspace("ks").unwrap();
        let everything = RangeRequest::new(Span::prefix(""));
        let keys: Vec<Bytes> = ks.range(&everything).unwrap().kvs.into_iter().map(|kv| kv.key).collect();
        assert_eq!(keys, ["a", "c"]);
        assert!(ks.range(&RangeRequest { revision: 8, ..everything }).is_err(), "rows may be missing there");
    }
}
