//! Watchers beside a load: every one has to get every event, in order.

use super::connect::Connection;
use super::error::{Error, message};
use super::tally::{Latency, Watched, histogram};
use super::work::Shared;
use crate::proto::etcdserverpb as pb;
use crate::proto::mvccpb::Event;
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use pb::watch_request::RequestUnion;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

/// Events that do not come for so long after the load are missing.
const QUIET_MAX: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Streams that read until this is dropped.
#[derive(Debug)]
pub(super) struct Watchers {
    count: u64,
    seen: Arc<Seen>,
    streams: JoinSet<()>,
}

/// What all watchers got.
#[derive(Debug)]
struct Seen {
    events: AtomicU64,
    disorder: AtomicU64,
    latencies: Mutex<Histogram<u64>>,
}

impl Watchers {
    /// Opens all streams, by turns over the connections, and waits until each watcher is there.
    pub(super) async fn start(
        connections: &[Connection],
        streams: u64,
        each: u64,
        shared: &Arc<Shared>,
    ) -> Result<Watchers, Error> {
        let seen = Seen { events: AtomicU64::new(0), disorder: AtomicU64::new(0), latencies: Mutex::new(histogram()) };
        let mut watchers = Watchers { count: streams * each, seen: Arc::new(seen), streams: JoinSet::new() };
        for (stream, connection) in (0..streams).zip(connections.iter().cycle()) {
            let (requests, answers) = open(connection, each, shared).await.map_err(connection.refused("a watch"))?;
            let (shared, seen) = (Arc::clone(shared), Arc::clone(&watchers.seen));
            watchers.streams.spawn(async move {
                let why = read(answers, &shared, &seen).await;
                drop(requests);
                let code = "WATCH_ENDED".to_owned();
                shared.tally.fault(stream, code, || message(&why));
            });
        }
        Ok(watchers)
    }

    /// Waits for the events of all that was written, and tells what came.
    pub(super) async fn finish(mut self, shared: &Shared, stop: &CancellationToken) -> Watched {
        let expected = shared.tally.stamped.load(Ordering::Relaxed) * self.count;
        let events = || self.seen.events.load(Ordering::Relaxed);
        let (mut before, mut quiet) = (events(), Duration::ZERO);
        while before < expected && quiet < QUIET_MAX && !stop.is_cancelled() {
            tokio::time::sleep(LOOK_EVERY).await;
            let now = events();
            quiet = if now == before { quiet + LOOK_EVERY } else { Duration::ZERO };
            before = now;
        }
        let events = events();
        self.streams.shutdown().await;
        let latency = Latency::new(&self.seen.latencies.lock());
        Watched {
            watchers: self.count,
            events,
            missing: expected.saturating_sub(events),
            disorder: self.seen.disorder.load(Ordering::Relaxed),
            latency,
        }
    }
}

type Requests = tokio::sync::mpsc::Sender<pb::WatchRequest>;

async fn open(
    connection: &Connection,
    each: u64,
    shared: &Shared,
) -> Result<(Requests, Streaming<pb::WatchResponse>), Status> {
    let (key, range_end) = shared.keys.watched();
    let (sender, requests) = tokio::sync::mpsc::channel(16);
    let create = pb::WatchCreateRequest { key, range_end, ..Default::default() };
    let create = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let feeder = sender.clone();
    // Beside reading, as a server may not read on while its answers wait.
    tokio::spawn(async move {
        for _ in 0..each {
            if feeder.send(create.clone()).await.is_err() {
                return;
            }
        }
    });
    let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
    let mut answers = connection.watch().watch(requests).await?.into_inner();
    let mut created = 0;
    while created < each {
        let answer = answers.message().await?.ok_or_else(|| Status::unavailable("the stream ended"))?;
        if answer.canceled {
            return Err(Status::failed_precondition(answer.cancel_reason));
        }
        created += u64::from(answer.created);
    }
    Ok((sender, answers))
}

/// Reads until the stream ends; why it did.
async fn read(mut answers: Streaming<pb::WatchResponse>, shared: &Shared, seen: &Seen) -> Status {
    let mut newest = HashMap::new();
    while let Some(answer) = answers.next().await {
        let answer = match answer {
            Ok(answer) if answer.canceled => return Status::cancelled(answer.cancel_reason),
            Ok(answer) => answer,
            Err(status) => return status,
        };
        let now = u64::try_from(shared.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let newest = newest.entry(answer.watch_id).or_insert(0);
        let mut latencies = None;
        for Event { kv, .. } in answer.events {
            let Some(kv) = kv else { continue };
            // Each revision of these loads changes one key.
            if kv.mod_revision <= *newest {
                seen.disorder.fetch_add(1, Ordering::Relaxed);
            }
            *newest = kv.mod_revision;
            let Some((due, measured)) = shared.values.stamp(&kv.value) else { continue };
            seen.events.fetch_add(1, Ordering::Relaxed);
            if measured {
                let latencies = latencies.get_or_insert_with(|| seen.latencies.lock());
                latencies.record(now.saturating_sub(due).max(1)).expect("it grows as needed");
            }
        }
    }
    Status::unavailable("the server ended the stream")
}
