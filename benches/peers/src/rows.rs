//! The rows that read: what is done, checked while it is measured, on a store that was closed and opened again.

use crate::dataset::{Data, Numbers};
use crate::figure::{Figure, Unit, median};
use crate::gets;
use crate::measure::{now, resident};
use crate::passes::{Passes, Sink, cpu, repeat};
use crate::peer::{List, MvccPeer, Result, Row, Span};
use crate::plan::{Fold, Model, PHASES, Phase, Plan, Step};
use std::time::Duration;
use xxhash_rust::xxh3::Xxh3;

/// The rows of this file.
pub const READS: [u32; 8] = [2, 3, 5, 6, 7, 8, 9, 17];
const PODS: &str = "/registry/pods/";
const PODS_END: &[u8] = b"/registry/pods0";
const FULL: &str = "range of all pods, streamed";
const NAMESPACES: usize = 200;
/// Keys of a page, and the limit of row 7.
const PAGE: usize = 500;

/// What has to be there, for reads.
pub struct Expected {
    pub(crate) plan: Plan,
    pub(crate) newest: Model,
    older: Model,
    pub(crate) live: Vec<usize>,
    pods: Vec<usize>,
    pods_fold: Fold,
    older_pods: Vec<usize>,
    events: Fold,
    /// How long a row may take, unless one pass takes longer.
    pub(crate) time: Duration,
}

fn all_pods() -> Span<'static> {
    Span { start: PODS.as_bytes(), after: false, end: PODS_END }
}

fn must_be(what: &str, is: u64, expected: u64) -> Result<()> {
    if is == expected { Ok(()) } else { Err(format!("{what}: {is} where {expected} has to be").into()) }
}

impl Expected {
    /// Of a store that the whole plan was written into.
    pub fn new(keys: usize, data: Data, time: Duration) -> Self {
        let plan = Plan::new(keys, data);
        let mut newest = Model::new(&plan);
        let mut older = None;
        let mut events = Fold::default();
        for phase in PHASES {
            if phase == Phase::Churn {
                older = Some(newest.clone());
            }
            for step in plan.steps(phase) {
                let changed = newest.apply(step);
                if changed && phase != Phase::Load {
                    events.add(&newest.row(&plan, step.key()));
                }
            }
        }
        let older = older.unwrap_or_else(|| newest.clone());
        let (pods, older_pods) = (newest.live(&plan, PODS), older.live(&plan, PODS));
        let pods_fold = Fold::of(&plan, &newest, &pods);
        Expected { live: newest.live(&plan, ""), pods, pods_fold, older_pods, events, plan, newest, older, time }
    }

    /// How many keys are loaded.
    pub fn keys(&self) -> usize {
        self.plan.keys
    }

    /// Row 18: what a store's files take, once it was closed, over the keys and values of all revisions.
    pub fn size(&self, files: u64) -> Vec<Figure> {
        let mut model = Model::new(&self.plan);
        let steps = PHASES.into_iter().flat_map(|phase| self.plan.steps(phase));
        let bytes = |step: Step| {
            self.plan.key(step.key()).len() + step.value().map_or(0, |value| self.plan.values.of(value).len())
        };
        let retained: usize = steps.filter(|step| model.apply(*step)).map(bytes).sum();
        vec![
            Figure::new(18, "files once everything is closed", Unit::Bytes, files as f64),
            Figure::new(18, "file bytes a byte of all revisions", Unit::Times, files as f64 / retained as f64),
        ]
    }

    /// A key that is there.
    pub fn some_key(&self) -> &[u8] {
        self.plan.key(self.live[self.live.len() / 2])
    }

    /// The last revision before the churn.
    pub fn older(&self) -> u64 {
        self.plan.older()
    }

    /// Everything that a store can say, hashed, and compared with what it has to be: all keys at both revisions, and
    /// history from a revision on.
    pub fn check(&self, peer: &dyn MvccPeer, from: u64) -> Result<String> {
        must_be("the current revision", peer.revision()?, self.newest.revision)?;
        let everything = Span { start: b"/", after: false, end: b"0" };
        let mut whole = Xxh3::new();
        for (model, at) in [(&self.newest, 0), (&self.older, self.plan.older())] {
            let (mut is, mut expected) = (Xxh3::new(), Xxh3::new());
            let list = List { span: everything, at, limit: usize::MAX, count: true };
            let count = peer.list(list, &mut |row| hash(&mut is, &row))?;
            let live = model.live(&self.plan, "");
            live.iter().for_each(|key| hash(&mut expected, &model.row(&self.plan, *key)));
            must_be("the count of all keys", count, live.len() as u64)?;
            must_be("the hash of all keys", is.digest(), expected.digest())?;
            whole.update(&is.digest().to_le_bytes());
        }
        let (mut is, mut expected) = (Xxh3::new(), Xxh3::new());
        peer.history(from, &mut |row| hash(&mut is, &row))?;
        let mut model = Model::new(&self.plan);
        for step in PHASES.into_iter().flat_map(|phase| self.plan.steps(phase)) {
            if model.apply(step) && model.revision >= from {
                hash(&mut expected, &model.row(&self.plan, step.key()));
            }
        }
        must_be("the hash of all history", is.digest(), expected.digest())?;
        whole.update(&is.digest().to_le_bytes());
        if peer.get(b"/registry/none")?.is_some() {
            return Err("a key that was never put is there".into());
        }
        Ok(format!("{:032x}", whole.digest128()))
    }

    /// Measures a row of [`READS`].
    pub fn measure(&self, row: u32, peer: &dyn MvccPeer) -> Result<Vec<Figure>> {
        match row {
            2 => gets::gets(self, peer),
            3 => gets::threads(self, peer),
            5 => self.namespaces(peer),
            6 => self.full(peer),
            7 => self.limited(peer),
            8 => self.count(peer),
            9 => self.pages(peer),
            17 => self.history(peer),
            _ => Err(format!("row {row} does not read").into()),
        }
    }

    fn namespaces(&self, peer: &dyn MvccPeer) -> Result<Vec<Figure>> {
        let mut numbers = Numbers::new(5);
        let spans: Vec<(String, Fold)> = (0..16)
            .map(|_| {
                let prefix = format!("{PODS}namespace-{:03}/", 1 + numbers.below(NAMESPACES));
                let first = self.pods.partition_point(|key| *self.plan.names[*key] < *prefix);
                let keys = self.pods[first..].iter().take_while(|key| self.plan.names[**key].starts_with(&prefix));
                let keys: Vec<usize> = keys.copied().collect();
                let fold = Fold::of(&self.plan, &self.newest, &keys);
                (prefix, fold)
            })
            .collect();
        let (mut at, mut sink) = (0, Sink::new());
        let mut pass = || {
            let (prefix, fold) = &spans[at % spans.len()];
            at += 1;
            let end = format!("{}0", prefix.trim_end_matches('/'));
            let span = Span { start: prefix.as_bytes(), after: false, end: end.as_bytes() };
            let list = List { span, at: 0, limit: usize::MAX, count: false };
            peer.list(list, &mut |row| sink.take(&row))?;
            sink.check(*fold, "a namespace")
        };
        (0..spans.len()).try_for_each(|_| pass())?;
        let times = repeat(self.time, pass)?;
        Ok(times.figures(5, "range of one namespace's pods", Unit::Us, 1e6))
    }

    fn full(&self, peer: &dyn MvccPeer) -> Result<Vec<Figure>> {
        let mut sink = Sink::new();
        let list = List { span: all_pods(), at: 0, limit: usize::MAX, count: false };
        let times = repeat(self.time, || {
            peer.list(list, &mut |row| sink.take(&row))?;
            sink.check(self.pods_fold, "all pods")
        })?;
        // In a pass of its own, for to look takes time.
        let before = resident().anonymous;
        let mut most = before;
        peer.list(list, &mut |row| {
            sink.take(&row);
            if sink.fold.rows.is_multiple_of(1 << 10) {
                most = most.max(resident().anonymous);
            }
        })?;
        sink.check(self.pods_fold, "all pods")?;
        let mut figures = times.figures(6, FULL, Unit::Ms, 1e3);
        figures.push(Figure::new(6, "... memory on top", Unit::Bytes, (most - before) as f64));
        Ok(figures)
    }

    /// What a full range has to do at the least: the same records, in the same order, copied from where they lie in
    /// memory in the order of their revisions.
    pub fn gather(&self) -> Result<Vec<Figure>> {
        let mut at = vec![0; self.newest.revision as usize + 2];
        let record = |step: Step| {
            let value = step.value().map_or(0, |value| self.plan.values.of(value).len());
            32 + self.plan.key(step.key()).len() + value
        };
        let (mut model, mut end) = (Model::new(&self.plan), 0);
        for step in PHASES.into_iter().flat_map(|phase| self.plan.steps(phase)) {
            if !model.apply(step) {
                continue;
            }
            at[model.revision as usize] = end;
            end += record(step);
        }
        // Not only what is gathered takes room.
        let mut memory = vec![1u8; end];
        let mut places = Vec::with_capacity(self.pods.len());
        for key in &self.pods {
            let row = self.newest.row(&self.plan, *key);
            let from = at[row.modified as usize];
            let (name, value) = memory[from + 32..].split_at_mut(row.key.len());
            name.copy_from_slice(row.key);
            value[..row.value.len()].copy_from_slice(row.value);
            places.push((from, *key, row.value.len()));
        }
        let mut sink = Sink::new();
        let times = repeat(self.time, || {
            for (from, key, value) in &places {
                let row = self.newest.cells[*key];
                let (name, rest) = memory[from + 32..].split_at(self.plan.names[*key].len());
                sink.take(&Row {
                    key: name,
                    created: row.created,
                    modified: row.modified,
                    version: row.version,
                    value: &rest[..*value],
                });
            }
            sink.check(self.pods_fold, "what was gathered")
        })?;
        Ok(times.figures(6, "... the same records gathered by offset", Unit::Ms, 1e3))
    }

    fn limited(&self, peer: &dyn MvccPeer) -> Result<Vec<Figure>> {
        let page = &self.pods[..PAGE.min(self.pods.len())];
        let fold = Fold::of(&self.plan, &self.newest, page);
        let mut sink = Sink::new();
        let list = List { span: all_pods(), at: 0, limit: PAGE, count: true };
        let times = repeat(self.time, || {
            let count = peer.list(list, &mut |row| sink.take(&row))?;
            must_be("the count beside a limit", count, self.pods.len() as u64)?;
            sink.check(fold, "the first page")
        })?;
        Ok(times.figures(7, "limit 500 with exact count", Unit::Us, 1e6))
    }

    fn count(&self, peer: &dyn MvccPeer) -> Result<Vec<Figure>> {
        let list = List { span: all_pods(), at: 0, limit: 0, count: true };
        let times = repeat(self.time, || {
            let count = peer.list(list, &mut |_| ())?;
            must_be("a count", count, self.pods.len() as u64)
        })?;
        Ok(times.figures(8, "count of all pods", Unit::Us, 1e6))
    }

    /// Pages at the older revision, with the exact count that etcd answers each with, and without. As many as the
    /// time allows.
    fn pages(&self, peer: &dyn MvccPeer) -> Result<Vec<Figure>> {
        let mut figures = Vec::new();
        for (count, what) in [(true, "a page of 500 at an older revision, exact count"), (false, "... no count")] {
            let (mut sink, mut times, mut last, mut shown) = (Sink::new(), Vec::new(), PODS.as_bytes().to_vec(), 0);
            let (begun, cpu_begun) = (now(), cpu());
            while shown < self.older_pods.len() && (times.len() < 3 || begun.elapsed() < self.time * 2) {
                let span = Span { start: &last.clone(), after: shown > 0, end: PODS_END };
                let list = List { span, at: self.plan.older(), limit: PAGE, count };
                let (left, page_begun) = (self.older_pods.len() - shown, now());
                let counted = peer.list(list, &mut |row| {
                    sink.take(&row);
                    last.clear();
                    last.extend_from_slice(row.key);
                })?;
                times.push(page_begun.elapsed().as_secs_f64());
                shown += PAGE.min(left);
                if count {
                    must_be("the count of an older page", counted, left as u64)?;
                }
            }
            sink.check(Fold::of(&self.plan, &self.older, &self.older_pods[..shown]), "older pages")?;
            let passes = Passes { cpu: cpu() - cpu_begun, times };
            let mut both = passes.figures(9, what, Unit::Us, 1e6);
            both[1].what = format!("... of CPU {}", if count { "with it" } else { "without" });
            figures.extend(both);
        }
        Ok(figures)
    }

    fn history(&self, peer: &dyn MvccPeer) -> Result<Vec<Figure>> {
        let mut sink = Sink::new();
        let times = repeat(self.time, || {
            peer.history(self.plan.first_after_load(), &mut |row| sink.take(&row))?;
            sink.check(self.events, "history")
        })?;
        let each = self.events.rows as f64 / median(&times.times);
        Ok(vec![Figure::new(17, "events of history", Unit::PerSecond, each)])
    }
}

fn hash(hasher: &mut Xxh3, row: &Row<'_>) {
    for number in [row.created, row.modified, row.version, row.key.len() as u64, row.value.len() as u64] {
        hasher.update(&number.to_le_bytes());
    }
    hasher.update(row.key);
    hasher.update(row.value);
}
