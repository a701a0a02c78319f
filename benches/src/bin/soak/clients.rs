//! Who presses on the server: writers without a pause, and clients that ask and then never read.

use crate::Load;
use polybolt_benches::value;
use polybolt_frontend::proto::etcdserverpb as pb;
use polybolt_frontend::proto::etcdserverpb::kv_client::KvClient;
use polybolt_frontend::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use polybolt_frontend::proto::etcdserverpb::watch_client::WatchClient;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::Channel;

/// What the clients count.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) written: AtomicU64,
    /// Writes that were told to come back: too many wait, or for too long.
    pub(crate) refused: AtomicU64,
    /// Writes that failed in another way.
    pub(crate) failed: AtomicU64,
    /// Events that the one watcher got that reads.
    pub(crate) events: AtomicU64,
    /// Its newest revision.
    pub(crate) seen: AtomicI64,
    /// Events out of order, or twice.
    pub(crate) disorder: AtomicU64,
    /// How often it was so slow that what it needed next was compacted.
    pub(crate) cut_off: AtomicU64,
    /// Streams of clients that do not read, as often as they were opened.
    pub(crate) stalled: AtomicU64,
    /// Those that were refused.
    pub(crate) turned_away: AtomicU64,
}

pub(crate) async fn connect(port: u16) -> Result<Channel, tonic::transport::Error> {
    Channel::from_shared(format!("http://127.0.0.1:{port}")).expect("a URL").connect().await
}

pub(crate) fn key(n: u64) -> String {
    // A part of each shard.
    match n % 4 {
        0 => format!("/registry/events/ns/web-{n:08}"),
        1 => format!("/registry/leases/node-{n:08}"),
        2 => format!("/registry/pods/ns/web-{n:08}"),
        _ => format!("/registry/secrets/ns/token-{n:08}"),
    }
}

fn put(n: u64, load: &Load) -> pb::PutRequest {
    let key = key(n % load.keys).into();
    pb::PutRequest { key, value: value(n | 1, load.value_bytes).into(), ..Default::default() }
}

/// Every key once.
pub(crate) async fn fill(port: u16, load: &Load, progress: impl Fn(u64)) -> Result<(), String> {
    let channel = connect(port).await.map_err(|error| error.to_string())?;
    for first in (0..load.keys).step_by(64) {
        let last = (first + 64).min(load.keys);
        let puts = (first..last).map(|n| {
            let (mut client, request) = (KvClient::new(channel.clone()), put(n, load));
            tokio::spawn(async move { client.put(request).await })
        });
        for put in puts.collect::<Vec<_>>() {
            put.await.map_err(|error| error.to_string())?.map_err(|status| status.message().to_owned())?;
        }
        progress(last);
    }
    Ok(())
}

/// A write that was refused for now: too many wait, or for too long.
pub(crate) fn come_back(status: &tonic::Status) -> bool {
    status.message().contains("too many requests")
}

/// Writes for ever, `load.ahead` at a time on one connection.
pub(crate) async fn write(port: u16, load: Load, counts: Arc<Counts>, mut n: u64) {
    let Ok(channel) = connect(port).await else { return };
    let room = Arc::new(Semaphore::new(load.ahead));
    while let Ok(place) = Arc::clone(&room).acquire_owned().await {
        n = n.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        let (mut client, request, counts) = (KvClient::new(channel.clone()), put(n >> 20, &load), Arc::clone(&counts));
        tokio::spawn(async move {
            let _place = place;
            match client.put(request).await {
                Ok(_) => drop(counts.written.fetch_add(1, Ordering::Relaxed)),
                Err(status) if come_back(&status) => {
                    counts.refused.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(_) => {
                    counts.failed.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        });
    }
}

fn watch_all(prev_kv: bool, start_revision: i64) -> pb::WatchRequest {
    let create = pb::WatchCreateRequest {
        key: "\0".into(),
        range_end: "\0".into(),
        prev_kv,
        start_revision,
        ..Default::default()
    };
    pb::WatchRequest { request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)) }
}

/// Reads every event, and looks at their order. Once cut off by a compaction it goes on behind that, as any
/// watcher does.
pub(crate) async fn watch(port: u16, counts: Arc<Counts>) {
    let mut from = 0;
    while let Ok(channel) = connect(port).await {
        let (sender, receiver) = mpsc::channel(1);
        drop(sender.send(watch_all(false, from)).await);
        let mut client = WatchClient::new(channel).max_decoding_message_size(usize::MAX);
        let Ok(stream) = client.watch(ReceiverStream::new(receiver)).await else { return };
        let (mut stream, mut last) = (stream.into_inner(), 0);
        while let Ok(Some(response)) = stream.message().await {
            if response.canceled {
                counts.cut_off.fetch_add(1, Ordering::Relaxed);
                from = response.compact_revision;
                break;
            }
            for event in &response.events {
                let at = event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
                // Each put has a revision of its own: the next one is due.
                if last > 0 && at != last + 1 {
                    counts.disorder.fetch_add(1, Ordering::Relaxed);
                }
                last = at;
            }
            counts.events.fetch_add(response.events.len() as u64, Ordering::Relaxed);
            counts.seen.store(last, Ordering::Relaxed);
        }
    }
}

/// A kind of client that asks and never reads.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stalled {
    Watch,
    Snapshot,
    RangeStream,
    Range,
}

fn all_keys(limit: i64) -> pb::RangeRequest {
    pb::RangeRequest { key: "\0".into(), range_end: "\0".into(), limit, ..Default::default() }
}

/// Asks on a connection of its own, holds it without reading for `load.stall`, and asks again.
pub(crate) async fn stall(port: u16, kind: Stalled, load: Load, counts: Arc<Counts>) {
    loop {
        if let Err(refused) = stall_once(port, kind, &load, &counts).await {
            if refused {
                counts.turned_away.fetch_add(1, Ordering::Relaxed);
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

/// True in the error if it was refused.
async fn stall_once(port: u16, kind: Stalled, load: &Load, counts: &Counts) -> Result<(), bool> {
    let refused = |status: tonic::Status| status.code() != Code::Unavailable;
    let channel = connect(port).await.map_err(|_| false)?;
    let asked = || counts.stalled.fetch_add(1, Ordering::Relaxed);
    match kind {
        Stalled::Watch => {
            let (sender, receiver) = mpsc::channel(1);
            drop(sender.send(watch_all(true, 0)).await);
            let stream = WatchClient::new(channel).watch(ReceiverStream::new(receiver)).await.map_err(refused)?;
            asked();
            tokio::time::sleep(load.stall).await;
            drop((stream, sender));
        }
        Stalled::Snapshot => {
            let request = pb::SnapshotRequest {};
            let stream = MaintenanceClient::new(channel).snapshot(request).await.map_err(refused)?;
            asked();
            tokio::time::sleep(load.stall).await;
            drop(stream);
        }
        Stalled::RangeStream => {
            let stream = KvClient::new(channel).range_stream(all_keys(0)).await.map_err(refused)?;
            asked();
            tokio::time::sleep(load.stall).await;
            drop(stream);
        }
        Stalled::Range => {
            let connection = crate::raw::unread_range(port, load.range_keys).await.map_err(|_| false)?;
            asked();
            tokio::time::sleep(load.stall).await;
            drop(connection);
        }
    }
    Ok(())
}
