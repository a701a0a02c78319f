//! Wire messages to the library's types and back, and errors to codes and messages.

use crate::proto::{etcdserverpb as pb, mvccpb};
use bytes::Bytes;
use polybolt::{
    Compare, CompareOp, CompareTarget, DeleteRequest, DeleteResponse, Error, KeyValue, Op, OpResponse, PutRequest,
    PutResponse, RangeRequest, RangeResponse, Refusal, SortOrder, SortTarget, Span, TxnRequest, TxnResponse,
};
use tonic::{Code, Status};

/// The code and message of an error, as etcd sends them.
pub(crate) fn status(error: &Error) -> Status {
    let code = match error {
        Error::Refused(refusal) => match refusal {
            Refusal::Compacted { .. } | Refusal::FutureRevision { .. } | Refusal::LeaseTtlTooLarge => Code::OutOfRange,
            Refusal::NoSpace | Refusal::DiskFull => Code::ResourceExhausted,
            Refusal::LeaseNotFound | Refusal::KeyspaceNotFound { .. } => Code::NotFound,
            Refusal::LeaseExists | Refusal::KeyspaceExists { .. } => Code::FailedPrecondition,
            // The backlog error is not in etcd's code table either.
            Refusal::TooManyRequests => Code::Unknown,
            Refusal::Unsupported { .. } => Code::Unimplemented,
            Refusal::Closed => return Status::unavailable("etcdserver: server stopped"),
            _ => Code::InvalidArgument,
        },
        Error::Unknown(_) => Code::Unavailable,
        Error::Storage(polybolt::StorageError::Corrupt { .. }) => Code::DataLoss,
        _ => Code::Internal,
    };
    Status::new(code, error.to_string())
}

pub(crate) fn refused(refusal: Refusal) -> Status {
    status(&Error::Refused(refusal))
}

pub(crate) fn range(request: pb::RangeRequest) -> Result<RangeRequest, Refusal> {
    if request.key.is_empty() {
        return Err(Refusal::EmptyKey);
    }
    let sort_order = match request.sort_order {
        0 => SortOrder::None,
        1 => SortOrder::Ascend,
        2 => SortOrder::Descend,
        _ => return Err(Refusal::InvalidSortOption),
    };
    let sort_target = match request.sort_target {
        0 => SortTarget::Key,
        1 => SortTarget::Version,
        2 => SortTarget::Create,
        3 => SortTarget::Mod,
        4 => SortTarget::Value,
        _ => return Err(Refusal::InvalidSortOption),
    };
    Ok(RangeRequest {
        span: Span::from_wire(request.key, request.range_end),
        limit: request.limit,
        revision: request.revision,
        sort_order,
        sort_target,
        keys_only: request.keys_only,
        count_only: request.count_only,
        min_mod_revision: request.min_mod_revision,
        max_mod_revision: request.max_mod_revision,
        min_create_revision: request.min_create_revision,
        max_create_revision: request.max_create_revision,
    })
}

pub(crate) fn put(request: pb::PutRequest) -> PutRequest {
    PutRequest {
        key: request.key,
        value: request.value,
        lease: request.lease,
        prev_kv: request.prev_kv,
        ignore_value: request.ignore_value,
        ignore_lease: request.ignore_lease,
    }
}

pub(crate) fn delete(request: pb::DeleteRangeRequest) -> DeleteRequest {
    DeleteRequest { span: Span::from_wire(request.key, request.range_end), prev_kv: request.prev_kv }
}

/// The operand that counts is the one that matches the target (TXN-9).
fn compare(compare: pb::Compare) -> Compare {
    use pb::compare::TargetUnion;
    let number =
        |matching: fn(&TargetUnion) -> Option<i64>| compare.target_union.as_ref().and_then(matching).unwrap_or(0);
    let target = match compare.target {
        0 => CompareTarget::Version(number(|union| if let TargetUnion::Version(n) = union { Some(*n) } else { None })),
        1 => CompareTarget::Create(number(
            |union| {
                if let TargetUnion::CreateRevision(n) = union { Some(*n) } else { None }
            },
        )),
        2 => CompareTarget::Mod(number(|union| if let TargetUnion::ModRevision(n) = union { Some(*n) } else { None })),
        3 => CompareTarget::Value(match &compare.target_union {
            Some(TargetUnion::Value(value)) => value.clone(),
            _ => Bytes::new(),
        }),
        4 => CompareTarget::Lease(number(|union| if let TargetUnion::Lease(n) = union { Some(*n) } else { None })),
        _ => CompareTarget::Unknown,
    };
    let op = match compare.result {
        0 => CompareOp::Equal,
        1 => CompareOp::Greater,
        2 => CompareOp::Less,
        3 => CompareOp::NotEqual,
        _ => CompareOp::Unknown,
    };
    Compare { span: Span::from_wire(compare.key, compare.range_end), target, op }
}

pub(crate) fn txn(request: pb::TxnRequest) -> TxnRequest {
    let ops = |ops: Vec<pb::RequestOp>| ops.into_iter().map(op).collect();
    TxnRequest {
        compare: request.compare.into_iter().map(compare).collect(),
        success: ops(request.success),
        failure: ops(request.failure),
    }
}

fn op(op: pb::RequestOp) -> Op {
    use pb::request_op::Request;
    match op.request {
        // An operation that asks for nothing (TXN-3).
        None => Op::Invalid(Refusal::KeyNotFound),
        Some(Request::RequestRange(request)) => range(request).map_or_else(Op::Invalid, Op::Range),
        Some(Request::RequestPut(request)) => Op::Put(put(request)),
        Some(Request::RequestDeleteRange(request)) => Op::Delete(delete(request)),
        Some(Request::RequestTxn(request)) => Op::Txn(txn(request)),
    }
}

pub(crate) fn kv(kv: KeyValue) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: kv.key,
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        value: kv.value,
        lease: kv.lease,
    }
}

/// Makes the header of a response from its revision.
pub(crate) type Header<'a> = &'a dyn Fn(i64) -> pb::ResponseHeader;

pub(crate) fn range_response(response: RangeResponse, header: Header<'_>) -> pb::RangeResponse {
    pb::RangeResponse {
        header: Some(header(response.revision)),
        kvs: response.kvs.into_iter().map(kv).collect(),
        more: response.more,
        count: response.count,
    }
}

pub(crate) fn put_response(response: PutResponse, header: Header<'_>) -> pb::PutResponse {
    pb::PutResponse { header: Some(header(response.revision)), prev_kv: response.prev_kv.map(kv) }
}

pub(crate) fn delete_response(response: DeleteResponse, header: Header<'_>) -> pb::DeleteRangeResponse {
    pb::DeleteRangeResponse {
        header: Some(header(response.revision)),
        deleted: response.deleted,
        prev_kvs: response.prev_kvs.into_iter().map(kv).collect(),
    }
}

/// Inside a txn a header has only the revision, and that of a nested txn nothing at all.
pub(crate) fn txn_response(response: TxnResponse, header: Header<'_>) -> pb::TxnResponse {
    use pb::response_op::Response;
    let bare = |revision| pb::ResponseHeader { revision, ..Default::default() };
    let op = |response| {
        let response = match response {
            OpResponse::Range(response) => Response::ResponseRange(range_response(response, &bare)),
            OpResponse::Put(response) => Response::ResponsePut(put_response(response, &bare)),
            OpResponse::Delete(response) => Response::ResponseDeleteRange(delete_response(response, &bare)),
            OpResponse::Txn(response) => Response::ResponseTxn(txn_response(response, &bare)),
        };
        pb::ResponseOp { response: Some(response) }
    };
    pb::TxnResponse {
        header: Some(header(response.revision)),
        succeeded: response.succeeded,
        responses: response.responses.into_iter().map(op).collect(),
    }
}
