//! One server of the two, and what its watchers have received.

use polybolt_frontend::proto::etcdserverpb as pb;
use polybolt_frontend::proto::etcdserverpb::kv_client::KvClient;
use polybolt_frontend::proto::etcdserverpb::lease_client::LeaseClient;
use polybolt_frontend::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use polybolt_frontend::proto::etcdserverpb::watch_client::WatchClient;
use polybolt_frontend::proto::mvccpb::Event;
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

/// How long an answer may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(8);

/// An answer without who gave it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Answer {
    Range(pb::RangeResponse),
    Put(pb::PutResponse),
    Delete(pb::DeleteRangeResponse),
    Txn(pb::TxnResponse),
    Compact(pb::CompactionResponse),
    Grant(pb::LeaseGrantResponse),
    Revoke(pb::LeaseRevokeResponse),
    KeepAlive(pb::LeaseKeepAliveResponse),
    TimeToLive(pb::LeaseTimeToLiveResponse),
    Leases(pb::LeaseLeasesResponse),
    HashKv(pb::HashKvResponse),
    Alarm(pb::AlarmResponse),
    Watch(pb::WatchResponse),
    Defragment(pb::DefragmentResponse),
    Error(Code, String),
}

macro_rules! answers {
    ($($name:ident: $response:ty),*) => {
        $(impl From<$response> for Answer {
            fn from(mut response: $response) -> Answer {
                if let Some(header) = &mut response.header {
                    *header = pb::ResponseHeader { revision: header.revision, ..Default::default() };
                }
                Answer::$name(response)
            }
        })*

        impl Answer {
            /// The revision in its header; 0 if there is none.
            pub(crate) fn revision(&self) -> i64 {
                match self {
                    $(Answer::$name(response) => response.header.map_or(0, |header| header.revision),)*
                    Answer::Error(..) => 0,
                }
            }
        }
    };
}

answers!(
    Range: pb::RangeResponse,
    Put: pb::PutResponse,
    Delete: pb::DeleteRangeResponse,
    Txn: pb::TxnResponse,
    Compact: pb::CompactionResponse,
    Grant: pb::LeaseGrantResponse,
    Revoke: pb::LeaseRevokeResponse,
    KeepAlive: pb::LeaseKeepAliveResponse,
    TimeToLive: pb::LeaseTimeToLiveResponse,
    Leases: pb::LeaseLeasesResponse,
    HashKv: pb::HashKvResponse,
    Alarm: pb::AlarmResponse,
    Watch: pb::WatchResponse,
    Defragment: pb::DefragmentResponse
);

fn answer<T: Into<Answer>>(result: Result<Response<T>, Status>) -> Answer {
    match result {
        Ok(response) => response.into_inner().into(),
        Err(status) => Answer::Error(status.code(), status.message().to_owned()),
    }
}

/// Clients of one server.
pub(crate) struct Side {
    kv: KvClient<Channel>,
    lease: LeaseClient<Channel>,
    maintenance: MaintenanceClient<Channel>,
    /// The watchers of the sequence.
    pub(crate) watches: Watches,
    /// One that sees everything.
    pub(crate) all: Watches,
}

impl Side {
    pub(crate) async fn connect(url: &str) -> Side {
        let channel = Channel::from_shared(url.to_owned()).unwrap().connect().await.unwrap();
        let watch = WatchClient::new(channel.clone());
        let mut all = Watches::open(&watch);
        let everything = pb::WatchCreateRequest {
            key: vec![0].into(),
            range_end: vec![0].into(),
            prev_kv: true,
            ..Default::default()
        };
        assert!(matches!(all.create(everything).await, Answer::Watch(created) if created.created));
        Side {
            kv: KvClient::new(channel.clone()),
            lease: LeaseClient::new(channel.clone()),
            maintenance: MaintenanceClient::new(channel),
            watches: Watches::open(&watch),
            all,
        }
    }

    pub(crate) async fn range(&mut self, request: pb::RangeRequest) -> Answer {
        answer(self.kv.range(request).await)
    }

    pub(crate) async fn put(&mut self, request: pb::PutRequest) -> Answer {
        answer(self.kv.put(request).await)
    }

    pub(crate) async fn delete(&mut self, request: pb::DeleteRangeRequest) -> Answer {
        answer(self.kv.delete_range(request).await)
    }

    pub(crate) async fn txn(&mut self, request: pb::TxnRequest) -> Answer {
        answer(self.kv.txn(request).await)
    }

    pub(crate) async fn compact(&mut self, request: pb::CompactionRequest) -> Answer {
        answer(self.kv.compact(request).await)
    }

    pub(crate) async fn grant(&mut self, request: pb::LeaseGrantRequest) -> Answer {
        answer(self.lease.lease_grant(request).await)
    }

    pub(crate) async fn revoke(&mut self, id: i64) -> Answer {
        answer(self.lease.lease_revoke(pb::LeaseRevokeRequest { id }).await)
    }

    pub(crate) async fn keep_alive(&mut self, id: i64) -> Answer {
        let requests = tokio_stream::once(pb::LeaseKeepAliveRequest { id });
        match self.lease.lease_keep_alive(requests).await {
            Ok(answers) => match answers.into_inner().message().await {
                Ok(first) => first.unwrap().into(),
                Err(status) => Answer::Error(status.code(), status.message().to_owned()),
            },
            Err(status) => Answer::Error(status.code(), status.message().to_owned()),
        }
    }

    pub(crate) async fn time_to_live(&mut self, request: pb::LeaseTimeToLiveRequest) -> Answer {
        let mut answer = answer(self.lease.lease_time_to_live(request).await);
        if let Answer::TimeToLive(response) = &mut answer {
            // In no order (LSE-9).
            response.keys.sort();
        }
        answer
    }

    pub(crate) async fn leases(&mut self) -> Answer {
        answer(self.lease.lease_leases(pb::LeaseLeasesRequest {}).await)
    }

    pub(crate) async fn hash_kv(&mut self, revision: i64) -> Answer {
        let mut answer = answer(self.maintenance.hash_kv(pb::HashKvRequest { revision }).await);
        if let Answer::HashKv(response) = &mut answer {
            // A field of 3.6.
            response.hash_revision = 0;
        }
        answer
    }

    pub(crate) async fn alarm(&mut self, request: pb::AlarmRequest) -> Answer {
        let mut answer = answer(self.maintenance.alarm(request).await);
        if let Answer::Alarm(response) = &mut answer {
            // In no order (MNT-5).
            response.alarms.sort_by_key(|alarm| (alarm.member_id, alarm.alarm));
        }
        answer
    }

    pub(crate) async fn defragment(&mut self) -> Answer {
        answer(self.maintenance.defragment(pb::DefragmentRequest {}).await)
    }
}

/// A watch stream and what came over it.
pub(crate) struct Watches {
    sender: mpsc::Sender<pb::WatchRequest>,
    responses: mpsc::Receiver<Result<pb::WatchResponse, Status>>,
    created: VecDeque<pb::WatchResponse>,
    canceled: BTreeMap<i64, pb::WatchResponse>,
    progress: Vec<i64>,
    events: BTreeMap<i64, Received>,
}

#[derive(Debug, Default)]
struct Received {
    events: Vec<Event>,
    /// The last response said that more of it follows.
    fragment: bool,
}

impl Watches {
    fn open(client: &WatchClient<Channel>) -> Watches {
        let (sender, receiver) = mpsc::channel(16);
        let (forward, responses) = mpsc::channel(16);
        let mut client = client.clone();
        // etcd sends no headers before its first response.
        tokio::spawn(async move {
            match client.watch(ReceiverStream::new(receiver)).await {
                Ok(responses) => {
                    let mut responses = responses.into_inner();
                    while let Some(response) = responses.message().await.transpose() {
                        if forward.send(response).await.is_err() {
                            return;
                        }
                    }
                }
                Err(status) => drop(forward.send(Err(status)).await),
            }
        });
        let (created, progress) = (VecDeque::new(), Vec::new());
        Watches { sender, responses, created, canceled: BTreeMap::new(), progress, events: BTreeMap::new() }
    }

    async fn send(&self, request: pb::watch_request::RequestUnion) {
        self.sender.send(pb::WatchRequest { request_union: Some(request) }).await.unwrap();
    }

    /// Takes in one response; false if none came in time, or what is wrong with it.
    async fn receive(&mut self, limit: Duration) -> Result<bool, String> {
        let response = match tokio::time::timeout(limit, self.responses.recv()).await {
            Err(_) => return Ok(false),
            Ok(None) => return Err("the watch stream ended".into()),
            Ok(Some(response)) => response.map_err(|status| format!("the watch stream ended: {status}"))?,
        };
        let (id, revision) = (response.watch_id, response.header.as_ref().map_or(0, |header| header.revision));
        if response.created {
            if !response.canceled {
                self.events.insert(id, Received::default());
            }
            self.created.push_back(response);
        } else if response.canceled {
            if self.canceled.insert(id, response).is_some() {
                return Err(format!("watcher {id} was canceled twice (WCH-27)"));
            }
        } else if response.events.is_empty() {
            self.progress.push(revision);
        } else {
            let Some(received) = self.events.get_mut(&id) else {
                return Err(format!("events of watcher {id}, which was not created (WCH-2)"));
            };
            let main = |event: &Event| event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
            let first = response.events.first().map_or(0, main);
            if let Some(last) = received.events.last()
                && (main(last) > first || (main(last) == first && !received.fragment))
            {
                return Err(format!("watcher {id}: revision {first} comes in parts, or late (WCH-14, WCH-15)"));
            }
            if response.events.last().map_or(0, main) > revision {
                return Err(format!("watcher {id}: the header says {revision}, below its events (WCH-20)"));
            }
            received.fragment = response.fragment;
            received.events.extend(response.events);
        }
        Ok(true)
    }

    /// Receives until `done`; what it was waiting for if that takes too long.
    async fn until<T>(&mut self, what: &str, mut done: impl FnMut(&mut Watches) -> Option<T>) -> Result<T, String> {
        let limit = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = done(self) {
                return Ok(found);
            }
            let left = limit.saturating_duration_since(Instant::now());
            if !self.receive(left).await? {
                return Err(format!("no {what} came"));
            }
        }
    }

    /// Creates a watcher.
    pub(crate) async fn create(&mut self, request: pb::WatchCreateRequest) -> Answer {
        self.send(pb::watch_request::RequestUnion::CreateRequest(request)).await;
        match self.until("created response", |watches| watches.created.pop_front()).await {
            Ok(created) => created.into(),
            Err(text) => Answer::Error(Code::Aborted, text),
        }
    }

    /// Cancels a watcher; one that is not there is not answered (WCH-11).
    pub(crate) async fn cancel(&mut self, watch_id: i64) {
        self.send(pb::watch_request::RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id })).await;
    }

    /// The response that ends a watcher.
    pub(crate) async fn canceled(&mut self, id: i64) -> Answer {
        match self.until("cancel", |watches| watches.canceled.remove(&id)).await {
            Ok(canceled) => {
                self.events.remove(&id);
                canceled.into()
            }
            Err(text) => Answer::Error(Code::Aborted, text),
        }
    }

    /// A progress response for all watchers, asked for until it comes.
    pub(crate) async fn progress(&mut self) -> Result<i64, String> {
        self.progress.clear();
        let limit = Instant::now() + PATIENCE;
        while Instant::now() < limit {
            let request = pb::WatchProgressRequest {};
            self.send(pb::watch_request::RequestUnion::ProgressRequest(request)).await;
            let again = Instant::now() + Duration::from_millis(150);
            while Instant::now() < again {
                self.receive(again.saturating_duration_since(Instant::now())).await?;
                if let Some(revision) = self.progress.pop() {
                    return Ok(revision);
                }
            }
        }
        Err("no progress came".into())
    }

    /// Waits until a watcher has this many events; takes them. Those to `skip` do not count.
    pub(crate) async fn take(
        &mut self,
        id: i64,
        count: usize,
        skip: impl Fn(&Event) -> bool,
    ) -> Result<Vec<Event>, String> {
        let enough = |watches: &mut Watches| {
            let received = watches.events.get_mut(&id)?;
            received.events.retain(|event| !skip(event));
            (received.events.len() >= count).then(|| std::mem::take(&mut received.events))
        };
        match self.until("more events", enough).await {
            Ok(events) => Ok(events),
            Err(text) => {
                let have = self.events.get(&id).map_or(0, |received| received.events.len());
                Err(format!("watcher {id}: {text}: {have} of {count} are there"))
            }
        }
    }

    /// Waits until the first watcher has an event of this revision; takes all it has.
    pub(crate) async fn take_to(&mut self, revision: i64) -> Result<Vec<Event>, String> {
        let reached = |watches: &mut Watches| {
            let received = watches.events.get_mut(&0)?;
            let last = received.events.last()?.kv.as_ref()?.mod_revision;
            (last >= revision && !received.fragment).then(|| std::mem::take(&mut received.events))
        };
        self.until(&format!("event of revision {revision}"), reached).await
    }

    /// What comes without being waited for.
    pub(crate) async fn drain(&mut self, limit: Duration) -> Result<Vec<(i64, Vec<Event>)>, String> {
        while self.receive(limit).await? {}
        Ok(self.events.iter().map(|(id, received)| (*id, received.events.clone())).collect())
    }
}
