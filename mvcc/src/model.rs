//! The truth, slowly: a keyspace as one sequential map of versions, for the simulator and the fuzzers.
//!
//! [`Model::apply`] says what a [`Command`] answers and changes it; every version of every key stays, so that
//! the state at any revision, the events between two, hashes, and what compaction has to leave can be asked
//! at any time. [`Model::mark`] and [`Model::rewind`] take it back to an earlier boundary, as a crash would.
//! It shares the types of requests with the engine, and how a txn is checked before it is evaluated, and
//! nothing else.

use crate::command::{self, Applied, Command};
use crate::error::Refusal;
use crate::event::EventKind;
use crate::lease::TTL_MAX;
use crate::request::{
    Compare, CompareOp, CompareTarget, DeleteRequest, DeleteResponse, HashKv, KeyValue, LeaseGranted, Op, OpResponse,
    PutRequest, PutResponse, RangeRequest, RangeResponse, SortOrder, SortTarget, Span, TxnRequest, TxnResponse,
};
use crate::routes::Routes;
use crate::{txn, wire};
use bytes::Bytes;
use std::cmp::Ordering;
use std::collections::BTreeMap;

pub use crate::probe::{Answer, Probe, StoredRows, is_pressed};
pub use polybolt_engine::defect;

/// Live keys.
pub type State = BTreeMap<Bytes, KeyValue>;

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// The revision.
    pub main: i64,
    /// Its number among the changes of the revision.
    pub sub: u32,
    /// None is a delete.
    pub kv: Option<KeyValue>,
}

/// An event as a watcher has to see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// A put or a delete.
    pub kind: EventKind,
    /// The new version; of a delete the key and the revision.
    pub kv: KeyValue,
    /// The version before.
    pub prev_kv: Option<KeyValue>,
}

/// All of a model but its versions, which only grow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The newest revision.
    pub main: i64,
    /// The compacted revision, -1 if never.
    pub compacted: i64,
    /// The lowest revision that each shard answers, apart from that.
    pub floors: Vec<i64>,
    /// The applied index.
    pub applied_index: u64,
    /// Leases and their times to live.
    pub leases: BTreeMap<i64, i64>,
    /// Metadata tables.
    pub tables: BTreeMap<(String, Bytes), Bytes>,
}

/// A keyspace.
#[derive(Debug, Clone)]
pub struct Model {
    routes: Routes,
    max_txn_ops: usize,
    min_lease_ttl: i64,
    /// All but the versions.
    pub now: Mark,
    versions: BTreeMap<Bytes, Vec<Version>>,
    live: State,
}

impl Model {
    /// A new keyspace.
    pub fn new(routes: Routes, max_txn_ops: usize, min_lease_ttl: i64) -> Self {
        let floors = vec![0; routes.shards().len()];
        let (leases, tables) = (BTreeMap::new(), BTreeMap::new());
        let now = Mark { main: 1, compacted: -1, floors, applied_index: 0, leases, tables };
        Model { routes, max_txn_ops, min_lease_ttl, now, versions: BTreeMap::new(), live: State::new() }
    }

    /// Runs a command; `index` is its position in a log above. Refused, it has no effect but on the index.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn apply(&mut self, command: &Command, index: Option<u64>) -> Result<Applied, Refusal> {
        if let Some(index) = index {
            if index <= self.now.applied_index {
                return Err(Refusal::AlreadyApplied { applied: self.now.applied_index });
            }
            self.now.applied_index = index;
        }
        match command {
            Command::Op(Op::Txn(request)) => self.txn(request).map(Applied::Txn),
            Command::Op(op) => {
                self.txn(&TxnRequest { success: vec![op.clone()], ..TxnRequest::default() }).map(Applied::Txn)
            }
            Command::Compact(revision) => {
                if *revision <= self.now.compacted {
                    return Err(Refusal::Compacted { revision: self.now.compacted });
                }
                if *revision > self.now.main {
                    return Err(Refusal::FutureRevision { current: self.now.main });
                }
                self.now.compacted = *revision;
                Ok(Applied::Revision(self.now.main))
            }
            Command::CompactShard { shard, revision } => {
                let known = self.routes.shards().iter().position(|known| known.name == *shard);
                let Some(at) = known else { return Err(Refusal::Invalid { why: shard.clone() }) };
                let floor = self.now.compacted.max(self.now.floors[at]);
                if *revision <= floor {
                    return Err(Refusal::Compacted { revision: floor });
                }
                if *revision > self.now.main {
                    return Err(Refusal::FutureRevision { current: self.now.main });
                }
                self.now.floors[at] = *revision;
                Ok(Applied::Revision(self.now.main))
            }
            Command::LeaseGrant { id, ttl } => {
                if *ttl > TTL_MAX {
                    return Err(Refusal::LeaseTtlTooLarge);
                }
                if self.now.leases.contains_key(id) {
                    return Err(Refusal::LeaseExists);
                }
                let ttl = (*ttl).max(self.min_lease_ttl);
                self.now.leases.insert(*id, ttl);
                Ok(Applied::Lease(LeaseGranted { revision: self.now.main, id: *id, ttl }))
            }
            Command::LeaseRevoke(id) => {
                self.now.leases.remove(id).ok_or(Refusal::LeaseNotFound)?;
                let mut run = Run::new(self);
                for key in self.keys_of(*id) {
                    run.delete(&DeleteRequest { span: Span::key(key), prev_kv: false });
                }
                let changes = run.changes;
                self.commit(changes);
                Ok(Applied::Revision(self.now.main))
            }
            Command::Table(edits) => {
                command::check_table(edits)?;
                for edit in edits {
                    let key = (edit.table.clone(), edit.key.clone());
                    match &edit.value {
                        Some(value) => drop(self.now.tables.insert(key, value.clone())),
                        None => drop(self.now.tables.remove(&key)),
                    }
                }
                Ok(Applied::Done)
            }
            // Deadlines are not part of it.
            Command::LeaseCheckpoint(_) | Command::Nothing => Ok(Applied::Done),
        }
    }

    fn txn(&mut self, request: &TxnRequest) -> Result<TxnResponse, Refusal> {
        txn::check_txn(request, self.max_txn_ops)?;
        self.check_branch(request)?;
        let mut run = Run::new(self);
        let mut response = run.txn(request);
        response.revision = run.revision();
        let changes = run.changes;
        self.commit(changes);
        Ok(response)
    }

    /// What a txn that only reads answers at `visible`, where shards have these floors.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn read_txn(&self, request: &TxnRequest, visible: i64, floors: &[i64]) -> Result<TxnResponse, Refusal> {
        let mut past = self.clone();
        past.rewind_keys(visible);
        (past.now.main, past.now.compacted) = (visible, -1);
        past.now.floors = floors.to_vec();
        past.txn(request)
    }

    /// TXN-12, TXN-13, in the order of the operations that would run.
    fn check_branch(&self, request: &TxnRequest) -> Result<(), Refusal> {
        let branch = if self.holds(&request.compare) { &request.success } else { &request.failure };
        for op in branch {
            match op {
                Op::Range(range) if range.revision != 0 => {
                    let floor = self.now.compacted.max(self.floor(&range.span, &self.now.floors));
                    if range.revision > self.now.main {
                        return Err(Refusal::FutureRevision { current: self.now.main });
                    }
                    if range.revision < floor {
                        return Err(Refusal::Compacted { revision: floor });
                    }
                }
                Op::Put(put) if put.lease != 0 && !self.now.leases.contains_key(&put.lease) => {
                    return Err(Refusal::LeaseNotFound);
                }
                Op::Put(put) if (put.ignore_value || put.ignore_lease) && !self.live.contains_key(&put.key) => {
                    return Err(Refusal::KeyNotFound);
                }
                Op::Txn(txn) => self.check_branch(txn)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// The highest of the floors of the shards that `span` touches.
    pub fn floor(&self, span: &Span, floors: &[i64]) -> i64 {
        self.routes.cut(span).iter().map(|segment| floors[segment.shard]).max().unwrap_or(-1)
    }

    /// The shard of a key.
    pub fn shard_of(&self, key: &[u8]) -> usize {
        self.routes.shard_of(key)
    }

    fn holds(&self, compares: &[Compare]) -> bool {
        compares.iter().all(|compare| {
            let found: Vec<&KeyValue> = self.live.values().filter(|kv| compare.span.contains(&kv.key)).collect();
            if found.is_empty() {
                return match &compare.target {
                    CompareTarget::Value(_) => false,
                    CompareTarget::Version(given)
                    | CompareTarget::Create(given)
                    | CompareTarget::Mod(given)
                    | CompareTarget::Lease(given) => relates(compare.op, 0.cmp(given)),
                    CompareTarget::Unknown => relates(compare.op, Ordering::Equal),
                };
            }
            found.iter().all(|kv| {
                let ordering = match &compare.target {
                    CompareTarget::Version(given) => kv.version.cmp(given),
                    CompareTarget::Create(given) => kv.create_revision.cmp(given),
                    CompareTarget::Mod(given) => kv.mod_revision.cmp(given),
                    CompareTarget::Value(given) => kv.value.cmp(given),
                    CompareTarget::Lease(given) => kv.lease.cmp(given),
                    CompareTarget::Unknown => Ordering::Equal,
                };
                relates(compare.op, ordering)
            })
        })
    }

    fn commit(&mut self, changes: Vec<(Bytes, Option<KeyValue>)>) {
        if changes.is_empty() {
            return;
        }
        self.now.main += 1;
        for (sub, (key, kv)) in (0..).zip(changes) {
            match &kv {
                Some(kv) => drop(self.live.insert(key.clone(), kv.clone())),
                None => drop(self.live.remove(&key)),
            }
            self.versions.entry(key).or_default().push(Version { main: self.now.main, sub, kv });
        }
    }

    /// The keys attached to a lease.
    pub fn keys_of(&self, lease: i64) -> Vec<Bytes> {
        self.live.values().filter(|kv| kv.lease == lease).map(|kv| kv.key.clone()).collect()
    }

    /// What is live at the newest revision.
    pub fn live(&self) -> &State {
        &self.live
    }

    /// What was live at a revision.
    pub fn at(&self, revision: i64) -> State {
        let newest = |versions: &Vec<Version>| {
            versions.iter().rev().find(|version| version.main <= revision).and_then(|version| version.kv.clone())
        };
        self.versions.iter().filter_map(|(key, versions)| Some((key.clone(), newest(versions)?))).collect()
    }

    /// What a range answers at `at`, when the current revision is `revision`.
    pub fn range(&self, request: &RangeRequest, at: i64, revision: i64) -> RangeResponse {
        range(&self.at(at), request, revision)
    }

    /// The events of `span` in revisions `from..=to`, in order.
    pub fn events(&self, span: &Span, from: i64, to: i64) -> Vec<Expected> {
        let mut found = Vec::new();
        for (key, versions) in self.versions.iter().filter(|(key, _)| span.contains(key)) {
            let first = versions.partition_point(|version| version.main < from);
            for version in versions[first..].iter().take_while(|version| version.main <= to) {
                let before = versions.iter().rev().find(|before| before.main < version.main);
                let before = before.and_then(|before| before.kv.clone());
                let at = KeyValue { key: key.clone(), mod_revision: version.main, ..KeyValue::default() };
                let (kind, kv) = match &version.kv {
                    Some(kv) => (EventKind::Put, kv.clone()),
                    None => (EventKind::Delete, at),
                };
                let created = kind == EventKind::Put && kv.create_revision == version.main;
                let prev_kv = before.filter(|_| !created);
                found.push(((version.main, version.sub), Expected { kind, kv, prev_kv }));
            }
        }
        found.sort_by_key(|(at, _)| *at);
        found.into_iter().map(|(_, event)| event).collect()
    }

    /// Every row that was written, and whether compaction to the compacted revision and to the shard's floor leaves
    /// it (CMP-4): by shard and revision.
    pub fn rows(&self) -> BTreeMap<(usize, i64, u32), (Option<KeyValue>, bool)> {
        self.rows_of(&self.now)
    }

    /// The same when it was at `mark`.
    pub fn rows_of(&self, mark: &Mark) -> BTreeMap<(usize, i64, u32), (Option<KeyValue>, bool)> {
        let mut rows = BTreeMap::new();
        for (key, versions) in &self.versions {
            let shard = self.routes.shard_of(key);
            let compacted = mark.compacted.max(mark.floors[shard]);
            let versions = &versions[..versions.partition_point(|version| version.main <= mark.main)];
            for (at, version) in versions.iter().enumerate() {
                let superseded = versions.get(at + 1).is_some_and(|next| next.main <= compacted);
                let buried = version.kv.is_none() && version.main < compacted;
                rows.insert((shard, version.main, version.sub), (version.kv.clone(), !superseded && !buried));
            }
        }
        rows
    }

    /// HashKV at `revision` when `compacted` was, and these floors (HSH-2..4), without Volatile shards.
    pub fn hash_kv(&self, revision: i64, compacted: i64, floors: &[i64], current: i64) -> HashKv {
        let is_empty = self.at(revision).is_empty();
        let mut rows = BTreeMap::new();
        for (key, versions) in &self.versions {
            let shard = self.routes.shard_of(key);
            if self.routes.shards()[shard].volatile {
                continue;
            }
            let floor = compacted.max(floors[shard]);
            let kept = self.at(if is_empty { floor.max(0) } else { revision });
            for version in versions.iter().filter(|version| version.main <= revision) {
                let newest = kept.get(key).is_some_and(|kv| Some(kv) == version.kv.as_ref());
                if version.main > floor || newest {
                    rows.insert((version.main, version.sub), (key, &version.kv));
                }
            }
        }
        let mut crc = crc32c::crc32c(b"key");
        let mut row = Vec::new();
        for ((main, sub), (key, kv)) in rows {
            row.clear();
            row.extend_from_slice(&main.to_be_bytes());
            row.push(b'_');
            row.extend_from_slice(&u64::from(sub).to_be_bytes());
            match kv {
                Some(kv) => kv.lent().encode(&mut row),
                None => {
                    row.push(b't');
                    wire::tombstone(key, &mut row);
                }
            }
            crc = crc32c::crc32c_append(crc, &row);
        }
        HashKv { hash: crc, revision: current, compact_revision: compacted, hash_revision: revision }
    }

    /// Where it is.
    pub fn mark(&self) -> Mark {
        self.now.clone()
    }

    /// Goes back to an earlier boundary.
    pub fn rewind(&mut self, mark: &Mark) {
        self.rewind_keys(mark.main);
        self.now = mark.clone();
    }

    fn rewind_keys(&mut self, main: i64) {
        for versions in self.versions.values_mut() {
            versions.truncate(versions.partition_point(|version| version.main <= main));
        }
        self.settle();
    }

    /// A Volatile shard begins empty, with this floor.
    pub fn empty_volatile(&mut self, floor: i64) {
        let Model { routes, versions, now: Mark { floors, .. }, .. } = self;
        versions.retain(|key, _| !routes.shards()[routes.shard_of(key)].volatile);
        for (at, shard) in routes.shards().iter().enumerate() {
            if shard.volatile {
                floors[at] = floor;
            }
        }
        self.settle();
    }

    fn settle(&mut self) {
        self.versions.retain(|_, versions| !versions.is_empty());
        self.live = self.at(i64::MAX);
    }

    /// True if `key` belongs to a Volatile shard.
    pub fn is_volatile(&self, key: &[u8]) -> bool {
        self.is_volatile_shard(self.routes.shard_of(key))
    }

    /// True if the shard is Volatile.
    pub fn is_volatile_shard(&self, shard: usize) -> bool {
        self.routes.shards()[shard].volatile
    }
}

/// A txn that runs: the state with its own changes in it.
struct Run {
    begin: i64,
    past: Model,
    state: State,
    changes: Vec<(Bytes, Option<KeyValue>)>,
}

impl Run {
    fn new(model: &Model) -> Self {
        Run { begin: model.now.main, past: model.clone(), state: model.live.clone(), changes: Vec::new() }
    }

    fn revision(&self) -> i64 {
        self.begin + i64::from(!self.changes.is_empty())
    }

    fn txn(&mut self, request: &TxnRequest) -> TxnResponse {
        // Guards, nested ones too, look at the state before all of it (TXN-11).
        let succeeded = self.past.holds(&request.compare);
        let branch = if succeeded { &request.success } else { &request.failure };
        let responses = branch
            .iter()
            .map(|op| match op {
                Op::Range(request) if request.revision > 0 => {
                    OpResponse::Range(self.past.range(request, request.revision, self.revision()))
                }
                Op::Range(request) => OpResponse::Range(range(&self.state, request, self.revision())),
                Op::Put(put) => OpResponse::Put(self.put(put)),
                Op::Delete(delete) => OpResponse::Delete(self.delete(delete)),
                Op::Txn(txn) => OpResponse::Txn(self.txn(txn)),
                Op::Invalid(refusal) => unreachable!("{refusal} is refused before"),
            })
            .collect();
        TxnResponse { revision: 0, succeeded, responses }
    }

    fn put(&mut self, request: &PutRequest) -> PutResponse {
        let main = self.begin + 1;
        let before = self.state.get(&request.key).cloned();
        let kept = |keep: bool| before.as_ref().filter(|_| keep);
        let kv = KeyValue {
            key: request.key.clone(),
            create_revision: before.as_ref().map_or(main, |before| before.create_revision),
            mod_revision: main,
            version: before.as_ref().map_or(1, |before| before.version + 1),
            value: kept(request.ignore_value).map_or(request.value.clone(), |before| before.value.clone()),
            lease: kept(request.ignore_lease).map_or(request.lease, |before| before.lease),
        };
        self.state.insert(kv.key.clone(), kv.clone());
        self.changes.push((kv.key.clone(), Some(kv)));
        PutResponse { revision: main, prev_kv: before.filter(|_| request.prev_kv) }
    }

    fn delete(&mut self, request: &DeleteRequest) -> DeleteResponse {
        let gone: Vec<KeyValue> = self.state.values().filter(|kv| request.span.contains(&kv.key)).cloned().collect();
        for kv in &gone {
            self.state.remove(&kv.key);
            self.changes.push((kv.key.clone(), None));
        }
        let deleted = i64::try_from(gone.len()).unwrap_or(i64::MAX);
        let prev_kvs = if request.prev_kv { gone } else { Vec::new() };
        DeleteResponse { revision: self.revision(), deleted, prev_kvs }
    }
}

/// RNG-14..24 over a state.
fn range(state: &State, request: &RangeRequest, revision: i64) -> RangeResponse {
    let mut kvs: Vec<KeyValue> = state.values().filter(|kv| request.span.contains(&kv.key)).cloned().collect();
    let count = i64::try_from(kvs.len()).unwrap_or(i64::MAX);
    let mut response = RangeResponse { revision, count, ..RangeResponse::default() };
    if request.count_only {
        return response;
    }
    let limit = usize::try_from(request.limit).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
    let bounds = [
        (request.min_mod_revision, request.max_mod_revision, (|kv| kv.mod_revision) as fn(&KeyValue) -> i64),
        (request.min_create_revision, request.max_create_revision, |kv| kv.create_revision),
    ];
    let filtered = bounds.iter().any(|(min, max, _)| *min != 0 || *max != 0);
    if request.sort_order == SortOrder::None && !filtered {
        // RNG-20: cut before it is sorted.
        response.more = kvs.len() > limit;
        kvs.truncate(limit.saturating_add(1));
    }
    for (min, max, of) in bounds {
        kvs.retain(|kv| (min == 0 || of(kv) >= min) && (max == 0 || of(kv) <= max));
    }
    kvs.sort_by(|a, b| {
        let ordering = match request.sort_target {
            SortTarget::Key => a.key.cmp(&b.key),
            SortTarget::Version => a.version.cmp(&b.version),
            SortTarget::Create => a.create_revision.cmp(&b.create_revision),
            SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
            SortTarget::Value => a.value.cmp(&b.value),
        };
        if request.sort_order == SortOrder::Descend { ordering.reverse() } else { ordering }
    });
    response.more |= kvs.len() > limit;
    kvs.truncate(limit);
    if request.keys_only {
        kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
    }
    response.kvs = kvs;
    response
}

fn relates(op: CompareOp, stored_to_given: Ordering) -> bool {
    match op {
        CompareOp::Equal => stored_to_given == Ordering::Equal,
        CompareOp::Greater => stored_to_given == Ordering::Greater,
        CompareOp::Less => stored_to_given == Ordering::Less,
        CompareOp::NotEqual => stored_to_given != Ordering::Equal,
        CompareOp::Unknown => true,
    }
}
