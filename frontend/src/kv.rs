//! The KV service.

use crate::convert;
use crate::outbox::{Held, Outbox};
use crate::proto::encoded::k_v_server::KV;
use crate::proto::encoded::{RangeResponse, RangeStreamResponse};
use crate::proto::etcdserverpb as pb;
use crate::range::{self, Answer};
use crate::server::{Server, off_thread};
use bytes::Bytes;
use polybolt::{Error, Op, RangeRequest, Refusal, SpanEnd, TxnRequest};
use prost::Message;
use std::pin::Pin;
use std::sync::Arc;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

/// The KV service of a server.
#[derive(Debug, Clone)]
pub(crate) struct KvService(pub(crate) Arc<Server>);

/// Ranges up to this limit are answered without another thread.
const SHORT_RANGE: i64 = 64;

fn is_short(request: &RangeRequest) -> bool {
    request.count_only
        || request.span.end == SpanEnd::Single
        || (request.limit > 0 && request.limit <= SHORT_RANGE && request.sort_target == polybolt::SortTarget::Key)
}

fn is_short_txn(request: &TxnRequest) -> bool {
    request.success.iter().chain(&request.failure).all(|op| match op {
        Op::Range(range) => is_short(range),
        Op::Put(_) => true,
        Op::Delete(delete) => delete.span.end == SpanEnd::Single,
        Op::Txn(txn) => is_short_txn(txn),
        Op::Invalid(_) => true,
    })
}

/// True if it puts anything in either branch (QTA-6).
fn needs_room(request: &TxnRequest) -> bool {
    request.success.iter().chain(&request.failure).any(|op| match op {
        Op::Put(_) => true,
        Op::Txn(txn) => needs_room(txn),
        _ => false,
    })
}

fn is_read_only(request: &TxnRequest) -> bool {
    request.success.iter().chain(&request.failure).all(|op| matches!(op, Op::Range(_)))
}

#[tonic::async_trait]
impl KV for KvService {
    async fn range(&self, request: Request<pb::RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        let Self(server) = self;
        let begun = Instant::now();
        let caller = server.caller(request.metadata());
        let request = convert::range(request.into_inner()).map_err(convert::refused)?;
        let caller = caller?;
        caller.check_read(&request.span)?;
        let response = if is_short(&request) {
            server.keyspace.range(&request).map(Answer::from)
        } else {
            if server.metrics.unread_bytes.get().cast_unsigned() > server.settings.unread_bytes_max {
                return Err(convert::refused(Refusal::TooManyRequests));
            }
            let keyspace = server.keyspace.clone();
            off_thread(move || range::answer(&keyspace, &request)).await?
        };
        server.metrics.ranged(begun, response.is_ok());
        server.users.check_unchanged(caller.revision())?;
        let response = response.map_err(|error| convert::status(&error))?;
        let bytes = response.kvs.iter().map(Bytes::len).sum();
        let mut response = Response::new(response.into_response(&|revision| server.header(revision)));
        response.extensions_mut().insert(Arc::new(Held::new(&server.metrics.unread_bytes, bytes)));
        Ok(response)
    }

    type RangeStreamStream = Pin<Box<dyn futures_util::Stream<Item = Result<RangeStreamResponse, Status>> + Send>>;

    async fn range_stream(
        &self,
        request: Request<pb::RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        let server = Arc::clone(&self.0);
        let begun = Instant::now();
        let caller = server.caller(request.metadata());
        let request = convert::range(request.into_inner()).map_err(convert::refused)?;
        let stream = server.keyspace.range_stream(&request);
        if let Err(error @ Error::Refused(Refusal::Unsupported { .. })) = &stream {
            return Err(convert::status(error));
        }
        let caller = caller?;
        caller.check_read(&request.span)?;
        let mut stream = stream.map_err(|error| convert::status(&error))?;
        // A stream may be slow: it holds up no change of users, but ends with it (RST-8).
        let judged_by = caller.revision();
        drop(caller);
        let place = server.metrics.range_streams.take().ok_or_else(|| convert::refused(Refusal::TooManyRequests))?;
        let (sender, receiver) = Outbox::new(&server.metrics.range_bytes);
        // What it reads may be gone by then: a client that reads nothing for so long is let go.
        let stall_max = server.engine.options().pin_age_max;
        tokio::task::spawn_blocking(move || {
            let _place = place;
            let mut rows = range::Rows::default();
            let mut kvs = Vec::new();
            let mut next = rows.chunk(&mut stream, &mut kvs);
            loop {
                if let Err(error) = server.users.check_unchanged(judged_by) {
                    drop(sender.send_within(stall_max, Err(error.into()), 0));
                    return;
                }
                let mut response = RangeResponse::default();
                match next {
                    Some(Err(error)) => {
                        drop(sender.send_within(stall_max, Err(convert::status(&error)), 0));
                        return;
                    }
                    Some(Ok(())) => response.kvs = std::mem::take(&mut kvs),
                    None => {}
                }
                // Header, more and count come with the last chunk (RST-2): look ahead.
                next = rows.chunk(&mut stream, &mut kvs);
                let last = next.is_none();
                if last {
                    response.header = Some(server.header(stream.revision()));
                    response.more = stream.more();
                    response.count = stream.total();
                }
                let chunk = RangeStreamResponse { range_response: Some(response) };
                let bytes = chunk.encoded_len();
                if sender.send_within(stall_max, Ok(chunk), bytes).is_err() || last {
                    server.metrics.ranged(begun, true);
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(receiver)))
    }

    async fn put(&self, request: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        let Self(server) = self;
        let (caller, size) = (server.caller(request.metadata()), server.check_size(request.get_ref()));
        let request = convert::put(request.into_inner());
        server.keyspace.validate_put(&request).map_err(|error| convert::status(&error))?;
        let caller = caller?;
        size?;
        server.check_alarms(true)?;
        caller.check_put(&request, &server.keyspace)?;
        let response = server.written("Put", server.keyspace.put(request)).await?;
        server.metrics.put();
        Ok(Response::new(convert::put_response(response, &|revision| server.header(revision))))
    }

    async fn delete_range(
        &self,
        request: Request<pb::DeleteRangeRequest>,
    ) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        let Self(server) = self;
        let (caller, size) = (server.caller(request.metadata()), server.check_size(request.get_ref()));
        let request = convert::delete(request.into_inner());
        server.keyspace.validate_delete(&request).map_err(|error| convert::status(&error))?;
        let caller = caller?;
        size?;
        server.check_alarms(false)?;
        caller.check_delete(&request)?;
        let (pending, _caller) = if request.span.end == SpanEnd::Single {
            (server.keyspace.delete_range(request), caller)
        } else {
            let keyspace = server.keyspace.clone();
            off_thread(move || (keyspace.delete_range(request), caller)).await?
        };
        let response = server.written("DeleteRange", pending).await?;
        server.metrics.deleted();
        Ok(Response::new(convert::delete_response(response, &|revision| server.header(revision))))
    }

    async fn txn(&self, request: Request<pb::TxnRequest>) -> Result<Response<pb::TxnResponse>, Status> {
        let Self(server) = self;
        let (caller, size) = (server.caller(request.metadata()), server.check_size(request.get_ref()));
        let request = convert::txn(request.into_inner());
        let read_only = is_read_only(&request);
        if !read_only || server.users.enabled() {
            server.keyspace.validate_txn(&request).map_err(|error| convert::status(&error))?;
        }
        let caller = caller?;
        if !read_only {
            size?;
            server.check_alarms(needs_room(&request))?;
        }
        caller.check_txn(&request, &server.keyspace)?;
        let (pending, caller) = if is_short_txn(&request) {
            (server.keyspace.txn(request), caller)
        } else {
            let keyspace = server.keyspace.clone();
            off_thread(move || (keyspace.txn(request), caller)).await?
        };
        let response = server.written("Txn", pending).await;
        if read_only {
            server.users.check_unchanged(caller.revision())?;
        }
        let response = response?;
        server.metrics.txn(&response);
        Ok(Response::new(convert::txn_response(response, &|revision| server.header(revision))))
    }

    async fn compact(
        &self,
        request: Request<pb::CompactionRequest>,
    ) -> Result<Response<pb::CompactionResponse>, Status> {
        let Self(server) = self;
        server.caller(request.metadata())?.check_root()?;
        server.check_alarms(false)?;
        let pb::CompactionRequest { revision, physical } = request.into_inner();
        let begun = Instant::now();
        let compaction = server.keyspace.compact(revision, physical);
        let watch = compaction.watch();
        match compaction.await {
            Ok(now) => {
                server.compactions.follow(watch, (revision, None), begun, server.stop.clone());
                Ok(Response::new(pb::CompactionResponse { header: Some(server.header(now)) }))
            }
            Err(error) => Err(server.refuse(error).await),
        }
    }
}
