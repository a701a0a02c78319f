//! Clients that count in keys of several shards at once, and what a server that was killed has to have of it.

use super::{Served, text};
use polybolt_frontend::proto::etcdserverpb as pb;
use polybolt_frontend::proto::etcdserverpb::kv_client::KvClient;
use polybolt_frontend::proto::v1::inspect_client::InspectClient;
use polybolt_frontend::proto::v1::{ShardsRequest, ShardsResponse};
use tonic::transport::Channel;

pub(crate) const PREFIXES: [&str; 3] = ["/registry/pods/", "/registry/events/", "/registry/other/"];
const VALUE_BYTES: usize = 500;

pub(crate) async fn channel(served: &Served) -> Channel {
    Channel::from_shared(served.url()).unwrap().connect().await.unwrap()
}

pub(crate) async fn inspect(channel: &Channel) -> ShardsResponse {
    InspectClient::new(channel.clone()).shards(ShardsRequest {}).await.unwrap().into_inner()
}

/// Everything at a revision.
pub(crate) fn all(revision: i64) -> pb::RangeRequest {
    pb::RangeRequest { key: "/".into(), range_end: "0".into(), revision, ..Default::default() }
}

pub(crate) fn put(key: String, value: String) -> pb::RequestOp {
    let put = pb::PutRequest { key: key.into(), value: value.into(), ..Default::default() };
    pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put)) }
}

fn delete(key: String) -> pb::RequestOp {
    let delete = pb::DeleteRangeRequest { key: key.into(), ..Default::default() };
    pb::RequestOp { request: Some(pb::request_op::Request::RequestDeleteRange(delete)) }
}

/// The names of so many objects under each prefix.
pub(crate) fn objects(each: usize) -> Vec<String> {
    (0..each).flat_map(|n| PREFIXES.map(|prefix| format!("{prefix}object-{n:06}"))).collect()
}

/// Puts these, a hundred in one txn.
pub(crate) async fn put_all(channel: &Channel, names: &[String]) {
    send(channel, names, |name| put(name, "v".repeat(VALUE_BYTES))).await;
}

/// Deletes these.
pub(crate) async fn delete_all(channel: &Channel, names: &[String]) {
    send(channel, names, delete).await;
}

async fn send(channel: &Channel, names: &[String], op: impl Fn(String) -> pb::RequestOp) {
    let mut kv = KvClient::new(channel.clone());
    for names in names.chunks(100) {
        let success = names.iter().map(|name| op(name.clone())).collect();
        kv.txn(pb::TxnRequest { success, ..Default::default() }).await.unwrap();
    }
}

/// Clients that count, and how far each is.
pub(crate) struct Counters(pub(crate) Vec<u64>);

impl Counters {
    pub(crate) fn new(clients: usize) -> Self {
        Counters(vec![0; clients])
    }

    /// Begins to count, until the server is gone; what was acknowledged last.
    pub(crate) fn begin(&self, channel: &Channel) -> Vec<tokio::task::JoinHandle<u64>> {
        let clients = self.0.iter().enumerate();
        clients.map(|(client, from)| tokio::spawn(count(channel.clone(), client, *from))).collect()
    }

    /// Nothing that was acknowledged is lost, and nothing torn.
    pub(crate) async fn check(&mut self, channel: &Channel, counting: Vec<tokio::task::JoinHandle<u64>>) {
        let mut kv = KvClient::new(channel.clone());
        for (client, task) in counting.into_iter().enumerate() {
            let acknowledged = task.await.unwrap();
            let mut found = Vec::new();
            for prefix in PREFIXES {
                let key = format!("{prefix}count-{client}").into();
                let kvs = kv.range(pb::RangeRequest { key, ..Default::default() }).await.unwrap().into_inner().kvs;
                found.push(kvs.first().map_or(0, |kv| text(&kv.value).parse::<u64>().unwrap()));
            }
            assert!(found.iter().all(|number| *number == found[0]), "torn: {found:?}");
            assert!(found[0] >= acknowledged && found[0] <= acknowledged + 1, "{found:?} for {acknowledged}");
            self.0[client] = found[0];
        }
    }

    /// How many keys they have.
    pub(crate) fn keys(&self) -> usize {
        self.0.iter().filter(|count| **count > 0).count() * PREFIXES.len()
    }

    pub(crate) fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

/// Counts in three keys, one of each prefix, always together.
async fn count(channel: Channel, client: usize, from: u64) -> u64 {
    let mut kv = KvClient::new(channel);
    let mut acknowledged = from;
    loop {
        let next = acknowledged + 1;
        let success = PREFIXES.iter().map(|prefix| put(format!("{prefix}count-{client}"), next.to_string())).collect();
        match kv.txn(pb::TxnRequest { success, ..Default::default() }).await {
            Ok(_) => acknowledged = next,
            Err(_) => return acknowledged,
        }
    }
}
