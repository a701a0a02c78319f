//! What `/metrics` shows: etcd's names where etcd has the thing, and `polybolt_*` for the rest. Here is what
//! the services move; what is looked up when asked is in `gauges`.

use crate::calls::Calls;
use crate::gauges::LookedUp;
use crate::outbox::Places;
use polybolt::{OpResponse, TxnResponse};
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntGauge, Registry, TextEncoder, exponential_buckets,
};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Snapshots and streams of ranges at a time. Each has a thread to wait on, of 512 that there may be.
pub(crate) const SNAPSHOTS_MAX: i64 = 16;
pub(crate) const RANGE_STREAMS_MAX: i64 = 256;
/// A write that takes longer is counted as slow, as at etcd.
const SLOW: Duration = Duration::from_millis(100);

/// What the services move.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) calls: Arc<Calls>,
    ranges: IntCounter,
    puts: IntCounter,
    deletes: IntCounter,
    txns: IntCounter,
    healthy: IntCounter,
    unhealthy: IntCounter,
    pub(crate) leases_granted: IntCounter,
    pub(crate) leases_renewed: IntCounter,
    pub(crate) lease_ttl: Histogram,
    pub(crate) connections: IntGauge,
    pub(crate) watch_streams: IntGauge,
    pending: IntGauge,
    failed: IntCounter,
    slow: IntCounter,
    applied: HistogramVec,
    requests: HistogramVec,
    range: HistogramVec,
    pub(crate) hash: Histogram,
    pub(crate) hash_rev: Histogram,
    pub(crate) snapshot: Histogram,
    pub(crate) defragment: Histogram,
    pub(crate) defragmenting: IntGauge,
    pub(crate) resharding: IntGauge,
    pub(crate) watch_bytes: IntGauge,
    pub(crate) snapshots: Places,
    pub(crate) snapshot_bytes: IntGauge,
    pub(crate) range_streams: Places,
    pub(crate) range_bytes: IntGauge,
    pub(crate) unread_bytes: IntGauge,
}

/// How many files may be open.
pub(crate) fn descriptor_limit() -> u64 {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Makes metrics and registers them.
struct Maker<'a>(&'a Registry);

impl Maker<'_> {
    fn counter(&self, name: &str, help: &str) -> IntCounter {
        let made = IntCounter::new(name, help).expect("a valid name");
        self.0.register(Box::new(made.clone())).expect("registered once");
        made
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        let made = IntGauge::new(name, help).expect("a valid name");
        self.0.register(Box::new(made.clone())).expect("registered once");
        made
    }

    /// Buckets from `first` on, each twice the one before.
    fn histogram(&self, name: &str, help: &str, first: f64, buckets: usize) -> Histogram {
        let buckets = exponential_buckets(first, 2.0, buckets).expect("positive");
        let made = Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets)).expect("a valid name");
        self.0.register(Box::new(made.clone())).expect("registered once");
        made
    }

    fn histograms(&self, name: &str, help: &str, labels: &[&str]) -> HistogramVec {
        let buckets = exponential_buckets(0.0001, 2.0, 20).expect("positive");
        let made = HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), labels).expect("a valid name");
        self.0.register(Box::new(made.clone())).expect("registered once");
        made
    }
}

impl Metrics {
    pub(crate) fn new(looked_up: LookedUp, message_max: usize) -> Self {
        let registry = Registry::new();
        let open = looked_up.open.clone();
        registry.register(Box::new(looked_up)).expect("registered once");
        let make = Maker(&registry);
        Metrics {
            calls: Arc::new(Calls::new(&registry, open.calls, message_max)),
            ranges: make.counter("etcd_mvcc_range_total", "Ranges, also those in txns."),
            puts: make.counter("etcd_mvcc_put_total", "Puts, also those in txns."),
            deletes: make.counter("etcd_mvcc_delete_total", "Deletes, also those in txns."),
            txns: make.counter("etcd_mvcc_txn_total", "Txns of more than one operation."),
            healthy: make.counter("etcd_server_health_success", "Health checks that found nothing wrong."),
            unhealthy: make.counter("etcd_server_health_failures", "Health checks that failed."),
            leases_granted: make.counter("etcd_debugging_lease_granted_total", "Leases granted."),
            leases_renewed: make.counter("etcd_debugging_lease_renewed_total", "Leases renewed."),
            lease_ttl: make.histogram(
                "etcd_debugging_lease_ttl_total",
                "Seconds that leases were granted for.",
                1.0,
                24,
            ),
            connections: open.connections,
            watch_streams: open.watch_streams,
            pending: make.gauge("etcd_server_proposals_pending", "Writes under way."),
            failed: make.counter("etcd_server_proposals_failed_total", "Writes whose outcome is not known."),
            slow: make.counter("etcd_server_slow_apply_total", "Writes that took more than 100 ms."),
            applied: make.histograms(
                "etcd_server_apply_duration_seconds",
                "Writes, until they are durable.",
                &["version", "op", "success"],
            ),
            requests: make.histograms(
                "etcd_server_request_duration_seconds",
                "Requests to the store.",
                &["type", "success"],
            ),
            range: make.histograms("etcd_server_range_duration_seconds", "Ranges.", &["success"]),
            hash: make.histogram("etcd_mvcc_hash_duration_seconds", "Hashes of everything.", 0.01, 15),
            hash_rev: make.histogram("etcd_mvcc_hash_rev_duration_seconds", "Hashes at a revision.", 0.01, 15),
            snapshot: make.histogram("etcd_disk_backend_snapshot_duration_seconds", "Snapshots sent.", 0.01, 17),
            defragment: make.histogram("etcd_disk_backend_defrag_duration_seconds", "Defragmentations.", 0.1, 13),
            defragmenting: make.gauge("etcd_disk_defrag_inflight", "Defragmentations under way."),
            resharding: open.resharding,
            watch_bytes: make.gauge("polybolt_watch_send_bytes", "Bytes that wait for watchers' clients to read them."),
            snapshots: Places::new(open.snapshots, SNAPSHOTS_MAX),
            snapshot_bytes: make.gauge("polybolt_snapshot_send_bytes", "Bytes of them that wait to be read."),
            range_streams: Places::new(open.range_streams, RANGE_STREAMS_MAX),
            range_bytes: make.gauge("polybolt_range_stream_send_bytes", "Bytes of them that wait to be read."),
            unread_bytes: make.gauge("polybolt_range_unread_bytes", "Bytes of ranges' answers that wait to be read."),
            registry,
        }
    }

    /// A health check was answered.
    pub(crate) fn health(&self, healthy: bool) {
        (if healthy { &self.healthy } else { &self.unhealthy }).inc();
    }

    /// A range that began at `begun` was answered.
    pub(crate) fn ranged(&self, begun: Instant, success: bool) {
        self.ranges.inc();
        let (success, seconds) = (if success { "true" } else { "false" }, begun.elapsed().as_secs_f64());
        self.range.with_label_values(&[success]).observe(seconds);
        self.requests.with_label_values(&["Range", success]).observe(seconds);
    }

    pub(crate) fn put(&self) {
        self.puts.inc();
    }

    pub(crate) fn deleted(&self) {
        self.deletes.inc();
    }

    /// The operations that a txn executed.
    pub(crate) fn txn(&self, response: &TxnResponse) {
        if self.operations(response) > 1 {
            self.txns.inc();
        }
    }

    fn operations(&self, response: &TxnResponse) -> u64 {
        let one = |response: &OpResponse| match response {
            OpResponse::Txn(response) => self.operations(response),
            single => {
                let counter = match single {
                    OpResponse::Range(_) => &self.ranges,
                    OpResponse::Put(_) => &self.puts,
                    _ => &self.deletes,
                };
                counter.inc();
                1
            }
        };
        response.responses.iter().map(one).sum()
    }

    /// A write begins; it is counted when it is told how it ended, or dropped.
    pub(crate) fn write(&self, op: &'static str) -> Write<'_> {
        self.pending.inc();
        Write { metrics: self, op, begun: Instant::now(), success: None }
    }

    pub(crate) fn text(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }
}

/// A write under way.
pub(crate) struct Write<'a> {
    metrics: &'a Metrics,
    op: &'static str,
    begun: Instant,
    success: Option<bool>,
}

impl Write<'_> {
    /// It was done or refused.
    pub(crate) fn ended(mut self, success: bool) {
        self.success = Some(success);
    }
}

impl Drop for Write<'_> {
    fn drop(&mut self) {
        let metrics = self.metrics;
        metrics.pending.dec();
        let Some(success) = self.success else {
            metrics.failed.inc();
            return;
        };
        let took = self.begun.elapsed();
        if took > SLOW {
            metrics.slow.inc();
        }
        let success = if success { "true" } else { "false" };
        metrics.applied.with_label_values(&["v3", self.op, success]).observe(took.as_secs_f64());
        metrics.requests.with_label_values(&[self.op, success]).observe(took.as_secs_f64());
    }
}

/// Up as long as it lives.
#[derive(Debug)]
pub(crate) struct Up(IntGauge);

impl Up {
    pub(crate) fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Up(gauge.clone())
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        self.0.dec();
    }
}
