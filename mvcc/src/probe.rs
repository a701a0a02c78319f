//! A keyspace from behind, for the simulator and the fuzzers: what no caller sees.

use crate::command::{Applied, Command, Entry};
use crate::error::{Error, Refusal, Result};
use crate::keyspace::Keyspace;
use crate::pending::Pending;
use crate::request::{KeyValue, Op, OpResponse, TxnRequest, TxnResponse};
use crate::rows::Rows;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// A keyspace from behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// The newest applied revision.
    pub applied: i64,
    /// The newest applied compacted revision.
    pub compacted: i64,
    /// The newest applied floor of each shard, without the compacted revision.
    pub floors: Vec<i64>,
    /// Those that anybody may know of.
    pub floors_shown: Vec<i64>,
    /// The history hash as of what is applied.
    pub history: u128,
    /// Requests that wait for room.
    pub line: usize,
    /// Everything applied is durable.
    pub is_durable: bool,
    /// The sweep has nothing to do.
    pub is_swept: bool,
    /// Dead rows that are left in their leaves.
    pub lingering: BTreeSet<(usize, i64, u32)>,
}

/// Rows by shard and revision; None is a tombstone.
pub type StoredRows = BTreeMap<(usize, i64, u32), Option<KeyValue>>;

impl Keyspace {
    /// Looks at it from behind.
    pub fn probe(&self) -> Probe {
        let core = self.core();
        let sweep = core.sweep.lock();
        let lingering = sweep
            .lingering
            .iter()
            .enumerate()
            .flat_map(|(shard, of_shard)| of_shard.rows().map(move |at| (shard, at.main.cast_signed(), at.sub)));
        let lingering = lingering.collect();
        drop(sweep);
        let writer = core.writer.lock();
        Probe {
            applied: writer.state.main.cast_signed(),
            compacted: writer.state.compacted,
            floors: writer.state.floors.iter().map(|floor| floor.cast_signed()).collect(),
            floors_shown: core.own_floors(),
            history: writer.state.history,
            line: writer.line.len(),
            is_durable: core.store.durable() >= writer.last,
            is_swept: !core.wants_sweep(),
            lingering,
        }
    }

    /// Every row that its shards hold, whoever may see it.
    ///
    /// # Errors
    /// If one cannot be read.
    pub fn stored_rows(&self) -> Result<StoredRows> {
        let mut found = StoredRows::new();
        let core = self.core();
        for shard in 0..core.shards.len() {
            let mut rows = Rows::of_shards(&core, vec![shard], 0, u64::MAX);
            while let Some(row) = rows.next_row()? {
                let kv = (!row.tombstone).then_some(row.kv);
                found.insert((shard, row.at.main.cast_signed(), row.at.sub), kv);
            }
        }
        Ok(found)
    }

    /// Its Volatile shards' files.
    pub fn volatile_files(&self) -> BTreeSet<std::path::PathBuf> {
        let shards = self.status().shards.into_iter().filter(|shard| shard.durability == "volatile");
        shards.map(|shard| shard.file).collect()
    }

    /// Hands in a compaction whose answer waits until it is through.
    pub fn submit_physical(&self, revision: i64) -> Answer {
        Answer::new(self.compact(revision, true).into_pending(), |at| Ok(Applied::Revision(at)))
    }

    /// Hands in a command, under an index if there is a log above.
    pub fn submit(&self, command: &Command, index: Option<u64>) -> Answer {
        let txn =
            |revision, response| Applied::Txn(TxnResponse { revision, succeeded: true, responses: vec![response] });
        if let Some(index) = index {
            let entry = Entry { index, command: command.clone() };
            return Answer::new(self.apply(vec![entry]), |mut done| done.pop().unwrap_or(Ok(Applied::Done)));
        }
        match command.clone() {
            Command::Op(Op::Put(put)) => {
                Answer::new(self.put(put), move |done| Ok(txn(done.revision, OpResponse::Put(done))))
            }
            Command::Op(Op::Delete(delete)) => {
                Answer::new(self.delete_range(delete), move |done| Ok(txn(done.revision, OpResponse::Delete(done))))
            }
            Command::Op(Op::Txn(request)) => Answer::new(self.txn(request), |done| Ok(Applied::Txn(done))),
            Command::Op(op) => {
                let request = TxnRequest { success: vec![op], ..TxnRequest::default() };
                Answer::new(self.txn(request), |done| Ok(Applied::Txn(done)))
            }
            Command::Compact(revision) => {
                Answer::new(self.compact(revision, false).into_pending(), |at| Ok(Applied::Revision(at)))
            }
            Command::CompactShard { shard, revision } => {
                Answer::new(self.compact_shard(&shard, revision).into_pending(), |at| Ok(Applied::Revision(at)))
            }
            Command::LeaseGrant { id, ttl } => Answer::new(self.lease_grant(id, ttl), |done| Ok(Applied::Lease(done))),
            Command::LeaseRevoke(id) => Answer::new(self.lease_revoke(id), |at| Ok(Applied::Revision(at))),
            Command::Table(edits) => Answer::new(self.table_write(edits), |()| Ok(Applied::Done)),
            Command::LeaseCheckpoint(_) | Command::Nothing => {
                Answer::new(self.table_write(Vec::new()), |()| Ok(Applied::Done))
            }
        }
    }
}

trait Waits {
    fn outcome(&self) -> Option<Result<()>>;
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Applied>>;
}

struct Waiting<T, F> {
    pending: Pending<T>,
    map: F,
}

impl<T, F: Fn(T) -> Result<Applied>> Waits for Waiting<T, F> {
    fn outcome(&self) -> Option<Result<()>> {
        self.pending.outcome()
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Applied>> {
        Pin::new(&mut self.pending).poll(cx).map(|done| done.and_then(&self.map))
    }
}

/// The answer to a command: when it was evaluated, and when it is given.
pub struct Answer(Box<dyn Waits>);

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Answer").field(&self.0.outcome()).finish()
    }
}

impl Answer {
    fn new<T: 'static>(pending: Pending<T>, map: impl Fn(T) -> Result<Applied> + 'static) -> Self {
        Answer(Box::new(Waiting { pending, map }))
    }

    /// What became of the command, if it was evaluated; of one with an index whether it was taken.
    pub fn outcome(&self) -> Option<Result<()>> {
        self.0.outcome()
    }

    /// The answer, if it is given.
    pub fn poll(&mut self) -> Option<Result<Applied>> {
        match self.0.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(done) => Some(done),
            Poll::Pending => None,
        }
    }
}

/// True if the error says that nothing was written because of the disk or of time, not of the request.
pub fn is_pressed(error: &Error) -> bool {
    use Refusal::{Closed, DiskFull, NoSpace, TooManyRequests};
    matches!(error, Error::Refused(NoSpace | DiskFull | TooManyRequests | Closed) | Error::Storage(_))
}
