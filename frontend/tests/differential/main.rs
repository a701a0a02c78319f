//! The same requests to a real etcd and to the server, in lockstep: the same answers.
//!
//! Operations follow from a seed. Answers are compared whole, but for who answers (cluster, member,
//! term); errors by code and message; events by watcher, in order. Both are single members, so revisions
//! have to be equal too. Where etcd may differ is a closed list (`rules.rs`), whose use is counted. A
//! mismatch is shrunk to a short sequence that still shows it.
//!
//! `POLYBOLT_DIFF_SEED` is the first seed, `POLYBOLT_DIFF_SEEDS` says how many, `POLYBOLT_DIFF_OPS` how many
//! operations each has, `POLYBOLT_ETCD` names the etcd programs, separated by colons, and
//! `POLYBOLT_DIFF_TRACE=1` prints every operation.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

#[path = "../common/mod.rs"]
mod common;
mod ops;
mod rules;
mod side;

use common::{Rng, Served, free_port, has_program};
use ops::{Known, Op, operation};
use polybolt_frontend::proto::etcdserverpb as pb;
use polybolt_frontend::proto::mvccpb::Event;
use polybolt_frontend::proto::mvccpb::event::EventType;
use rules::{Past, Rule, Used, agree, deletes_and_puts, ignore_nothing, puts_below_only};
use side::{Answer, PATIENCE, Side};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// A directory in memory where there is one: what is compared does not depend on the disk.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// What was covered.
#[derive(Debug, Default)]
struct Report {
    kinds: BTreeMap<&'static str, u64>,
    used: Used,
    revisions: u64,
    errors: u64,
    events: u64,
    hashes: u64,
}

impl Report {
    fn add(&mut self, other: &Report) {
        for (kind, count) in &other.kinds {
            *self.kinds.entry(kind).or_default() += count;
        }
        for (rule, count) in &other.used {
            *self.used.entry(*rule).or_default() += count;
        }
        self.revisions += other.revisions;
        self.errors += other.errors;
        self.events += other.events;
        self.hashes += other.hashes;
    }
}

struct Watching {
    request: pb::WatchCreateRequest,
    from: i64,
    /// The compacted revision when it was created.
    compacted: i64,
    /// Compared up to here.
    done: i64,
}

impl Watching {
    fn wants(&self, event: &Event) -> bool {
        let kv = event.kv.as_ref().unwrap();
        let start: &[u8] = if self.request.key.is_empty() { b"\0" } else { &self.request.key };
        let within = match &self.request.range_end[..] {
            [] => kv.key == start,
            [0] => &kv.key[..] >= start,
            end => &kv.key[..] >= start && &kv.key[..] < end,
        };
        within
            && kv.mod_revision > self.done
            && kv.mod_revision >= self.from
            && !self.request.filters.contains(&event.r#type)
    }
}

/// Two servers in lockstep.
struct Pair {
    real: Side,
    ours: Side,
    known: Known,
    past: Past,
    /// Every event so far.
    log: Vec<Event>,
    watching: BTreeMap<i64, Watching>,
    /// When etcd has surely looked at its watchers that begin in the past: it does every 100 ms.
    looked_at: Instant,
    /// Revisions that may have deleted and put one key.
    twice: BTreeSet<i64>,
    report: Report,
}

macro_rules! both {
    ($pair:ident, $op:expr, $method:ident($($argument:expr),*)) => {{
        let (real, ours) = tokio::join!($pair.real.$method($($argument.clone()),*), $pair.ours.$method($($argument.clone()),*));
        $pair.compare($op, real, ours)
    }};
    ($pair:ident, $op:expr, watches.$method:ident($($argument:expr),*)) => {{
        let (real, ours) = tokio::join!(
            $pair.real.watches.$method($($argument.clone()),*),
            $pair.ours.watches.$method($($argument.clone()),*)
        );
        $pair.compare($op, real, ours)
    }};
}

impl Pair {
    async fn connect(real: &str, ours: &str, old: bool) -> Pair {
        Pair {
            real: Side::connect(real).await,
            ours: Side::connect(ours).await,
            known: Known { revision: 1, compacted: -1, watchers: BTreeMap::new(), alarms: Vec::new() },
            past: Past { old, hashes: BTreeMap::new() },
            log: Vec::new(),
            watching: BTreeMap::new(),
            looked_at: Instant::now(),
            twice: BTreeSet::new(),
            report: Report::default(),
        }
    }

    fn compare(&mut self, op: &Op, real: Answer, ours: Answer) -> Result<Answer, String> {
        match agree(op, &real, &ours, &self.past) {
            Ok(rule) => {
                if let Some(rule) = rule {
                    *self.report.used.entry(rule).or_default() += 1;
                }
                self.report.errors += u64::from(matches!(ours, Answer::Error(..)));
                if matches!(op, Op::Watch(_) | Op::Cancel(_)) || ours.revision() == 0 {
                    return Ok(ours);
                }
                if ours.revision() < self.known.revision {
                    return Err(format!("the revision went back from {}: {ours:?}", self.known.revision));
                }
                self.known.revision = ours.revision();
                Ok(ours)
            }
            Err(()) => Err(format!("etcd: {real:?}\n  ours: {ours:?}")),
        }
    }

    async fn step(&mut self, op: &Op) -> Result<(), String> {
        match op {
            Op::Range(request) => drop(both!(self, op, range(request))?),
            Op::Put(request) => drop(both!(self, op, put(request))?),
            Op::Delete(request) => drop(both!(self, op, delete(request))?),
            Op::Txn(request) => {
                let (before, mut request) = (self.known.revision, request.clone());
                let full = self.known.alarms.iter().all(|alarm| alarm.alarm == 1) && !self.known.alarms.is_empty();
                if full && puts_below_only(&request) {
                    *self.report.used.entry(Rule::NestedCost).or_default() += 1;
                    return match self.ours.txn(request).await {
                        Answer::Error(..) => Ok(()),
                        ours => Err(format!("under NOSPACE: {ours:?}")),
                    };
                }
                let twice = deletes_and_puts(&request);
                if twice && ignore_nothing(&mut request) {
                    *self.report.used.entry(Rule::IgnoreAfterDelete).or_default() += 1;
                }
                both!(self, op, txn(request))?;
                if self.known.revision > before && twice {
                    self.twice.insert(self.known.revision);
                }
            }
            Op::Compact(request) => self.compact(op, *request).await?,
            Op::Grant(request) if request.id == 0 => self.grant_any(op, *request).await?,
            Op::Grant(request) => drop(both!(self, op, grant(request))?),
            Op::Revoke(request) => drop(both!(self, op, revoke(request.id))?),
            Op::KeepAlive(id) => drop(both!(self, op, keep_alive(id))?),
            Op::TimeToLive(request) => drop(both!(self, op, time_to_live(request))?),
            Op::Leases => drop(both!(self, op, leases())?),
            Op::Expire(keys) => self.expire(op, keys).await?,
            Op::HashKv(revision) => self.hash_kv(*revision).await?,
            Op::Watch(request) => self.watch(op, request).await?,
            Op::Cancel(id) => self.cancel(op, *id).await?,
            Op::Sync => {
                self.sync().await?;
                self.progress().await?;
            }
            Op::Alarm(request) => {
                let another = |on: &pb::AlarmRequest| on.alarm != request.alarm && request.alarm != 0;
                if request.action == 1 && self.known.alarms.iter().any(another) {
                    *self.report.used.entry(Rule::TwoAlarms).or_default() += 1;
                    return Ok(());
                }
                if self.past.old && request.action == 1 && request.alarm == 0 {
                    *self.report.used.entry(Rule::AlarmOfNothing).or_default() += 1;
                    let header = pb::ResponseHeader { revision: self.known.revision, ..Default::default() };
                    let nothing = pb::AlarmResponse { header: Some(header), alarms: Vec::new() };
                    let ours = self.ours.alarm(*request).await;
                    return self.compare(op, Answer::Alarm(nothing), ours).map(drop);
                }
                both!(self, op, alarm(request))?;
                if let Answer::Alarm(all) = both!(self, op, alarm(pb::AlarmRequest::default()))? {
                    let request = |alarm: pb::AlarmMember| pb::AlarmRequest {
                        member_id: alarm.member_id,
                        alarm: alarm.alarm,
                        ..Default::default()
                    };
                    self.known.alarms = all.alarms.into_iter().map(request).collect();
                }
            }
            Op::Defragment => drop(both!(self, op, defragment())?),
        }
        Ok(())
    }

    async fn grant_any(&mut self, op: &Op, request: pb::LeaseGrantRequest) -> Result<(), String> {
        let (mut real, mut ours) = tokio::join!(self.real.grant(request), self.ours.grant(request));
        let mut ids = Vec::new();
        for answer in [&mut real, &mut ours] {
            if let Answer::Grant(granted) = answer {
                if granted.id <= 0 {
                    return Err(format!("the id that was picked is not positive (LSE-1): {granted:?}"));
                }
                ids.push(std::mem::take(&mut granted.id));
            }
        }
        self.compare(op, real, ours)?;
        if let [theirs, mine] = ids[..] {
            let (real, ours) = tokio::join!(self.real.revoke(theirs), self.ours.revoke(mine));
            self.compare(op, real, ours)?;
        }
        Ok(())
    }

    /// Leases end by themselves: nothing else happens meanwhile, so revisions stay equal.
    async fn expire(&mut self, op: &Op, keys: &[Vec<u8>]) -> Result<(), String> {
        // Under CORRUPT nothing is ever revoked.
        if !self.known.alarms.is_empty() {
            return Ok(());
        }
        let lease = 1000;
        both!(self, op, grant(pb::LeaseGrantRequest { ttl: 1, id: lease }))?;
        for key in keys {
            let put = pb::PutRequest { key: key.clone().into(), lease, ..Default::default() };
            both!(self, op, put(put))?;
        }
        let limit = Instant::now() + PATIENCE;
        let request = pb::LeaseTimeToLiveRequest { id: lease, keys: false };
        let mut gone = [false, false];
        while gone != [true, true] {
            if Instant::now() > limit {
                return Err(format!("a lease does not expire: gone from etcd and from ours: {gone:?}"));
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
            let answers = tokio::join!(self.real.time_to_live(request), self.ours.time_to_live(request));
            gone = [answers.0, answers.1].map(|answer| matches!(answer, Answer::TimeToLive(left) if left.ttl == -1));
        }
        let count = pb::RangeRequest { key: vec![0].into(), count_only: true, ..Default::default() };
        both!(self, op, range(count)).map(drop)
    }

    async fn hash_kv(&mut self, mut revision: i64) -> Result<(), String> {
        self.report.hashes += 1;
        if revision == 0 && self.twice.contains(&self.known.revision) {
            revision = self.known.revision;
        }
        while self.twice.contains(&revision) {
            *self.report.used.entry(Rule::DeleteAndPut).or_default() += 1;
            revision -= 1;
        }
        let op = &Op::HashKv(revision);
        let (mut real, mut ours) = tokio::join!(self.real.hash_kv(revision), self.ours.hash_kv(revision));
        if agree(op, &real, &ours, &self.past).is_err() {
            let limit = Instant::now() + PATIENCE;
            while self.is_empty(revision).await
                && Instant::now() < limit
                && agree(op, &real, &ours, &self.past).is_err()
            {
                tokio::time::sleep(Duration::from_millis(50)).await;
                (real, ours) = tokio::join!(self.real.hash_kv(revision), self.ours.hash_kv(revision));
            }
            *self.report.used.entry(Rule::HashOfNothing).or_default() += 1;
        }
        self.compare(op, real, ours).map(drop)
    }

    /// True if no key is live at a revision.
    async fn is_empty(&mut self, revision: i64) -> bool {
        let everything = pb::RangeRequest {
            key: vec![0].into(),
            range_end: vec![0].into(),
            revision,
            count_only: true,
            ..Default::default()
        };
        matches!(self.ours.range(everything).await, Answer::Range(live) if live.count == 0)
    }

    async fn compact(&mut self, op: &Op, mut request: pb::CompactionRequest) -> Result<(), String> {
        // A watcher that lags when history goes ends otherwise on either side.
        self.sync().await?;
        tokio::time::sleep_until(self.looked_at.into()).await;
        while self.twice.contains(&request.revision) {
            *self.report.used.entry(Rule::DeleteAndPut).or_default() += 1;
            request.revision -= 1;
        }
        let before = match request.revision {
            // Before the first revision nothing is stored.
            0 => self.ours.hash_kv(1).await,
            revision => self.ours.hash_kv(revision).await,
        };
        let empty = self.is_empty(request.revision).await;
        if let Answer::Compact(_) = both!(self, op, compact(request))? {
            self.known.compacted = request.revision;
            if let Answer::HashKv(before) = before {
                let hash = match request.revision {
                    0 => Some(HASH_OF_NOTHING),
                    _ if empty => None,
                    _ => Some(before.hash),
                };
                self.past.hashes.insert(request.revision, (hash, before.compact_revision));
            }
        }
        Ok(())
    }

    async fn watch(&mut self, op: &Op, request: &pb::WatchCreateRequest) -> Result<(), String> {
        if self.past.old && request.start_revision < 0 {
            *self.report.used.entry(Rule::NegativeStart).or_default() += 1;
            let refused = pb::WatchResponse {
                header: Some(pb::ResponseHeader { revision: self.known.revision, ..Default::default() }),
                watch_id: -1,
                created: true,
                canceled: true,
                cancel_reason: "etcdserver: mvcc: required revision has been compacted".into(),
                ..Default::default()
            };
            let ours = self.ours.watches.create(request.clone()).await;
            return self.compare(op, Answer::Watch(refused), ours).map(drop);
        }
        let Answer::Watch(created) = both!(self, op, watches.create(request))? else {
            return Err("the stream does not answer".into());
        };
        if created.canceled {
            return Ok(());
        }
        let id = created.watch_id;
        if (1..=self.known.revision).contains(&request.start_revision) {
            self.looked_at = Instant::now() + Duration::from_millis(300);
        }
        if request.start_revision > 0 && request.start_revision < self.known.compacted {
            both!(self, op, watches.canceled(id))?;
            // As clients do (WCH-34).
            tokio::join!(self.real.watches.cancel(id), self.ours.watches.cancel(id));
            return both!(self, op, watches.canceled(id)).map(drop);
        }
        let from = if request.start_revision > 0 { request.start_revision } else { self.known.revision + 1 };
        let watching = Watching { request: request.clone(), from, compacted: self.known.compacted, done: 0 };
        self.watching.insert(id, watching);
        self.known.watchers.insert(id, request.clone());
        Ok(())
    }

    async fn cancel(&mut self, op: &Op, id: i64) -> Result<(), String> {
        self.sync().await?;
        tokio::join!(self.real.watches.cancel(id), self.ours.watches.cancel(id));
        if self.known.watchers.remove(&id).is_some() {
            both!(self, op, watches.canceled(id))?;
            self.watching.remove(&id);
        }
        Ok(())
    }

    /// All events so far have come to all watchers, and are what they have to be.
    async fn sync(&mut self) -> Result<(), String> {
        let revision = self.known.revision;
        if self.log.last().map_or(1, |event| event.kv.as_ref().unwrap().mod_revision) < revision {
            let (real, ours) = tokio::join!(self.real.all.take_to(revision), self.ours.all.take_to(revision));
            let (real, ours) = (real?, ours?);
            if real != ours {
                return Err(format!("events\n  etcd: {real:?}\n  ours: {ours:?}"));
            }
            self.report.events += ours.len() as u64;
            self.log.extend(ours);
        }
        for (id, watching) in &mut self.watching {
            let new = self.log.partition_point(|event| event.kv.as_ref().unwrap().mod_revision <= watching.done);
            let mut expected: Vec<Event> =
                self.log[new..].iter().filter(|event| watching.wants(event)).cloned().collect();
            for event in &mut expected {
                let before = event.kv.as_ref().unwrap().mod_revision - 1;
                if !watching.request.prev_kv || before < watching.compacted {
                    event.prev_kv = None;
                }
            }
            let (old, compacted) = (self.past.old, watching.compacted);
            let forgotten = |event: &Event| {
                old && event.r#type() == EventType::Delete && event.kv.as_ref().unwrap().mod_revision == compacted
            };
            let mut theirs = expected.clone();
            theirs.retain(|event| !forgotten(event));
            if theirs.len() < expected.len() {
                *self.report.used.entry(Rule::TombstoneAtCompacted).or_default() += 1;
            }
            // What is yet to be erased does come.
            let (real, ours) = tokio::join!(
                self.real.watches.take(*id, theirs.len(), forgotten),
                self.ours.watches.take(*id, expected.len(), |_| false)
            );
            self.report.events += expected.len() as u64;
            for (who, received, expected) in [("etcd", real, theirs), ("ours", ours, expected)] {
                let received = received.map_err(|text| format!("{who}: {text} {expected:?} {:?}", watching.request))?;
                if received != expected {
                    return Err(format!(
                        "watcher {id} {:?}\n  of {who}: {received:?}\n  instead of {expected:?}",
                        watching.request
                    ));
                }
            }
            watching.done = revision;
        }
        Ok(())
    }

    async fn progress(&mut self) -> Result<(), String> {
        let future = self.watching.values().any(|watching| watching.from > self.known.revision + 1);
        // A start right after the newest revision is a future one too, if it was asked for.
        let asked = self.watching.values().any(|watching| watching.request.start_revision > self.known.revision);
        if self.watching.is_empty() || future || asked {
            return Ok(());
        }
        let (real, ours) = tokio::join!(self.real.watches.progress(), self.ours.watches.progress());
        let expected = (Ok(self.known.revision), Ok(self.known.revision));
        if (&real, &ours) != (&expected.0, &expected.1) {
            return Err(format!("progress\n  etcd: {real:?}\n  ours: {ours:?}\n  at {}", self.known.revision));
        }
        Ok(())
    }

    /// Everything that is left, at revisions that may be asked for; and nothing more comes.
    async fn finish(&mut self) -> Result<(), String> {
        self.sync().await?;
        let (first, last) = (self.known.compacted.max(1), self.known.revision);
        for step in 0..=20 {
            let revision = first + (last - first) * step / 20;
            let everything =
                pb::RangeRequest { key: vec![0].into(), range_end: vec![0].into(), revision, ..Default::default() };
            let op = Op::Range(everything.clone());
            both!(self, &op, range(everything))?;
            self.hash_kv(revision).await?;
        }
        let quiet = Duration::from_millis(50);
        let (real, ours) = tokio::join!(self.real.watches.drain(quiet), self.ours.watches.drain(quiet));
        for (who, left) in [("etcd", real?), ("ours", ours?)] {
            if let Some((id, events)) = left.iter().find(|(_, events)| !events.is_empty()) {
                return Err(format!("{who}: more events for watcher {id}: {events:?}"));
            }
        }
        Ok(())
    }
}

/// The hash of a store without rows: CRC-32C of `key` (HSH-3).
const HASH_OF_NOTHING: u32 = 1_084_519_789;

/// A reference.
#[derive(Debug, Clone)]
struct Reference {
    program: String,
    version: String,
    old: bool,
}

impl Reference {
    fn new(program: &str) -> Option<Reference> {
        if !has_program(program) {
            return None;
        }
        let text = common::succeed(Command::new(program).arg("--version"));
        let version = text.lines().next().unwrap().trim_start_matches("etcd Version: ").to_owned();
        let old = version.starts_with("3.4.");
        Some(Reference { program: program.to_owned(), version, old })
    }

    /// Runs a sequence on fresh servers; what was covered, or where it differs and how.
    async fn run(&self, sequence: &[u64], trace: bool) -> Result<Report, (usize, Op, String)> {
        let dir = scratch();
        let etcd = Served::etcd(&self.program, &dir.path().join("etcd"), free_port(), &[]);
        let served = Served::start(&dir.path().join("polybolt"), &["--buffer-bytes", "1048576"]);
        let mut pair = Pair::connect(&etcd.url(), &served.url(), self.old).await;
        for (at, number) in sequence.iter().enumerate() {
            let op = operation(*number, &pair.known);
            if trace {
                println!("  at {}: {op:?}", pair.known.revision);
            }
            *pair.report.kinds.entry(op.kind()).or_default() += 1;
            if let Err(text) = pair.step(&op).await {
                return Err((at, op, text));
            }
        }
        pair.finish().await.map_err(|text| (sequence.len(), Op::Sync, text))?;
        pair.report.revisions = pair.known.revision.unsigned_abs();
        Ok(pair.report)
    }

    /// A shorter sequence that differs too: parts are left out, ever smaller ones (Zeller, Hildebrandt:
    /// Simplifying and isolating failure-inducing input, 2002).
    async fn shrink(&self, mut sequence: Vec<u64>, kind: &str, until: Instant) -> Vec<u64> {
        let mut part = sequence.len() / 2;
        while part > 0 {
            let mut from = 0;
            while from < sequence.len() && Instant::now() < until {
                let mut shorter = sequence.clone();
                shorter.drain(from..(from + part).min(sequence.len()));
                match self.run(&shorter, false).await {
                    Err((at, op, _)) if op.kind() == kind => {
                        shorter.truncate(at + 1);
                        sequence = shorter;
                    }
                    _ => from += part,
                }
            }
            part /= 2;
        }
        sequence
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_answers_as_etcd() {
    let (first, seeds) = (number("POLYBOLT_DIFF_SEED", 1), number("POLYBOLT_DIFF_SEEDS", 4));
    let ops = number("POLYBOLT_DIFF_OPS", 1500);
    let programs = std::env::var("POLYBOLT_ETCD").unwrap_or("etcd".into());
    for reference in programs.split(':').filter_map(Reference::new) {
        let mut all = Report::default();
        for seed in first..first + seeds {
            let mut rng = Rng(seed);
            let mut sequence: Vec<u64> = (0..ops).map(|_| rng.next()).collect();
            let (at, op, text) = match reference.run(&sequence, number("POLYBOLT_DIFF_TRACE", 0) > 0).await {
                Ok(report) => {
                    println!(
                        "etcd {}, seed {seed}: {ops} operations, {} revisions, {} events: no difference",
                        reference.version, report.revisions, report.events
                    );
                    all.add(&report);
                    continue;
                }
                Err(found) => found,
            };
            println!("etcd {}, seed {seed}, operation {at}: {op:?}\n  {text}", reference.version);
            println!(
                "making it shorter; the whole: POLYBOLT_DIFF_SEED={seed} POLYBOLT_DIFF_SEEDS=1 POLYBOLT_DIFF_OPS={ops}"
            );
            sequence.truncate(at + 1);
            let budget = Duration::from_secs(number("POLYBOLT_DIFF_SHRINK_SECONDS", 180));
            let short = reference.shrink(sequence, op.kind(), Instant::now() + budget).await;
            println!("{} operations:", short.len());
            match reference.run(&short, true).await {
                Err((_, _, text)) => panic!("{text}"),
                Ok(_) => panic!("it differs by chance: {text}"),
            }
        }
        let kinds: Vec<String> = all.kinds.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        println!(
            "etcd {}: {} operations over {seeds} seeds, 0 mismatches; {} revisions, {} events, {} hashes, {} errors",
            reference.version,
            all.kinds.values().sum::<u64>(),
            all.revisions,
            all.events,
            all.hashes,
            all.errors
        );
        println!("  operations: {}", kinds.join(", "));
        for (rule, count) in &all.used {
            println!("  rule {}: {count}", rule.text());
        }
    }
}

/// Each has a line in the documentation, with the rule and the test, which exists.
#[test]
fn where_a_reference_may_differ_our_side_has_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let page = std::fs::read_to_string(root.join("docs/compatibility.md")).unwrap();
    let mut lines: Vec<&str> =
        page.lines().skip_while(|line| *line != "| tester's rule | test of our side |").collect();
    lines.truncate(2 + Rule::ALL.len());
    let listed: Vec<String> = Rule::ALL.iter().map(|(_, text, test)| format!("| {text} | `{test}` |")).collect();
    assert_eq!(lines.get(2..).unwrap_or_default(), listed);
    let sources = ["index/src/tests.rs", "mvcc/tests/semantics.rs", "frontend/tests/services.rs"];
    let tests: String = sources.iter().map(|file| std::fs::read_to_string(root.join(file)).unwrap()).collect();
    for (rule, _, test) in Rule::ALL {
        assert!(tests.contains(&format!("fn {test}()")), "{rule:?}: {test} is not a test");
        assert_eq!(Rule::ALL.iter().filter(|(other, ..)| *other == rule).count(), 1);
    }
}
