//! What a client asks, and whether it was answered.

use super::connect::Login;
use super::keys::{Keys, Numbers, Values};
use super::options::{Load, Options};
use super::schedule::Turn;
use super::tally::{Failure, Operation, Tally, nanos};
use super::turns::Turns;
use crate::proto::etcdserverpb as pb;
use bytes::Bytes;
use pb::compare::{CompareResult, CompareTarget, TargetUnion};
use pb::kv_client::KvClient;
use pb::{request_op, response_op};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;
use tokio::time::Instant;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

/// What a client waits after a failure if nothing else paces it: a server that is gone is not asked in a loop.
const AFTER_FAILURE: Duration = Duration::from_millis(100);
/// After so many failures in a row a client that nothing else paces gives up.
const FAILURES_MAX: u32 = 100;

/// What all clients of a run share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) options: Options,
    pub(super) keys: Keys,
    pub(super) values: Values,
    /// Which run this is, among all.
    pub(super) run: u64,
    /// What times in values count from.
    pub(super) epoch: Instant,
    /// The revision that each key was last changed at, as far as known.
    pub(super) known: Vec<AtomicI64>,
    pub(super) tally: Tally,
}

/// One of those that ask, one request at a time.
#[derive(Debug)]
pub(super) struct Client {
    id: u64,
    kv: KvClient<InterceptedService<Channel, Login>>,
    numbers: Numbers,
    shared: Arc<Shared>,
    turns: Arc<Turns>,
    /// Keys that it created and has not deleted, oldest first, and at which revisions.
    created: VecDeque<(Bytes, i64)>,
    creations: u64,
}

type Answer = Result<(), Failure>;

fn wrong(what: String) -> Answer {
    Err(Failure::Wrong(what))
}

impl Client {
    pub(super) fn new(
        id: u64,
        kv: KvClient<InterceptedService<Channel, Login>>,
        shared: Arc<Shared>,
        turns: Arc<Turns>,
    ) -> Client {
        let numbers = Numbers::of(shared.options.seed, id);
        Client { id, kv, numbers, shared, turns, created: VecDeque::new(), creations: 0 }
    }

    /// Until there are no more turns.
    pub(super) async fn run(mut self) {
        let mut failures = 0;
        while let Some(turn) = self.turns.next().await {
            let (operation, answer) = self.request(turn).await;
            let now = self.turns.now();
            let tally = &self.shared.tally;
            match answer {
                Ok(()) if turn.measured => tally.answered(self.id, operation, turn.due, now),
                Ok(()) => _ = tally.warmed.fetch_add(1, Ordering::Relaxed),
                Err(failure) => {
                    tally.failed(self.id, &failure);
                    failures += 1;
                    if self.shared.options.rate.is_none() {
                        if failures == FAILURES_MAX {
                            return;
                        }
                        tokio::time::sleep(AFTER_FAILURE).await;
                    }
                    continue;
                }
            }
            failures = 0;
        }
    }

    async fn request(&mut self, turn: Turn) -> (Operation, Answer) {
        match self.shared.options.load {
            Load::Put | Load::Overwrite | Load::Watch { .. } => (Operation::Put, self.put(turn).await),
            Load::Range { serializable } => (Operation::Get, self.get(turn, serializable).await),
            Load::List { limit, serializable, .. } => (Operation::List, self.list(turn, limit, serializable).await),
            Load::Txn => (Operation::Update, self.update(turn).await),
            Load::Mixed { .. } => match self.numbers.below(100) {
                0..50 => (Operation::Get, self.get(turn, false).await),
                50..60 => (Operation::List, self.list(turn, 0, false).await),
                60..90 => (Operation::Update, self.update(turn).await),
                90..95 => (Operation::Create, self.create(turn).await),
                _ => match self.created.pop_front() {
                    Some((key, revision)) => (Operation::Delete, self.delete(key, revision).await),
                    None => (Operation::Create, self.create(turn).await),
                },
            },
        }
    }

    /// Which of `count` things this turn is about.
    fn pick(&mut self, turn: Turn, count: u64) -> u64 {
        if self.shared.options.sequential_keys { turn.n % count } else { self.numbers.below(count) }
    }

    fn value(&mut self, turn: Turn) -> Bytes {
        let shared = &self.shared;
        if shared.options.load.watchers().is_none() {
            return shared.values.any(&mut self.numbers);
        }
        let due = self.turns.begun().duration_since(shared.epoch) + turn.due;
        shared.values.stamped(&mut self.numbers, nanos(due), turn.measured)
    }

    fn written(&self) {
        self.shared.tally.stamped.fetch_add(1, Ordering::Relaxed);
    }

    async fn put(&mut self, turn: Turn) -> Answer {
        let n = self.pick(turn, self.shared.keys.count);
        let (key, value) = (self.shared.keys.key(n), self.value(turn));
        let answer = self.kv.put(pb::PutRequest { key, value, ..Default::default() }).await?.into_inner();
        self.written();
        let revision = answer.header.map_or(0, |header| header.revision);
        if self.shared.options.check && revision < 1 {
            return wrong(format!("a put was answered with revision {revision}"));
        }
        Ok(())
    }

    async fn get(&mut self, turn: Turn, serializable: bool) -> Answer {
        let n = self.pick(turn, self.shared.keys.count);
        let key = self.shared.keys.key(n);
        let request = pb::RangeRequest { key: key.clone(), serializable, ..Default::default() };
        let answer = self.kv.range(request).await?.into_inner();
        if !self.shared.options.check {
            return Ok(());
        }
        let size = self.shared.options.val_size;
        match answer.kvs.as_slice() {
            [kv] if kv.key == key && kv.value.len() == size => Ok(()),
            [kv] if kv.key == key => wrong(format!(
                "{} has a value of {} bytes, not of {size}: it is of a load with another --val-size, so choose another --prefix",
                key.escape_ascii(),
                kv.value.len()
            )),
            kvs => wrong(format!("a get of {} was answered with {} other keys", key.escape_ascii(), kvs.len())),
        }
    }

    async fn list(&mut self, turn: Turn, limit: u64, serializable: bool) -> Answer {
        let group = self.pick(turn, self.shared.keys.groups());
        let (key, range_end) = self.shared.keys.group(group);
        let most = i64::try_from(limit).unwrap_or(i64::MAX);
        let request = pb::RangeRequest { key: key.clone(), range_end, limit: most, serializable, ..Default::default() };
        let answer = self.kv.range(request).await?.into_inner();
        if !self.shared.options.check {
            return Ok(());
        }
        let (found, count) = (answer.kvs.len() as u64, answer.count.cast_unsigned());
        let all = self.shared.keys.group;
        let expected = if limit == 0 { all } else { limit.min(all) };
        if (found, count, answer.more) != (expected, all, expected < all) {
            let key = key.escape_ascii();
            return wrong(format!(
                "a list of {key} was answered with {found} keys of {count}, not {expected} of {all}"
            ));
        }
        Ok(())
    }

    /// A txn of one key, by the revision it has to be at.
    async fn swap(&mut self, compare: pb::Compare, then: request_op::Request) -> Result<pb::TxnResponse, Failure> {
        let read = pb::RangeRequest { key: compare.key.clone(), ..Default::default() };
        let op = |request| vec![pb::RequestOp { request: Some(request) }];
        let request = pb::TxnRequest {
            compare: vec![compare],
            success: op(then),
            failure: op(request_op::Request::RequestRange(read)),
        };
        Ok(self.kv.txn(request).await?.into_inner())
    }

    async fn update(&mut self, turn: Turn) -> Answer {
        let n = self.pick(turn, self.shared.keys.count);
        let shared = Arc::clone(&self.shared);
        let Some(known) = usize::try_from(n).ok().and_then(|n| shared.known.get(n)) else {
            return wrong(format!("key {n} was not read before the run"));
        };
        let (key, value) = (shared.keys.key(n), self.value(turn));
        let compare = unchanged(key.clone(), known.load(Ordering::Relaxed));
        let put = pb::PutRequest { key: key.clone(), value, ..Default::default() };
        let answer = self.swap(compare, request_op::Request::RequestPut(put)).await?;
        let revision = answer.header.map_or(0, |header| header.revision);
        if answer.succeeded {
            self.written();
            known.fetch_max(revision, Ordering::Relaxed);
            return Ok(());
        }
        let Some(pb::ResponseOp { response: Some(response_op::Response::ResponseRange(found)) }) =
            answer.responses.into_iter().next()
        else {
            return wrong("an update was answered without the range of its other branch".to_owned());
        };
        let Some(kv) = found.kvs.first() else {
            return wrong(format!("{} is gone, though nobody deletes it", key.escape_ascii()));
        };
        known.fetch_max(kv.mod_revision, Ordering::Relaxed);
        shared.tally.conflicts.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    async fn create(&mut self, turn: Turn) -> Answer {
        let key = self.shared.keys.created(self.shared.run, self.id, self.creations);
        self.creations += 1;
        let compare = pb::Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Create.into(),
            key: key.clone(),
            target_union: Some(TargetUnion::CreateRevision(0)),
            ..Default::default()
        };
        let put = pb::PutRequest { key: key.clone(), value: self.value(turn), ..Default::default() };
        let answer = self.swap(compare, request_op::Request::RequestPut(put)).await?;
        if !answer.succeeded {
            return wrong(format!("{} was there before it was created", key.escape_ascii()));
        }
        self.written();
        self.shared.tally.kept.fetch_add(1, Ordering::Relaxed);
        self.created.push_back((key, answer.header.map_or(0, |header| header.revision)));
        Ok(())
    }

    async fn delete(&mut self, key: Bytes, revision: i64) -> Answer {
        let delete = pb::DeleteRangeRequest { key: key.clone(), ..Default::default() };
        let then = request_op::Request::RequestDeleteRange(delete);
        let answer = self.swap(unchanged(key.clone(), revision), then).await?;
        if !answer.succeeded {
            return wrong(format!("{} was changed, though it is one client's own", key.escape_ascii()));
        }
        self.shared.tally.kept.fetch_sub(1, Ordering::Relaxed);
        Ok(())
    }
}

/// That a key was last changed at a revision.
fn unchanged(key: Bytes, revision: i64) -> pb::Compare {
    pb::Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Mod.into(),
        key,
        target_union: Some(TargetUnion::ModRevision(revision)),
        ..Default::default()
    }
}
