//! polybolt as a library: default options, routes for Kubernetes.

use crate::measure::now;
use crate::peer::{Commit, Got, List, Mode, MvccPeer, Next, Pair, Result, Row, Session};
use bytes::Bytes;
use polybolt::{
    Compare, CompareOp, CompareTarget, DeleteRequest, Durability, Engine, EventKind, KeyValueRef, Keyspace, Op, Options,
    PutRequest, RangeRequest, Routes, Span, TxnRequest, WatchItem, WatchRequest,
};
use std::cell::Cell;
use std::path::Path;
use std::time::Duration;

struct Polybolt {
    engine: Engine,
    keyspace: Keyspace,
}

/// Opens it. What peers do every 100 ms or 10,000 operations it does in `Batch`.
pub fn with(dir: &Path, mode: Mode, body: &mut dyn FnMut(&dyn MvccPeer) -> Result<()>) -> Result<()> {
    let durability = match mode {
        Mode::Sync => Durability::Sync,
        Mode::Batch => Durability::Batch { interval: Duration::from_millis(100), limit: 10_000 },
    };
    let engine = Engine::open(dir, Options { durability, ..Options::default() })?;
    let keyspace = match engine.keyspaces().is_empty() {
        true => engine.create_keyspace("default", Routes::kubernetes())?,
        false => engine.keyspace("default")?,
    };
    let peer = Polybolt { engine, keyspace };
    body(&peer)?;
    drop(peer.keyspace);
    Ok(peer.engine.close()?)
}

fn row(kv: KeyValueRef<'_>) -> Row<'_> {
    Row {
        key: kv.key,
        created: kv.create_revision.cast_unsigned(),
        modified: kv.mod_revision.cast_unsigned(),
        version: kv.version.cast_unsigned(),
        value: kv.value,
    }
}

fn span(span: crate::peer::Span<'_>) -> Span {
    let mut start = span.start.to_vec();
    if span.after {
        start.push(0);
    }
    Span::range(start, span.end.to_vec())
}

impl MvccPeer for Polybolt {
    fn get(&self, key: &[u8]) -> Result<Option<Got>> {
        let mut response = self.keyspace.range(&RangeRequest::new(Span::key(Bytes::copy_from_slice(key))))?;
        Ok(response.kvs.pop().map(|kv| Got {
            created: kv.create_revision.cast_unsigned(),
            modified: kv.mod_revision.cast_unsigned(),
            version: kv.version.cast_unsigned(),
            value: kv.value,
        }))
    }

    fn list(&self, list: List<'_>, visit: &mut dyn FnMut(Row<'_>)) -> Result<u64> {
        let mut request = RangeRequest::new(span(list.span));
        request.revision = list.at.cast_signed();
        request.count_only = list.limit == 0;
        request.limit = i64::try_from(list.limit).unwrap_or(0);
        if request.count_only {
            return Ok(self.keyspace.range(&request)?.count.cast_unsigned());
        }
        let mut stream = self.keyspace.range_stream(&request)?;
        while let Some(shown) = stream.lend(&mut |kv| visit(row(kv))) {
            shown?;
        }
        Ok(stream.total().cast_unsigned())
    }

    fn history(&self, from: u64, visit: &mut dyn FnMut(Row<'_>)) -> Result<()> {
        let request = WatchRequest {
            span: Span::prefix(""),
            start_revision: from.cast_signed(),
            no_put: false,
            no_delete: false,
            prev_kv: false,
        };
        let upto = self.keyspace.revision();
        let mut watcher = self.keyspace.watch(request)?;
        let mut seen = from.cast_signed() - 1;
        while seen < upto {
            match watcher.recv()? {
                Some(WatchItem::Events { events, .. }) => {
                    for event in &events {
                        seen = event.kv().mod_revision;
                        let tombstone = event.kind() == EventKind::Delete;
                        let version = if tombstone { 0 } else { event.kv().version.cast_unsigned() };
                        visit(Row { version, ..row(event.kv().lent()) });
                    }
                }
                other => return Err(format!("the watcher ended: {other:?}").into()),
            }
        }
        Ok(())
    }

    fn session(&self, commit: Commit, step: &mut dyn FnMut(&mut dyn Session) -> Result<Next>) -> Result<()> {
        let mut writing = Writing { keyspace: &self.keyspace };
        while step(&mut writing)? != Next::Done {}
        if commit == Commit::Batch { self.flush() } else { Ok(()) }
    }

    fn flush(&self) -> Result<()> {
        Ok(self.engine.flush()?)
    }

    fn tasks<'a>(&self, tasks: usize, time: Duration, pair: &dyn Fn(usize) -> Pair<'a>) -> Result<Option<u64>> {
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        let (begun, done) = (now(), Cell::new(0));
        let task = |task| {
            let done = &done;
            async move {
                let mut at = task;
                while begun.elapsed() < time {
                    let Pair { key, value } = pair(at);
                    self.keyspace.put(request(key, value)).await?;
                    done.set(done.get() + 1);
                    at += tasks;
                }
                Ok::<(), polybolt::Error>(())
            }
        };
        let outcomes = runtime.block_on(futures_util::future::join_all((0..tasks).map(task)));
        outcomes.into_iter().collect::<Result<(), _>>()?;
        Ok(Some(done.get()))
    }

    fn compact(&self, revision: u64) -> Result<()> {
        self.keyspace.compact(revision.cast_signed(), true).wait()?;
        Ok(())
    }

    fn revision(&self) -> Result<u64> {
        Ok(self.keyspace.revision().cast_unsigned())
    }

    fn syncs(&self) -> Option<u64> {
        Some(self.engine.stats().sync_calls)
    }

    fn groups(&self) -> bool {
        true
    }
}

struct Writing<'a> {
    keyspace: &'a Keyspace,
}

fn request(key: &[u8], value: &[u8]) -> PutRequest {
    PutRequest::new(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value))
}

impl Session for Writing<'_> {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<u64> {
        Ok(self.keyspace.put(request(key, value)).wait()?.revision.cast_unsigned())
    }

    fn delete(&mut self, key: &[u8]) -> Result<u64> {
        let span = Span::key(Bytes::copy_from_slice(key));
        let response = self.keyspace.delete_range(DeleteRequest { span, prev_kv: false }).wait()?;
        if response.deleted == 1 {
            Ok(response.revision.cast_unsigned())
        } else {
            Err("a key to delete is not there".into())
        }
    }

    fn compare_and_put(&mut self, key: &[u8], expected: u64, value: &[u8]) -> Result<Option<u64>> {
        let span = Span::key(Bytes::copy_from_slice(key));
        let guard =
            Compare { span: span.clone(), target: CompareTarget::Mod(expected.cast_signed()), op: CompareOp::Equal };
        let response = self.keyspace.txn(TxnRequest {
            compare: vec![guard],
            success: vec![Op::Put(request(key, value))],
            failure: vec![Op::Range(RangeRequest::new(span))],
        });
        let response = response.wait()?;
        Ok(response.succeeded.then_some(response.revision.cast_unsigned()))
    }
}
