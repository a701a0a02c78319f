//! What `/metrics` shows: etcd's names where etcd has the thing, and `polybolt_*` for the rest.

use crate::calls::Calls;
use polybolt::{Engine, Keyspace};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Gauge, GaugeVec, IntCounter, Opts, Registry, TextEncoder};
use std::sync::Arc;

/// Counters that handlers move, and everything that is looked up when asked.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) ranges: IntCounter,
    pub(crate) puts: IntCounter,
    pub(crate) deletes: IntCounter,
    pub(crate) txns: IntCounter,
    healthy: IntCounter,
    unhealthy: IntCounter,
    pub(crate) calls: Arc<Calls>,
}

/// How many files may be open.
pub(crate) fn descriptor_limit() -> u64 {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX)
}

impl Metrics {
    pub(crate) fn new(engine: &Engine, keyspace: &Keyspace, quota_bytes: i64, message_max: usize) -> Self {
        let registry = Registry::new();
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help).expect("a valid name");
            registry.register(Box::new(counter.clone())).expect("registered once");
            counter
        };
        let metrics = Metrics {
            ranges: counter("etcd_mvcc_range_total", "Ranges served."),
            puts: counter("etcd_mvcc_put_total", "Puts served."),
            deletes: counter("etcd_mvcc_delete_total", "Deletes served."),
            txns: counter("etcd_mvcc_txn_total", "Txns served."),
            healthy: counter("etcd_server_health_success", "Health checks that found nothing wrong."),
            unhealthy: counter("etcd_server_health_failures", "Health checks that failed."),
            calls: Arc::new(Calls::new(&registry, message_max)),
            registry: registry.clone(),
        };
        let looked_up = LookedUp { engine: engine.clone(), keyspace: keyspace.clone(), quota: quota_bytes };
        registry.register(Box::new(looked_up)).expect("registered once");
        metrics
    }

    /// A health check was answered.
    pub(crate) fn health(&self, healthy: bool) {
        (if healthy { &self.healthy } else { &self.unhealthy }).inc();
    }

    pub(crate) fn text(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }
}

/// Gauges made when they are asked for.
struct LookedUp {
    engine: Engine,
    keyspace: Keyspace,
    quota: i64,
}

impl Collector for LookedUp {
    fn desc(&self) -> Vec<&Desc> {
        Vec::new()
    }

    #[expect(clippy::cast_precision_loss, reason = "metrics are floats")]
    fn collect(&self) -> Vec<MetricFamily> {
        let mut families = Vec::new();
        let mut gauge = |name: &str, help: &str, value: f64| {
            let gauge = Gauge::new(name, help).expect("a valid name");
            gauge.set(value);
            families.extend(gauge.collect());
        };
        let status = self.keyspace.status();
        let stats = self.engine.stats();
        gauge("etcd_server_has_leader", "1: a single member leads itself.", 1.0);
        gauge("etcd_server_is_leader", "1: a single member leads itself.", 1.0);
        gauge("etcd_server_quota_backend_bytes", "The quota on file bytes.", self.quota as f64);
        gauge("etcd_mvcc_db_total_size_in_bytes", "Bytes of all files.", status.size as f64);
        gauge("etcd_mvcc_db_total_size_in_use_in_bytes", "Bytes of them in use.", status.size_in_use as f64);
        gauge("etcd_debugging_mvcc_current_revision", "The current revision.", status.revision as f64);
        gauge("etcd_debugging_mvcc_compact_revision", "The compacted revision.", status.compact_revision as f64);
        let keys: u64 = status.shards.iter().map(|shard| shard.keys).sum();
        gauge("etcd_debugging_mvcc_keys_total", "Live keys.", keys as f64);
        gauge("etcd_debugging_mvcc_watcher_total", "Watchers.", status.watchers as f64);
        gauge("polybolt_leases", "Leases alive.", status.leases as f64);
        gauge("polybolt_buffered_bytes", "Bytes of write buffers in use.", stats.buffered_bytes as f64);
        gauge("polybolt_journal_bytes", "Bytes of journal segments on disk.", stats.journal_bytes as f64);
        gauge("polybolt_journal_groups", "Journal groups since the start.", stats.journal_groups as f64);
        gauge("polybolt_checkpoints", "Checkpoints since the start.", stats.checkpoints as f64);
        gauge("polybolt_disk_syncs", "Durability calls of the disk since the start.", stats.sync_calls as f64);
        let of_shard = |name: &str, help: &str| GaugeVec::new(Opts::new(name, help), &["shard"]).expect("a valid name");
        let sizes = of_shard("polybolt_shard_size_bytes", "Bytes of a shard's file.");
        let used = of_shard("polybolt_shard_size_in_use_bytes", "Bytes of them in use.");
        let keys = of_shard("polybolt_shard_keys", "Live keys of a shard.");
        let index = of_shard("polybolt_shard_index_bytes", "Bytes of a shard's index.");
        for shard in &status.shards {
            sizes.with_label_values(&[&shard.name]).set(shard.size as f64);
            used.with_label_values(&[&shard.name]).set(shard.size_in_use as f64);
            keys.with_label_values(&[&shard.name]).set(shard.keys as f64);
            index.with_label_values(&[&shard.name]).set(shard.index_bytes as f64);
        }
        for shards in [sizes, used, keys, index] {
            families.extend(shards.collect());
        }
        families
    }
}
