//! The Watch service: one task per stream, which holds all its watchers.
//!
//! Each watcher has a waker of its own that puts it on the stream's ready list, so that a wake-up costs
//! what became ready, not what is watched. Everything a stream sends goes through one ordered queue,
//! so that progress never overtakes events (WCH-25).

use crate::convert;
use crate::metrics::Up;
use crate::outbox::{Gone, Outbox};
use crate::proto::encoded::WatchResponse;
use crate::proto::encoded::watch_server::Watch;
use crate::proto::etcdserverpb as pb;
use crate::server::Server;
use polybolt::run::ReadyList;
use polybolt::{Event, Refusal, Span, WatchItem, WatchRequest, Watcher};
use prost::Message;
use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

/// The Watch service of a server.
#[derive(Debug, Clone)]
pub(crate) struct WatchService(pub(crate) Arc<Server>);

/// A fragment is split where a response would be larger than the largest request and this much.
const FRAGMENT_SLACK: usize = 512 << 10;

#[tonic::async_trait]
impl Watch for WatchService {
    // What waits for a slow client is bounded; behind it watchers fall back to history.
    type WatchStream = Pin<Box<dyn futures_util::Stream<Item = Result<WatchResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<Streaming<pb::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (sender, receiver) = Outbox::new(&self.0.metrics.watch_bytes);
        let stream = Stream {
            _up: Up::new(&self.0.metrics.watch_streams),
            server: Arc::clone(&self.0),
            metadata: request.metadata().clone(),
            sender,
            watchers: HashMap::new(),
            keys: HashMap::new(),
            next_key: 0,
            next_id: 0,
            ready: Arc::default(),
        };
        tokio::spawn(stream.run(request.into_inner()));
        Ok(Response::new(Box::pin(receiver)))
    }
}

#[derive(Debug)]
struct Entry {
    id: i64,
    watcher: Watcher,
    fragment: bool,
    notify: bool,
    /// Got events since the last tick.
    busy: bool,
}

struct Stream {
    _up: Up,
    server: Arc<Server>,
    /// Who asks.
    metadata: MetadataMap,
    sender: Outbox<Result<WatchResponse, Status>>,
    /// By a key that is never used twice, as an id may be.
    watchers: HashMap<u64, Entry>,
    keys: HashMap<i64, u64>,
    next_key: u64,
    next_id: i64,
    /// Watchers that have something.
    ready: Arc<ReadyList>,
}

type Item = polybolt::Result<Option<WatchItem>>;

impl Stream {
    async fn run(mut self, mut requests: Streaming<pb::WatchRequest>) {
        let interval = self.server.settings.progress_interval;
        // A little apart from other streams (WCH-22).
        let jitter = interval.mul_f64(f64::from((self.server.keyspace.revision() % 100) as u8) / 1000.0);
        let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + interval + jitter, interval + jitter);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let stop = self.server.stop.clone();
        let mut asking = true;
        loop {
            let outcome = tokio::select! {
                biased;
                () = stop.cancelled() => {
                    drop(self.sender.send(Err(Status::unavailable("etcdserver: server stopped")), 0).await);
                    return;
                }
                request = requests.message(), if asking => match request {
                    Ok(Some(request)) => self.handle(request).await,
                    // It has no more to ask, and goes on listening.
                    Ok(None) => {
                        asking = false;
                        Ok(())
                    }
                    // It went, or asked for something that cannot be.
                    Err(status) => {
                        drop(self.sender.send(Err(status), 0).await);
                        return;
                    }
                },
                (key, item) = next_item(&mut self.watchers, &self.ready) => self.deliver(key, item).await,
                _ = tick.tick() => self.notify().await,
                () = self.sender.closed() => return,
            };
            if outcome.is_err() {
                return;
            }
        }
    }

    async fn handle(&mut self, request: pb::WatchRequest) -> Result<(), Gone> {
        use pb::watch_request::RequestUnion;
        match request.request_union {
            Some(RequestUnion::CreateRequest(request)) => self.create(request).await,
            Some(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id })) => {
                let Some(key) = self.keys.remove(&watch_id) else {
                    return Ok(());
                };
                self.watchers.remove(&key);
                let header = Some(self.server.header_now());
                self.send(WatchResponse { header, watch_id, canceled: true, ..Default::default() }).await
            }
            Some(RequestUnion::ProgressRequest(_)) => self.progress().await,
            None => Ok(()),
        }
    }

    async fn create(&mut self, request: pb::WatchCreateRequest) -> Result<(), Gone> {
        let header = Some(self.server.header_now());
        let failed = |cancel_reason: String| WatchResponse {
            header,
            watch_id: -1,
            created: true,
            canceled: true,
            cancel_reason,
            ..Default::default()
        };
        let mut span = Span::from_wire(request.key, request.range_end);
        // As it is asked for, and once (WCH-10).
        if let Err(error) = self.server.caller(&self.metadata).and_then(|caller| caller.check_read(&span)) {
            return self.send(failed(error.cancel_reason())).await;
        }
        if span.key.is_empty() {
            span.key = bytes::Bytes::from_static(b"\0");
        }
        let no = |filter: pb::watch_create_request::FilterType| request.filters.contains(&(filter as i32));
        let wanted = WatchRequest {
            span,
            start_revision: request.start_revision,
            no_put: no(pb::watch_create_request::FilterType::Noput),
            no_delete: no(pb::watch_create_request::FilterType::Nodelete),
            prev_kv: request.prev_kv,
        };
        let watcher = match self.server.keyspace.watch(wanted) {
            Ok(watcher) => watcher,
            Err(error) => return self.send(failed(error.to_string())).await,
        };
        let id = match request.watch_id {
            0 => {
                while self.keys.contains_key(&self.next_id) {
                    self.next_id += 1;
                }
                self.next_id += 1;
                self.next_id - 1
            }
            id if id == -1 || self.keys.contains_key(&id) => {
                return self.send(failed("mvcc: duplicate watch ID provided on the WatchStream".into())).await;
            }
            id => id,
        };
        let key = self.next_key;
        self.next_key += 1;
        let created = WatchResponse {
            header: Some(self.server.header(watcher.created_revision())),
            watch_id: id,
            created: true,
            ..Default::default()
        };
        self.send(created).await?;
        self.ready.add(key);
        let entry = Entry { id, watcher, fragment: request.fragment, notify: request.progress_notify, busy: false };
        self.keys.insert(id, key);
        self.watchers.insert(key, entry);
        Ok(())
    }

    async fn deliver(&mut self, key: u64, item: Item) -> Result<(), Gone> {
        let Some(entry) = self.watchers.get_mut(&key) else {
            return Ok(());
        };
        let watch_id = entry.id;
        match item {
            Ok(Some(WatchItem::Events { revision, events })) => {
                entry.busy = true;
                let fragment = entry.fragment.then_some(self.server.settings.max_request_bytes + FRAGMENT_SLACK);
                let header = self.server.header(revision);
                for response in responses(header, watch_id, events, fragment) {
                    self.send(response).await?;
                }
                Ok(())
            }
            Ok(Some(WatchItem::Compacted { compact_revision })) => {
                // The id stays taken until the client cancels it (WCH-4), as clients do (WCH-34).
                self.watchers.remove(&key);
                let header = Some(self.server.header(0));
                self.send(WatchResponse { header, watch_id, canceled: true, compact_revision, ..Default::default() })
                    .await
            }
            ended => {
                self.watchers.remove(&key);
                let cancel_reason = match ended {
                    Err(error) => convert::status(&error).message().to_owned(),
                    Ok(_) => Refusal::Closed.to_string(),
                };
                let header = Some(self.server.header_now());
                self.send(WatchResponse { header, watch_id, canceled: true, cancel_reason, ..Default::default() }).await
            }
        }
    }

    /// One answer for all watchers, if all are caught up (WCH-23); otherwise none.
    async fn progress(&mut self) -> Result<(), Gone> {
        let all: Option<Vec<i64>> = self.watchers.values().map(|entry| entry.watcher.progress()).collect();
        let Some(revision) = all.and_then(|all| all.into_iter().min()) else {
            return Ok(());
        };
        let header = Some(self.server.header(revision));
        self.send(WatchResponse { header, watch_id: -1, ..Default::default() }).await
    }

    /// A tick: tells the quiet ones that asked for it (WCH-22).
    async fn notify(&mut self) -> Result<(), Gone> {
        let mut due = Vec::new();
        for entry in self.watchers.values_mut() {
            let quiet = !std::mem::take(&mut entry.busy);
            if entry.notify
                && quiet
                && let Some(revision) = entry.watcher.progress()
            {
                due.push((entry.id, revision));
            }
        }
        for (watch_id, revision) in due {
            let header = Some(self.server.header(revision));
            self.send(WatchResponse { header, watch_id, ..Default::default() }).await?;
        }
        Ok(())
    }

    async fn send(&self, response: WatchResponse) -> Result<(), Gone> {
        let bytes = response.encoded_len();
        self.sender.send(Ok(response), bytes).await
    }
}

/// The next item of any watcher.
async fn next_item(watchers: &mut HashMap<u64, Entry>, ready: &ReadyList) -> (u64, Item) {
    poll_fn(|cx| {
        ready.set_waker(cx.waker());
        // Each as often as it is queued now: one that is always ready waits for its next turn.
        for _ in 0..ready.len() {
            let Some(woken) = ready.pop() else {
                break;
            };
            let key = woken.key;
            let Some(entry) = watchers.get_mut(&key) else { continue };
            let waker = Waker::from(woken);
            if let Poll::Ready(item) = entry.watcher.poll_recv(&mut Context::from_waker(&waker)) {
                // There may be more.
                waker.wake();
                return Poll::Ready((key, item));
            }
        }
        Poll::Pending
    })
    .await
}

/// One response, or several fragments of it that are below `max` encoded bytes (WCH-18).
fn responses(header: pb::ResponseHeader, watch_id: i64, events: Vec<Event>, max: Option<usize>) -> Vec<WatchResponse> {
    let whole = |events| WatchResponse { header: Some(header), watch_id, events, ..Default::default() };
    let split = max.filter(|max| {
        let bytes: usize = events.iter().map(|event| field_len(&event.wire())).sum();
        events.len() > 1 && bytes + whole(Vec::new()).encoded_len() >= *max
    });
    let events = events.iter().map(Event::wire);
    let Some(max) = split else {
        return vec![whole(events.collect())];
    };
    let empty = whole(Vec::new()).encoded_len() + FRAGMENT_FLAG;
    let mut parts = vec![whole(Vec::new())];
    let mut bytes = empty;
    for event in events {
        let len = field_len(&event);
        let part = parts.last_mut().expect("there is always one");
        if !part.events.is_empty() && bytes + len >= max {
            part.fragment = true;
            bytes = empty + len;
            parts.push(whole(vec![event]));
        } else {
            bytes += len;
            part.events.push(event);
        }
    }
    parts
}

/// Bytes of a field: its tag and length come before it.
fn field_len(message: &[u8]) -> usize {
    1 + prost::length_delimiter_len(message.len()) + message.len()
}

/// Encoded bytes of the fragment flag.
const FRAGMENT_FLAG: usize = 2;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::mvccpb;
    use polybolt::{Engine, EventKind, Options, PutRequest, Routes};

    /// What a real watcher got.
    fn events(prev_kv: bool) -> Vec<Event> {
        let dir = tempfile::tempdir().expect("a directory");
        let engine = Engine::open(dir.path(), Options::default()).expect("an engine");
        let keyspace = engine.create_keyspace("default", Routes::kubernetes()).expect("a keyspace");
        let request =
            WatchRequest { span: Span::prefix("k"), start_revision: 1, no_put: false, no_delete: false, prev_kv };
        let mut watcher = keyspace.watch(request).expect("a watcher");
        let put = |n: usize| {
            keyspace.put(PutRequest { lease: 0, ..PutRequest::new(format!("k{}", n % 20), vec![7; 100 * n]) })
        };
        (0..30).for_each(|n| drop(put(n).wait().expect("a put")));
        drop(keyspace.delete_range(polybolt::DeleteRequest { span: Span::key("k1"), prev_kv: false }).wait());
        let mut all = Vec::new();
        while all.len() < 31 {
            let Some(WatchItem::Events { events, .. }) = watcher.recv().expect("events") else { panic!("it ended") };
            all.extend(events);
        }
        all
    }

    #[test]
    fn fragments_are_below_the_limit_and_lose_nothing() {
        let events = events(false);
        let header = pb::ResponseHeader { revision: 7, ..Default::default() };
        let parts = responses(header, 3, events.clone(), Some(2000));
        assert!(parts.len() > 10);
        assert!(parts.iter().all(|part| part.events.len() == 1 || part.encoded_len() < 2000));
        let (last, rest) = parts.split_last().expect("parts");
        assert!(!last.fragment && rest.iter().all(|part| part.fragment));
        let joined: Vec<_> = parts.into_iter().flat_map(|part| part.events).collect();
        assert_eq!(joined, events.iter().map(Event::wire).collect::<Vec<_>>());
        assert_eq!(responses(header, 3, events, None).len(), 1);
    }

    #[test]
    fn events_on_the_wire_are_what_protobuf_says_and_encoded_once() {
        for prev_kv in [false, true] {
            for event in events(prev_kv) {
                let kind = mvccpb::event::EventType::from_str_name(match event.kind() {
                    EventKind::Put => "PUT",
                    EventKind::Delete => "DELETE",
                });
                let plain = mvccpb::Event {
                    r#type: kind.expect("a name of it").into(),
                    kv: Some(convert::kv(event.kv().clone())),
                    prev_kv: event.prev_kv().cloned().map(convert::kv),
                };
                assert_eq!(event.wire(), plain.encode_to_vec());
                assert_eq!(event.clone().wire().as_ptr(), event.wire().as_ptr(), "shared");
            }
        }
        let all = responses(pb::ResponseHeader { revision: 7, ..Default::default() }, 3, events(true), None);
        let decoded = pb::WatchResponse::decode(&all[0].encode_to_vec()[..]).expect("the same message");
        assert_eq!(
            (decoded.watch_id, decoded.events.len(), decoded.header.map(|header| header.revision)),
            (3, 31, Some(7))
        );
    }
}
