//! The bars that polybolt has to be above, and whether it is.

use crate::figure::Unit;
use serde::{Deserialize, Serialize};

/// Where a number is: row, what it is, whose.
#[derive(Debug, Clone, Copy)]
struct At(u32, &'static str, &'static str);

/// How a bar is measured.
#[derive(Debug, Clone, Copy)]
enum Rule {
    /// So many times better than this peer.
    Beats(&'static str, &'static str, f64),
    /// So many times better than the best of all peers but etcd's core and LMDB.
    BeatsOthers(&'static str, f64),
    /// So many times better than the best of all peers.
    BeatsAll(&'static str, f64),
    /// A number of polybolt's at most.
    Most(&'static str, f64),
    /// A number of polybolt's at least.
    Least(&'static str, f64),
    /// A number of polybolt's at most so many times another one.
    MostOf(&'static str, At, f64),
    /// A number of polybolt's at least so many times another one.
    LeastOf(&'static str, At, f64),
}

/// Where a bar counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Where {
    Everywhere,
    Disk,
    Memory,
}

/// A bar; where a row has two of which the lower one counts, one that is met is enough.
#[derive(Debug, Clone, Copy)]
struct Bar(u32, &'static str, Where, &'static [Rule]);

/// Bytes of memory of which row 6 may take.
const ON_TOP: f64 = (16 << 20) as f64;
const WRITTEN: &str = crate::raw::SEQUENTIAL;
const REOPEN: &str = "reopen after SIGKILL, until a get and a durable put";
const FULL: &str = "range of all pods, streamed";

use Rule::{Beats, BeatsAll, BeatsOthers, Least, LeastOf, Most, MostOf};
use Where::{Disk, Everywhere, Memory};

#[rustfmt::skip]
const BARS: &[Bar] = &[
    Bar(1, "index, bytes a key", Everywhere, &[Most("index, bytes a key with one revision", 72.0)]),
    Bar(1, "... overwritten twice, compacted", Everywhere, &[Most("... overwritten twice and compacted", 88.0)]),
    Bar(1, "... a lease on every fifth", Everywhere, &[Most(crate::memory::LEASED, 88.0)]),
    Bar(1, "... a further revision", Everywhere, &[Most("... each further revision", 16.0)]),
    Bar(1, "... peak while loading", Everywhere, &[Most("... at most while loading, over that", 1.3)]),
    Bar(1, "... peak while sweeping", Everywhere, &[Most("... at most while sweeping, over what it was", 1.3)]),
    Bar(2, "get, etcd's core (goal 12)", Everywhere, &[Beats("point get", "etcd", 10.0)]),
    Bar(2, "get, LMDB", Everywhere, &[Beats("point get", "lmdb", 1.0)]),
    Bar(2, "get, each other peer", Everywhere, &[BeatsOthers("point get", 3.0)]),
    Bar(3, "2 threads over 1, of LMDB's", Everywhere, &[LeastOf("... over 1", At(3, "... over 1", "lmdb"), 0.95)]),
    Bar(5, "range of a namespace, etcd's core", Everywhere, &[Beats("range of one namespace's pods", "etcd", 12.0)]),
    Bar(6, "full range, etcd's core", Everywhere, &[Beats(FULL, "etcd", 8.0)]),
    Bar(6, "full range, of gathering", Everywhere,
        &[MostOf(FULL, At(6, "... the same records gathered by offset", "machine"), 2.0)]),
    Bar(6, "... memory on top, bytes", Everywhere, &[Most("... memory on top", ON_TOP)]),
    Bar(7, "limit 500, etcd's core", Everywhere, &[Beats("limit 500 with exact count", "etcd", 400.0)]),
    Bar(8, "count, etcd's core", Everywhere, &[Beats("count of all pods", "etcd", 10_000.0)]),
    Bar(9, "older pages, etcd's core", Everywhere,
        &[Beats("a page of 500 at an older revision, exact count", "etcd", 100.0)]),
    Bar(10, "load: etcd's core, or the disk", Disk, &[Beats("load, random order, Batch", "etcd", 4.0),
        LeastOf("load, random order, Batch", At(10, WRITTEN, "machine"), 0.75)]),
    Bar(10, "load, etcd's core", Memory, &[Beats("load, random order, Batch", "etcd", 8.0)]),
    Bar(11, "overwrites, 1 caller: etcd's core, or the disk", Disk, &[Beats("overwrites, Batch, 1 caller", "etcd", 4.0),
        LeastOf("overwrites, Batch, 1 caller", At(10, WRITTEN, "machine"), 0.75)]),
    Bar(11, "overwrites, 1 caller, etcd's core", Memory, &[Beats("overwrites, Batch, 1 caller", "etcd", 5.0)]),
    Bar(11, "overwrites, 64 callers: etcd's core, or the disk", Disk,
        &[Beats("overwrites, Batch, 64 callers", "etcd", 4.0),
        LeastOf("overwrites, Batch, 64 callers", At(10, WRITTEN, "machine"), 0.75)]),
    Bar(11, "overwrites, 64 callers, etcd's core", Memory, &[Beats("overwrites, Batch, 64 callers", "etcd", 5.0)]),
    Bar(11, "... p99, etcd's core", Everywhere, &[Beats("... p99", "etcd", 10.0)]),
    Bar(12, "durable put, of the bare fdatasync", Everywhere, &[Most("... of it", 1.25)]),
    Bar(12, "durable put, LMDB", Everywhere, &[Beats("durable put, 1 caller", "lmdb", 1.5)]),
    Bar(12, "durable put, redb", Everywhere, &[Beats("durable put, 1 caller", "redb", 1.1)]),
    Bar(13, "64 callers, of the bare loop", Everywhere, &[LeastOf("durable puts, 64 callers, grouped",
        At(13, "... a bare group-commit loop", "machine"), 0.7)]),
    Bar(13, "64 callers, the best that groups or combines", Everywhere,
        &[BeatsAll("durable puts, 64 callers, grouped", 1.0)]),
    Bar(13, "64 callers, LMDB without", Everywhere, &[LeastOf("durable puts, 64 callers, grouped",
        At(13, "... without a combining writer", "lmdb"), 10.0)]),
    Bar(13, "64 callers, redb without", Everywhere, &[LeastOf("durable puts, 64 callers, grouped",
        At(13, "... without a combining writer", "redb"), 10.0)]),
    Bar(13, "64 callers, SQLite without", Everywhere, &[LeastOf("durable puts, 64 callers, grouped",
        At(13, "... without a combining writer", "sqlite"), 10.0)]),
    Bar(14, "compare and swap, etcd's core", Memory, &[Beats("compare-and-swap txns, Batch, 1 caller", "etcd", 6.0)]),
    Bar(15, "paced puts beside a full range, p99", Everywhere, &[Most("... p99 of without", 1.3)]),
    Bar(15, "... p99.9", Everywhere, &[Most("... p99.9 of without", 2.0)]),
    Bar(16, "reopen warm, etcd's core", Everywhere, &[Beats(REOPEN, "etcd", 10.0)]),
    Bar(16, "reopen cold, etcd's core", Disk, &[Beats("... cold", "etcd", 10.0)]),
    Bar(16, "reopen cold, of its files read once", Disk,
        &[MostOf("... cold", At(16, "... its files read once, cold", "polybolt"), 1.5)]),
    Bar(17, "watcher behind, etcd's core", Everywhere, &[Beats("events of history", "etcd", 150.0)]),
    Bar(17, "paced puts beside it, p99", Everywhere, &[Most("... p99 of without", 1.2)]),
    Bar(18, "written a record byte, Sync", Everywhere, &[Most("bytes written a record byte, Sync, 64 callers", 2.4)]),
    Bar(18, "written a record byte, Batch", Everywhere, &[Most("bytes written a record byte, Batch", 1.3)]),
];

/// What depends on the machine, or on the values: gets beside puts and puts beside ranges, and the size of files.
fn dependent(cores: usize, objects: bool) -> Vec<(u32, &'static str, Rule)> {
    let many = cores >= 4;
    let (gets, puts) = if many { (0.85, 0.9) } else { (0.6, 0.7) };
    let size = if objects { 1.3 } else { 1.15 };
    vec![
        (4, "gets beside puts, of alone", Least("... of alone", gets)),
        (4, "puts beside gets, of alone", Least("puts beside gets, of alone", gets)),
        (15, "puts beside a full range, of alone", Least("... of alone", puts)),
        (18, "tree files, of all revisions", Most("file bytes a byte of all revisions", size)),
    ]
}

/// What came of a bar.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Verdict {
    /// Of which row.
    pub row: u32,
    /// The bar.
    pub what: String,
    /// The number that counts; None if it was not measured.
    pub is: Option<f64>,
    /// What it has to be.
    pub bar: f64,
    /// True if it has to be at least that.
    pub at_least: bool,
}

impl Verdict {
    /// Whether it is met, if it was measured.
    pub fn met(&self) -> Option<bool> {
        self.is.map(|is| if self.at_least { is >= self.bar } else { is <= self.bar })
    }

    /// How far it is from the bar: above 1 it is met.
    pub fn share(&self) -> Option<f64> {
        self.is.map(|is| if self.at_least { is / self.bar } else { self.bar / is })
    }
}

/// Where the medians of a run are.
pub trait Medians {
    /// The median of a line for a peer, with its unit.
    fn median(&self, row: u32, what: &str, peer: &str) -> Option<(f64, Unit)>;
    /// All peers of a line.
    fn peers(&self, row: u32, what: &str) -> Vec<String>;
}

fn better(medians: &dyn Medians, row: u32, what: &str, than: &str) -> Option<f64> {
    let (ours, unit) = medians.median(row, what, "polybolt")?;
    let (theirs, _) = medians.median(row, what, than)?;
    Some(if unit.less_is_better() { theirs / ours } else { ours / theirs })
}

/// The number that counts, the bar, and true if it is one from below.
fn measure(medians: &dyn Medians, row: u32, rule: Rule) -> (Option<f64>, f64, bool) {
    let ours = |what| medians.median(row, what, "polybolt").map(|(value, _)| value);
    let of = |what, At(row, of, peer): At| Some(ours(what)? / medians.median(row, of, peer)?.0);
    let least = |what, leave: &[&str]| {
        let peers = medians.peers(row, what);
        let others = peers.iter().filter(|peer| !leave.contains(&peer.as_str()));
        others.filter_map(|peer| better(medians, row, what, peer)).min_by(f64::total_cmp)
    };
    match rule {
        Beats(what, than, times) => (better(medians, row, what, than), times, true),
        BeatsOthers(what, times) => (least(what, &["polybolt", "machine", "etcd", "lmdb"]), times, true),
        BeatsAll(what, times) => (least(what, &["polybolt", "machine"]), times, true),
        Most(what, bar) => (ours(what), bar, false),
        Least(what, bar) => (ours(what), bar, true),
        MostOf(what, at, times) => (of(what, at), times, false),
        LeastOf(what, at, times) => (of(what, at), times, true),
    }
}

/// All bars of the rows that were run.
pub fn verdicts(medians: &dyn Medians, rows: &[u32], cores: usize, memory: bool, objects: bool) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    let here = |place: &Where| *place == Everywhere || (*place == Memory) == memory;
    for Bar(row, what, place, rules) in BARS {
        if !here(place) || !rows.contains(row) {
            continue;
        }
        let all = rules.iter().map(|rule| {
            let (is, bar, at_least) = measure(medians, *row, *rule);
            Verdict { row: *row, what: (*what).to_owned(), is, bar, at_least }
        });
        let share = |verdict: &Verdict| verdict.share().unwrap_or(0.0);
        verdicts.extend(all.max_by(|a, b| share(a).total_cmp(&share(b))));
    }
    for (row, what, rule) in dependent(cores, objects) {
        if rows.contains(&row) {
            let (is, bar, at_least) = measure(medians, row, rule);
            verdicts.push(Verdict { row, what: what.to_owned(), is, bar, at_least });
        }
    }
    verdicts.sort_by_key(|verdict| verdict.row);
    verdicts
}
