//! Standing in line under a prefix, which locks and elections are made of: whoever's key was created first
//! is first; the others wait for those before them to go, by deletion or by the end of their lease.

use crate::convert;
use crate::server::Server;
use crate::users::Caller;
use bytes::Bytes;
use polybolt::{
    Compare, CompareOp, CompareTarget, EventKind, KeyValue, Op, OpResponse, PutRequest, RangeRequest, SortOrder,
    SortTarget, Span, TxnRequest, WatchItem, WatchRequest,
};
use tonic::Status;

/// The time to live of a lease that is granted for somebody who brings none, in seconds.
const SESSION_TTL: i64 = 60;

/// A place in line.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) key: Bytes,
    /// The revision at which the key was created; tells this place from a later one under the same key.
    pub(crate) created: i64,
    pub(crate) lease: i64,
}

/// The prefix of a line.
pub(crate) fn prefix(name: &[u8]) -> Bytes {
    let mut prefix = name.to_vec();
    prefix.push(b'/');
    prefix.into()
}

/// A guard: the key was created at this revision; 0 is that there is none.
pub(crate) fn created_at(key: &Bytes, revision: i64) -> Compare {
    Compare { span: Span::key(key.clone()), target: CompareTarget::Create(revision), op: CompareOp::Equal }
}

impl Server {
    /// A place in the line of `name`: a new one, or the one that the lease has there already. Second, the
    /// value that is there.
    pub(crate) async fn enter(
        &self,
        caller: &Caller,
        name: &[u8],
        lease: i64,
        value: Bytes,
    ) -> Result<(Place, Bytes), Status> {
        self.check_alarms(true)?;
        caller.check_read(&Span::prefix(prefix(name)))?;
        let lease = match lease {
            0 => match self.keyspace.lease_grant(0, SESSION_TTL).await {
                Ok(granted) => granted.id,
                Err(error) => return Err(self.refuse(error).await),
            },
            lease => lease,
        };
        let mut key = prefix(name).to_vec();
        key.extend_from_slice(format!("{:x}", lease.cast_unsigned()).as_bytes());
        let key = Bytes::from(key);
        let request = TxnRequest {
            compare: vec![created_at(&key, 0)],
            success: vec![Op::Put(PutRequest { lease, ..PutRequest::new(key.clone(), value.clone()) })],
            failure: vec![Op::Range(RangeRequest::new(Span::key(key.clone())))],
        };
        caller.check_txn(&request, &self.keyspace)?;
        let response = match self.keyspace.txn(request).await {
            Ok(response) => response,
            Err(error) => return Err(self.refuse(error).await),
        };
        match response.responses.into_iter().next() {
            Some(OpResponse::Range(range)) => match range.kvs.into_iter().next() {
                Some(kv) => Ok((Place { key, created: kv.create_revision, lease }, kv.value)),
                None => Err(Status::internal("a key that was just there is gone")),
            },
            _ => Ok((Place { key, created: response.revision, lease }, value)),
        }
    }

    /// Waits until nobody in the line is before `place`; the revision at which that was so.
    pub(crate) async fn wait_first(&self, name: &[u8], place: &Place) -> Result<i64, Status> {
        let failed = |error: polybolt::Error| convert::status(&error);
        loop {
            let before = RangeRequest {
                max_create_revision: place.created - 1,
                sort_order: SortOrder::Descend,
                sort_target: SortTarget::Create,
                limit: 1,
                ..RangeRequest::new(Span::prefix(prefix(name)))
            };
            let found = self.keyspace.range(&before).map_err(failed)?;
            let Some(last) = found.kvs.into_iter().next() else {
                return Ok(found.revision);
            };
            self.wait_deleted(last.key, found.revision + 1).await?;
        }
    }

    /// Waits until a key is deleted at `from` or later.
    pub(crate) async fn wait_deleted(&self, key: Bytes, from: i64) -> Result<(), Status> {
        let failed = |error: polybolt::Error| convert::status(&error);
        let span = Span::key(key);
        let request = WatchRequest { span, start_revision: from, no_put: true, no_delete: false, prev_kv: false };
        let mut watcher = self.keyspace.watch(request).map_err(failed)?;
        loop {
            let item = tokio::select! {
                () = self.stop.cancelled() => return Err(Status::unavailable("etcdserver: server stopped")),
                item = watcher.next() => item.map_err(failed)?,
            };
            match item {
                Some(WatchItem::Events { events, .. })
                    if events.iter().any(|event| event.kind() == EventKind::Delete) =>
                {
                    return Ok(());
                }
                Some(WatchItem::Events { .. }) => {}
                // Whoever asks looks again.
                Some(WatchItem::Compacted { .. }) | None => return Ok(()),
            }
        }
    }

    /// The first in a line, and the revision at which it was.
    pub(crate) fn first(&self, name: &[u8]) -> Result<(Option<KeyValue>, i64), Status> {
        let request = RangeRequest {
            sort_order: SortOrder::Ascend,
            sort_target: SortTarget::Create,
            limit: 1,
            ..RangeRequest::new(Span::prefix(prefix(name)))
        };
        let found = self.keyspace.range(&request).map_err(|error| convert::status(&error))?;
        Ok((found.kvs.into_iter().next(), found.revision))
    }

    /// True if a place is still held.
    pub(crate) fn holds(&self, place: &Place) -> Result<bool, Status> {
        let found = self.keyspace.range(&RangeRequest::new(Span::key(place.key.clone())));
        let found = found.map_err(|error| convert::status(&error))?;
        Ok(found.kvs.first().is_some_and(|kv| kv.create_revision == place.created))
    }

    /// Gives a place up, as long as it is held.
    pub(crate) async fn leave(&self, place: &Place) -> Result<i64, Status> {
        let delete = polybolt::DeleteRequest { span: Span::key(place.key.clone()), prev_kv: false };
        let request = TxnRequest {
            compare: vec![created_at(&place.key, place.created)],
            success: vec![Op::Delete(delete)],
            failure: Vec::new(),
        };
        match self.keyspace.txn(request).await {
            Ok(response) => Ok(response.revision),
            Err(error) => Err(self.refuse(error).await),
        }
    }

    /// Leaves if the caller goes before its turn came.
    pub(crate) fn leave_unless_kept(self: &std::sync::Arc<Self>, place: &Place) -> Waiting {
        Waiting { server: std::sync::Arc::clone(self), place: Some(place.clone()) }
    }
}

/// A place whose owner may go away while it waits.
#[derive(Debug)]
pub(crate) struct Waiting {
    server: std::sync::Arc<Server>,
    place: Option<Place>,
}

impl Waiting {
    /// Its turn has come.
    pub(crate) fn keep(mut self) {
        self.place = None;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(place) = self.place.take() {
            let server = std::sync::Arc::clone(&self.server);
            tokio::spawn(async move { drop(server.leave(&place).await) });
        }
    }
}
