//! A server that does nothing: it answers at once, with as many bytes as a store would. What the load reaches
//! against it is what its generator can do on this machine.

use crate::rows::MIXED_GROUP;
use pb::kv_server::{Kv, KvServer};
use polybolt_frontend::proto::etcdserverpb as pb;
use polybolt_frontend::proto::mvccpb::KeyValue;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

#[derive(Debug, Clone)]
struct Idle {
    kvs: Vec<KeyValue>,
}

const KEYS_MAX: usize = 1000;
const HEADER: pb::ResponseHeader = pb::ResponseHeader { cluster_id: 1, member_id: 1, revision: 1, raft_term: 1 };

type Answer<T> = Result<Response<T>, Status>;

fn unused<T>() -> Answer<T> {
    Err(Status::unimplemented("no load asks for this"))
}

#[tonic::async_trait]
impl Kv for Idle {
    type RangeStreamStream = tokio_stream::Pending<Result<pb::RangeStreamResponse, Status>>;

    async fn range(&self, request: Request<pb::RangeRequest>) -> Answer<pb::RangeResponse> {
        let pb::RangeRequest { range_end, limit, .. } = request.into_inner();
        let keys = match (range_end.is_empty(), limit) {
            (true, _) => 1,
            (false, 0) => MIXED_GROUP,
            (false, limit) => limit.cast_unsigned(),
        };
        let keys = usize::try_from(keys).unwrap_or(KEYS_MAX).min(KEYS_MAX);
        let kvs = self.kvs[..keys].to_vec();
        Ok(Response::new(pb::RangeResponse { header: Some(HEADER), kvs, more: false, count: 1 }))
    }

    async fn put(&self, _: Request<pb::PutRequest>) -> Answer<pb::PutResponse> {
        Ok(Response::new(pb::PutResponse { header: Some(HEADER), prev_kv: None }))
    }

    async fn txn(&self, _: Request<pb::TxnRequest>) -> Answer<pb::TxnResponse> {
        let put = pb::response_op::Response::ResponsePut(pb::PutResponse { header: Some(HEADER), prev_kv: None });
        let responses = vec![pb::ResponseOp { response: Some(put) }];
        Ok(Response::new(pb::TxnResponse { header: Some(HEADER), succeeded: true, responses }))
    }

    async fn range_stream(&self, _: Request<pb::RangeRequest>) -> Answer<Self::RangeStreamStream> {
        unused()
    }

    async fn delete_range(&self, _: Request<pb::DeleteRangeRequest>) -> Answer<pb::DeleteRangeResponse> {
        unused()
    }

    async fn compact(&self, _: Request<pb::CompactionRequest>) -> Answer<pb::CompactionResponse> {
        unused()
    }
}

/// Serves until it is killed.
pub(crate) async fn serve(port: u16, value_bytes: u64) -> Result<(), String> {
    let value = polybolt_benches::value(1, usize::try_from(value_bytes).unwrap_or(0)).into();
    let one = KeyValue { key: [b'k'; 56][..].to_vec().into(), value, ..KeyValue::default() };
    let mut server = Server::builder().initial_stream_window_size(1 << 20).initial_connection_window_size(16 << 20);
    let served = server.add_service(KvServer::new(Idle { kvs: vec![one; KEYS_MAX] }));
    served.serve(([127, 0, 0, 1], port).into()).await.map_err(|error| error.to_string())
}
