//! Evaluating requests: from a request and the newest state to a private list of changes.
//!
//! Nothing here writes. Branches are decided from the state before the txn (TXN-11); operations run
//! in order over that state with the txn's own changes laid over it (TXN-15); a read error leaves
//! nothing behind. Plain puts and deletes are evaluated by the same code.

use crate::change::{Change, Put};
use crate::core::{Core, Found};
use crate::error::{Refusal, Result};
use crate::read::{self, Source};
use crate::record::State;
use crate::request::{
    Compare, CompareOp, CompareTarget, DeleteRequest, DeleteResponse, KeyValue, Op, OpResponse, PutRequest,
    PutResponse, RangeRequest, RangeResponse, Span, SpanEnd, TxnRequest, TxnResponse,
};
use bytes::Bytes;
use polybolt_index::{Hit, Life, Revision};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

/// A txn under evaluation. Requires: the writer is held, unless it only reads.
pub(crate) struct Evaluation<'a> {
    core: &'a Core,
    /// The newest revision before it.
    begin: u64,
    /// What it reads at: everything applied, or `begin` if it only reads.
    at: u64,
    /// Below it nothing is read. None is what anybody may see; a writer goes by what is applied, or replicas would
    /// answer differently.
    state: Option<&'a State>,
    pub(crate) changes: Vec<Change>,
    /// The last change of each key, of as many changes as were looked at.
    own: BTreeMap<Bytes, usize>,
    learned: usize,
}

/// Which branch runs, decided before anything does.
struct Plan<'a> {
    succeeded: bool,
    ops: Vec<(&'a Op, Option<Plan<'a>>)>,
}

impl<'a> Evaluation<'a> {
    /// Its changes go to `changes`, which is empty.
    pub(crate) fn new(core: &'a Core, state: &'a State, changes: Vec<Change>) -> Self {
        let (begin, state) = (state.main, Some(state));
        Evaluation { core, begin, at: u64::MAX, state, changes, own: BTreeMap::new(), learned: 0 }
    }

    /// One that only reads, at a pinned revision: needs no writer.
    pub(crate) fn reading(core: &'a Core, at: u64) -> Self {
        Evaluation { core, begin: at, at, state: None, changes: Vec::new(), own: BTreeMap::new(), learned: 0 }
    }

    /// The main of its changes.
    fn main(&self) -> u64 {
        self.begin + 1
    }

    /// REV-10: the revision seen inside.
    fn revision(&self) -> u64 {
        if self.changes.is_empty() { self.begin } else { self.main() }
    }

    /// Runs a txn.
    pub(crate) fn txn(&mut self, request: &TxnRequest) -> Result<TxnResponse> {
        let plan = self.plan(request)?;
        self.check_plan(&plan)?;
        let mut response = self.run(&plan)?;
        response.revision = self.revision().cast_signed();
        Ok(response)
    }

    fn plan<'r>(&self, request: &'r TxnRequest) -> Result<Plan<'r>> {
        let mut succeeded = true;
        for compare in &request.compare {
            if !self.holds(compare)? {
                succeeded = false;
                break;
            }
        }
        let branch = if succeeded { &request.success } else { &request.failure };
        let mut ops = Vec::with_capacity(branch.len());
        for op in branch {
            let nested = match op {
                Op::Txn(txn) => Some(self.plan(txn)?),
                _ => None,
            };
            ops.push((op, nested));
        }
        Ok(Plan { succeeded, ops })
    }

    /// TXN-12, TXN-13: everything that can be refused is refused before the first change.
    fn check_plan(&self, plan: &Plan<'_>) -> Result<()> {
        for (op, nested) in &plan.ops {
            match (op, nested) {
                (Op::Range(range), _) => self.check_range(range)?,
                (Op::Put(put), _) => self.check_put(put)?,
                (Op::Txn(_), Some(nested)) => self.check_plan(nested)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn check_range(&self, request: &RangeRequest) -> Result<()> {
        if request.revision == 0 {
            return Ok(());
        }
        if request.revision > self.begin.cast_signed() {
            return Err(Refusal::FutureRevision { current: self.begin.cast_signed() }.into());
        }
        let segments = self.core.routes.cut(&request.span);
        let (floor, compacted) = match self.state {
            None => (self.core.floor(&segments), self.core.publisher.compacted()),
            Some(state) => {
                let floors = segments.iter().map(|segment| state.floors[segment.shard].cast_signed());
                (floors.max().unwrap_or(0), state.compacted)
            }
        };
        let floor = if floor == 0 { compacted } else { floor.max(compacted) };
        if request.revision < floor {
            return Err(Refusal::Compacted { revision: floor }.into());
        }
        Ok(())
    }

    /// PUT-3, then PUT-4.
    pub(crate) fn check_put(&self, request: &PutRequest) -> Result<()> {
        if request.lease != 0 && !self.core.lessor.lock().exists(request.lease) {
            return Err(Refusal::LeaseNotFound.into());
        }
        let needs_row = request.ignore_value || request.ignore_lease;
        if needs_row && self.stored(&request.key, self.core.routes.shard_of(&request.key)).is_none() {
            return Err(Refusal::KeyNotFound.into());
        }
        Ok(())
    }

    fn run(&mut self, plan: &Plan<'_>) -> Result<TxnResponse> {
        let mut responses = Vec::with_capacity(plan.ops.len());
        for (op, nested) in &plan.ops {
            self.learn();
            responses.push(match (op, nested) {
                (Op::Range(range), _) => OpResponse::Range(self.range(range)?),
                (Op::Put(put), _) => OpResponse::Put(self.put(put)?),
                (Op::Delete(delete), _) => OpResponse::Delete(self.delete(delete)?),
                (Op::Txn(_), Some(nested)) => OpResponse::Txn(self.run(nested)?),
                (Op::Invalid(refusal), _) => return Err(refusal.clone().into()),
                (Op::Txn(_), None) => return Err(Refusal::KeyNotFound.into()),
            });
        }
        Ok(TxnResponse { revision: 0, succeeded: plan.succeeded, responses })
    }

    fn range(&self, request: &RangeRequest) -> Result<RangeResponse> {
        let segments = self.core.routes.cut(&request.span);
        let own = request.revision <= 0 && !self.changes.is_empty();
        if own {
            let base = read::Pinned { core: self.core, segments, at: self.at };
            return read::range(&Overlaid { base, txn: self, span: &request.span }, request, self.revision());
        }
        let at = if request.revision <= 0 { self.at } else { request.revision.cast_unsigned() };
        read::range(&read::Pinned { core: self.core, segments, at }, request, self.revision())
    }

    /// Runs a put (PUT-5..7). Requires: `check_put`.
    pub(crate) fn put(&mut self, request: &PutRequest) -> Result<PutResponse> {
        self.learn();
        let shard = self.core.routes.shard_of(&request.key);
        let before = self.current(&request.key, shard);
        let needs_row = request.prev_kv || request.ignore_value || request.ignore_lease;
        let old = match &before {
            Some(found) if needs_row => Some(self.kv_of(found)?),
            _ => None,
        };
        let value = match &old {
            Some(old) if request.ignore_value => old.value.clone(),
            _ => request.value.clone(),
        };
        let lease = match &old {
            Some(old) if request.ignore_lease => old.lease,
            _ => request.lease,
        };
        let life = before.as_ref().map(|found| found.hit.life.expect("the newest state of a key has its life"));
        let (created, version) = life.map_or((self.main(), 1), |life| (life.created, life.version + 1));
        let put = Put { value, lease, created, version };
        self.changes.push(Change { key: request.key.clone(), shard, put: Some(put), before });
        let prev_kv = if request.prev_kv { old } else { None };
        Ok(PutResponse { revision: self.main().cast_signed(), prev_kv })
    }

    /// Runs a delete (DEL-1..5).
    pub(crate) fn delete(&mut self, request: &DeleteRequest) -> Result<DeleteResponse> {
        self.learn();
        let found = match &request.span.end {
            SpanEnd::Single => {
                let shard = self.core.routes.shard_of(&request.span.key);
                self.current(&request.span.key, shard).into_iter().collect()
            }
            _ => {
                let segments = self.core.routes.cut(&request.span);
                let base = read::Pinned { core: self.core, segments, at: u64::MAX };
                Overlaid { base, txn: self, span: &request.span }.keys(usize::MAX, true)
            }
        };
        let prev_kvs = if request.prev_kv { self.kvs_of(&found, false)? } else { Vec::new() };
        let deleted = found.len() as u64;
        for found in found {
            self.changes.push(Change { key: found.key.clone(), shard: found.shard, put: None, before: Some(found) });
        }
        Ok(DeleteResponse { revision: self.revision().cast_signed(), deleted: deleted.cast_signed(), prev_kvs })
    }

    /// Makes the changes so far seen by what comes next.
    fn learn(&mut self) {
        for (at, change) in self.changes.iter().enumerate().skip(self.learned) {
            self.own.insert(change.key.clone(), at);
        }
        self.learned = self.changes.len();
    }

    /// The newest state of a key, own changes left out.
    fn stored(&self, key: &Bytes, shard: usize) -> Option<Found> {
        let keys = &self.core.shards[shard].keys;
        let hit = if self.at == u64::MAX { keys.latest(key) } else { keys.read().get(key, self.at) }?;
        Some(Found { key: key.clone(), hit, shard, own: None })
    }

    /// The newest state of a key, own changes included.
    fn current(&self, key: &Bytes, shard: usize) -> Option<Found> {
        debug_assert_eq!(self.learned, self.changes.len());
        match self.own.get(key) {
            Some(&at) => self.own_found(at),
            None => self.stored(key, shard),
        }
    }

    /// What own change `at` leaves, if it is a put.
    fn own_found(&self, at: usize) -> Option<Found> {
        let change = &self.changes[at];
        let put = change.put.as_ref()?;
        let sub = u32::try_from(at).expect("a txn has few changes");
        let life = Life { created: put.created, version: put.version };
        let hit = Hit { modified: Revision::new(self.main(), sub), life: Some(life) };
        Some(Found { key: change.key.clone(), hit, shard: change.shard, own: Some(at) })
    }

    pub(crate) fn kv_of(&self, found: &Found) -> Result<KeyValue> {
        let mut kvs = self.kvs_of(std::slice::from_ref(found), false)?;
        kvs.pop().ok_or_else(|| Refusal::KeyNotFound.into())
    }

    fn kvs_of(&self, found: &[Found], keys_only: bool) -> Result<Vec<KeyValue>> {
        let stored: Vec<Found> = found.iter().filter(|found| found.own.is_none()).cloned().collect();
        let mut rows = self.core.fetch(stored, keys_only)?.into_iter();
        let mut kvs = Vec::with_capacity(found.len());
        for found in found {
            let own = found.own.and_then(|at| self.changes[at].put.as_ref());
            kvs.push(match own {
                None => rows.next().ok_or(Refusal::KeyNotFound)?,
                Some(put) => {
                    let life = Life { created: put.created, version: put.version };
                    let mut kv = crate::fetch::key_only(found.key.clone(), found.hit.modified, life, put.lease);
                    if !keys_only {
                        kv.value = put.value.clone();
                    }
                    kv
                }
            });
        }
        Ok(kvs)
    }

    /// TXN-5..10: every live key of the interval has to satisfy the relation.
    fn holds(&self, compare: &Compare) -> Result<bool> {
        let segments = self.core.routes.cut(&compare.span);
        let found = match &compare.span.end {
            SpanEnd::Single => {
                let shard = self.core.routes.shard_of(&compare.span.key);
                self.stored(&compare.span.key, shard).into_iter().collect()
            }
            _ => read::Pinned { core: self.core, segments, at: self.at }.keys(usize::MAX, true),
        };
        if found.is_empty() {
            return Ok(match &compare.target {
                CompareTarget::Value(_) => false,
                CompareTarget::Version(given)
                | CompareTarget::Create(given)
                | CompareTarget::Mod(given)
                | CompareTarget::Lease(given) => relates(compare.op, 0.cmp(given)),
                CompareTarget::Unknown => relates(compare.op, Ordering::Equal),
            });
        }
        let rows = match &compare.target {
            CompareTarget::Value(_) => self.core.fetch(found.clone(), false)?,
            CompareTarget::Lease(_) => self.core.fetch(found.clone(), true)?,
            _ => Vec::new(),
        };
        let lives = match &compare.target {
            CompareTarget::Version(_) | CompareTarget::Create(_) => self.core.lives(&found)?,
            _ => Vec::new(),
        };
        Ok(found.iter().enumerate().all(|(at, found)| {
            let ordering = match &compare.target {
                CompareTarget::Version(given) => lives[at].version.cast_signed().cmp(given),
                CompareTarget::Create(given) => lives[at].created.cast_signed().cmp(given),
                CompareTarget::Mod(given) => found.hit.modified.main.cast_signed().cmp(given),
                CompareTarget::Value(given) => rows[at].value.cmp(given),
                CompareTarget::Lease(given) => rows[at].lease.cmp(given),
                CompareTarget::Unknown => Ordering::Equal,
            };
            relates(compare.op, ordering)
        }))
    }
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

/// The newest state with a txn's own changes laid over it.
struct Overlaid<'a> {
    base: read::Pinned<'a>,
    txn: &'a Evaluation<'a>,
    span: &'a Span,
}

impl Source for Overlaid<'_> {
    fn count(&self) -> i64 {
        let mut count = self.base.count();
        for (key, at) in self.txn.own.iter().filter(|(key, _)| self.span.contains(key)) {
            let change = &self.txn.changes[*at];
            let was = self.txn.stored(key, change.shard).is_some();
            let is = change.put.is_some();
            count += i64::from(is) - i64::from(was);
        }
        count
    }

    fn keys(&self, max: usize, up: bool) -> Vec<Found> {
        let own = self.txn.own.iter().filter(|(key, _)| self.span.contains(key));
        let own: Vec<(&Bytes, usize)> = own.map(|(key, at)| (key, *at)).collect();
        let mut found = self.base.keys(max.saturating_add(own.len()), up);
        found.retain(|found| !self.txn.own.contains_key(&found.key));
        found.extend(own.iter().filter_map(|(_, at)| self.txn.own_found(*at)));
        found.sort_by(|a, b| if up { a.key.cmp(&b.key) } else { b.key.cmp(&a.key) });
        found.truncate(max);
        found
    }

    fn lives(&self, found: &[Found]) -> Result<Vec<Life>> {
        self.base.core.lives(found)
    }

    fn fetch(&self, found: Vec<Found>, keys_only: bool) -> Result<Vec<KeyValue>> {
        self.txn.kvs_of(&found, keys_only)
    }
}

/// Checks a put before it is evaluated (PUT-1, PUT-2).
pub(crate) fn check_put(request: &PutRequest) -> Result<(), Refusal> {
    if request.key.is_empty() {
        return Err(Refusal::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(Refusal::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(Refusal::LeaseProvided);
    }
    Ok(())
}

/// TXN-18: every operation in both branches is a range; none at all counts.
pub(crate) fn is_read_only(request: &TxnRequest) -> bool {
    request.success.iter().chain(&request.failure).all(|op| matches!(op, Op::Range(_)))
}

/// The lowest revision that a read-only txn names, if it names one.
pub(crate) fn lowest_revision(request: &TxnRequest) -> Option<u64> {
    let revision = |op: &Op| match op {
        Op::Range(range) if range.revision > 0 => Some(range.revision.cast_unsigned()),
        _ => None,
    };
    request.success.iter().chain(&request.failure).filter_map(revision).min()
}

/// Checks a txn before it is evaluated (TXN-1..4).
pub(crate) fn check_txn(request: &TxnRequest, max_ops: usize) -> Result<(), Refusal> {
    check_ops(request, max_ops)?;
    for branch in [&request.success, &request.failure] {
        duplicates(branch)?;
    }
    Ok(())
}

fn check_ops(request: &TxnRequest, budget: usize) -> Result<(), Refusal> {
    let most = request.compare.len().max(request.success.len()).max(request.failure.len());
    let left = budget.checked_sub(most).ok_or(Refusal::TooManyOps)?;
    if request.compare.iter().any(|compare| compare.span.key.is_empty()) {
        return Err(Refusal::EmptyKey);
    }
    for op in request.success.iter().chain(&request.failure) {
        match op {
            Op::Range(range) if range.span.key.is_empty() => return Err(Refusal::EmptyKey),
            Op::Delete(delete) if delete.span.key.is_empty() => return Err(Refusal::EmptyKey),
            Op::Put(put) => check_put(put)?,
            Op::Txn(txn) => check_ops(txn, left)?,
            Op::Invalid(refusal) => return Err(refusal.clone()),
            _ => {}
        }
    }
    Ok(())
}

/// TXN-20: keys put anywhere below, and intervals deleted anywhere below.
fn duplicates(ops: &[Op]) -> Result<(BTreeSet<Bytes>, Vec<Span>), Refusal> {
    let mut puts: BTreeSet<Bytes> = BTreeSet::new();
    let mut deletes: Vec<Span> = Vec::new();
    for op in ops {
        if let Op::Delete(delete) = op {
            deletes.push(delete.span.clone());
        }
    }
    for op in ops {
        let Op::Txn(txn) = op else { continue };
        let (then_puts, then_deletes) = duplicates(&txn.success)?;
        let (else_puts, else_deletes) = duplicates(&txn.failure)?;
        let clash = |key: &Bytes| deletes.iter().any(|span| literally_covers(span, key));
        if then_puts.iter().any(|key| puts.contains(key) || clash(key))
            || else_puts.iter().any(|key| (puts.contains(key) && !then_puts.contains(key)) || clash(key))
        {
            return Err(Refusal::DuplicateKey);
        }
        puts.extend(then_puts);
        puts.extend(else_puts);
        deletes.extend(then_deletes);
        deletes.extend(else_deletes);
    }
    for op in ops {
        let Op::Put(put) = op else { continue };
        if deletes.iter().any(|span| literally_covers(span, &put.key)) || !puts.insert(put.key.clone()) {
            return Err(Refusal::DuplicateKey);
        }
    }
    Ok((puts, deletes))
}

/// TXN-23: an open end is the literal interval `[key, "\0")`, which covers nothing.
fn literally_covers(span: &Span, key: &Bytes) -> bool {
    span.end != SpanEnd::Open && span.contains(key)
}
