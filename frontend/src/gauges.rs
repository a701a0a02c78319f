//! What `/metrics` looks up when it is asked: sizes and counts that others keep.

use crate::memory::{self, Clients};
use crate::timed_disk::SyncTimings;
use crate::version::{CLUSTER_VERSION, ETCD_VERSION};
use polybolt::{Engine, Keyspace, KeyspaceStatus, TIMING_BOUNDS, TimingStats};
use prometheus::core::{Collector, Desc};
use prometheus::proto::{Bucket, Histogram, Metric, MetricFamily, MetricType};
use prometheus::{Gauge, GaugeVec, IntGauge, Opts};
use std::sync::Arc;

/// Where it is looked up.
pub(crate) struct LookedUp {
    pub(crate) engine: Engine,
    pub(crate) keyspace: Keyspace,
    pub(crate) quota: i64,
    pub(crate) member_id: u64,
    pub(crate) syncs: Arc<SyncTimings>,
    pub(crate) unread_bytes_max: u64,
    pub(crate) open: Open,
}

/// What is open.
#[derive(Clone)]
pub(crate) struct Open {
    pub(crate) connections: IntGauge,
    pub(crate) calls: IntGauge,
    pub(crate) watch_streams: IntGauge,
    pub(crate) snapshots: IntGauge,
    pub(crate) range_streams: IntGauge,
    pub(crate) resharding: IntGauge,
}

impl Default for Open {
    fn default() -> Self {
        let gauge = |name: &str, help: &str| IntGauge::new(name, help).expect("a valid name");
        Open {
            connections: gauge("polybolt_connections", "Connections of clients."),
            calls: gauge("polybolt_calls", "Calls under way."),
            watch_streams: gauge("etcd_debugging_mvcc_watch_stream_total", "Streams of watchers."),
            snapshots: gauge("polybolt_snapshot_streams", "Snapshots under way."),
            range_streams: gauge("polybolt_range_streams", "Streams of ranges under way."),
            resharding: gauge("polybolt_reshard_inflight", "Changes of routes under way."),
        }
    }
}

/// Families under way.
struct Families(Vec<MetricFamily>);

impl Families {
    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        let gauge = Gauge::new(name, help).expect("a valid name");
        gauge.set(value);
        self.0.extend(gauge.collect());
    }

    fn counter(&mut self, name: &str, help: &str, value: f64) {
        self.gauge(name, help, value);
        let family = self.0.last_mut().expect("just added");
        for metric in family.mut_metric() {
            let mut counter = prometheus::proto::Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        }
        family.set_field_type(MetricType::COUNTER);
    }

    /// 1, with what is to be said in a label.
    fn label(&mut self, name: &str, help: &str, label: &str, value: &str) {
        let gauge = GaugeVec::new(Opts::new(name, help), &[label]).expect("a valid name");
        gauge.with_label_values(&[value]).set(1.0);
        self.0.extend(gauge.collect());
    }

    /// Durations, in units of so many a second.
    fn timings(&mut self, name: &str, help: &str, timings: &TimingStats, per_second: f64) {
        let mut histogram = Histogram::default();
        let mut buckets = Vec::new();
        let mut below = 0;
        for (kind, count) in timings.counts.iter().enumerate().take(TIMING_BOUNDS) {
            below += count;
            let mut bucket = Bucket::default();
            bucket.set_cumulative_count(below);
            bucket.set_upper_bound(TimingStats::bound(kind).as_secs_f64() * per_second);
            buckets.push(bucket);
        }
        histogram.set_bucket(buckets);
        histogram.set_sample_count(timings.count());
        histogram.set_sample_sum(timings.total.as_secs_f64() * per_second);
        let mut metric = Metric::default();
        metric.set_histogram(histogram);
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(MetricType::HISTOGRAM);
        family.set_metric(vec![metric]);
        self.0.push(family);
    }
}

/// Things that one member has none of, or always the same.
const FIXED: [(&str, &str, f64, bool); 14] = [
    ("etcd_server_has_leader", "1: a single member leads itself.", 1.0, false),
    ("etcd_server_is_leader", "1: a single member leads itself.", 1.0, false),
    ("etcd_server_is_learner", "0: a single member votes.", 0.0, false),
    ("etcd_server_leader_changes_seen_total", "1: it has led since the start.", 1.0, true),
    ("etcd_server_heartbeat_send_failures_total", "0: there is nobody to send them to.", 0.0, true),
    ("etcd_server_slow_read_indexes_total", "0: nobody is asked before a read.", 0.0, true),
    ("etcd_server_read_indexes_failed_total", "0: nobody is asked before a read.", 0.0, true),
    ("etcd_server_learner_promote_successes", "0: there are no learners.", 0.0, true),
    ("etcd_server_learner_promote_failures", "0: there are no learners.", 0.0, true),
    ("etcd_server_snapshot_apply_in_progress_total", "0: there is nobody to get one from.", 0.0, false),
    ("etcd_network_peer_sent_bytes_total", "0: there are no peers.", 0.0, true),
    ("etcd_network_peer_received_bytes_total", "0: there are no peers.", 0.0, true),
    ("etcd_network_peer_sent_failures_total", "0: there are no peers.", 0.0, true),
    ("etcd_network_peer_received_failures_total", "0: there are no peers.", 0.0, true),
];

impl Collector for LookedUp {
    fn desc(&self) -> Vec<&Desc> {
        Vec::new()
    }

    #[expect(clippy::cast_precision_loss, reason = "metrics are floats")]
    fn collect(&self) -> Vec<MetricFamily> {
        let mut all = Families(Vec::new());
        for (name, help, value, counts) in FIXED {
            if counts { all.counter(name, help, value) } else { all.gauge(name, help, value) }
        }
        let minor = CLUSTER_VERSION.rsplit_once('.').map_or(CLUSTER_VERSION, |(minor, _)| minor);
        all.label("etcd_cluster_version", "The version of the cluster.", "cluster_version", minor);
        all.label("etcd_server_version", "The version of etcd whose API this is.", "server_version", ETCD_VERSION);
        all.label("etcd_server_id", "The member's id.", "server_id", &format!("{:x}", self.member_id));
        let status = self.keyspace.status();
        let revision = status.revision as f64;
        // A revision stands for the log entry that made it.
        all.gauge("etcd_server_proposals_committed_total", "Writes committed, as revisions.", revision);
        all.gauge("etcd_server_proposals_applied_total", "Writes applied, as revisions.", revision);
        all.gauge("etcd_server_quota_backend_bytes", "The quota on file bytes.", self.quota as f64);
        all.gauge("etcd_mvcc_db_total_size_in_bytes", "Bytes of all files.", status.size as f64);
        all.gauge("etcd_mvcc_db_total_size_in_use_in_bytes", "Bytes of them in use.", status.size_in_use as f64);
        all.gauge("etcd_debugging_mvcc_current_revision", "The current revision.", revision);
        all.gauge("etcd_debugging_mvcc_compact_revision", "The compacted revision.", status.compact_revision as f64);
        let keys: u64 = status.shards.iter().map(|shard| shard.keys).sum();
        all.gauge("etcd_debugging_mvcc_keys_total", "Live keys.", keys as f64);
        all.gauge("etcd_debugging_mvcc_watcher_total", "Watchers.", status.watchers as f64);
        all.gauge("polybolt_leases", "Leases alive.", status.leases as f64);
        self.activity(&mut all);
        self.store(&mut all);
        self.bounds(&mut all, &status);
        let of_shard = |name: &str, help: &str| GaugeVec::new(Opts::new(name, help), &["shard"]).expect("a valid name");
        let sizes = of_shard("polybolt_shard_size_bytes", "Bytes of a shard's file.");
        let used = of_shard("polybolt_shard_size_in_use_bytes", "Bytes of them in use.");
        let keys = of_shard("polybolt_shard_keys", "Live keys of a shard.");
        let index = of_shard("polybolt_shard_index_bytes", "Bytes of a shard's index.");
        let free = of_shard("polybolt_shard_free_ratio", "The share of a shard's file that is free.");
        let floors = of_shard("polybolt_shard_floor_revision", "The lowest revision that a shard answers.");
        for shard in &status.shards {
            floors.with_label_values(&[&shard.name]).set(shard.floor as f64);
            let unused = shard.size.saturating_sub(shard.size_in_use) as f64;
            free.with_label_values(&[&shard.name]).set(unused / shard.size.max(1) as f64);
            sizes.with_label_values(&[&shard.name]).set(shard.size as f64);
            used.with_label_values(&[&shard.name]).set(shard.size_in_use as f64);
            keys.with_label_values(&[&shard.name]).set(shard.keys as f64);
            index.with_label_values(&[&shard.name]).set(shard.index_bytes as f64);
        }
        for shards in [sizes, used, free, keys, index, floors] {
            all.0.extend(shards.collect());
        }
        all.0
    }
}

impl LookedUp {
    /// What the keyspace did.
    #[expect(clippy::cast_precision_loss, reason = "metrics are floats")]
    fn activity(&self, all: &mut Families) {
        let stats = self.keyspace.stats();
        let mvcc = |name: &str| format!("etcd_debugging_mvcc_{name}");
        all.gauge("etcd_mvcc_db_open_read_transactions", "Reads that hold a revision.", stats.open_reads as f64);
        all.gauge("polybolt_writes_waiting", "Writes that wait for room in the buffers.", stats.waiting as f64);
        all.gauge("polybolt_writes_waiting_bytes", "Bytes that these hold.", stats.waiting_bytes as f64);
        let oldest = stats.oldest_read.as_secs_f64();
        all.gauge("polybolt_pin_oldest_seconds", "How long the oldest read holds its revision.", oldest);
        let held = stats.held_revisions as f64;
        all.gauge("polybolt_pin_held_revisions", "Revisions that reads hold compaction back by.", held);
        let let_go = stats.reads_let_go as f64;
        all.counter("polybolt_pins_let_go_total", "Reads that held too much for too long, and were let go.", let_go);
        all.gauge(&mvcc("total_put_size_in_bytes"), "Bytes of keys and values put.", stats.put_bytes as f64);
        all.gauge(&mvcc("slow_watcher_total"), "Watchers that read history.", stats.lagging_watchers as f64);
        all.gauge(&mvcc("pending_events_total"), "Events in watchers' queues.", stats.pending_events as f64);
        all.counter(&mvcc("events_total"), "Events that watchers took.", stats.events as f64);
        all.counter(&mvcc("db_compaction_keys_total"), "Revisions removed by compactions.", stats.swept as f64);
        all.gauge(
            "polybolt_compaction_left",
            "Revisions that compactions have yet to remove.",
            stats.sweep_left as f64,
        );
        let lingering = stats.lingering as f64;
        all.gauge("polybolt_compaction_lingering", "Rows of removed revisions that are still in leaves.", lingering);
        let seconds = stats.sweep_time_left.map_or(0.0, |left| left.as_secs_f64());
        all.gauge("polybolt_compaction_seconds_left", "How long that will take, if it is known.", seconds);
        let ended = stats.sweep_ended as f64;
        all.gauge(&mvcc("db_compaction_last"), "When a compaction was done last, since the Unix epoch.", ended);
        for (name, help, timings) in [
            ("db_compaction_total_duration_milliseconds", "Removals after a compaction.", stats.sweeps),
            ("db_compaction_pause_duration_milliseconds", "Their steps in the trees.", stats.tree_steps),
            ("index_compaction_pause_duration_milliseconds", "Their steps in the index.", stats.index_steps),
        ] {
            all.timings(&mvcc(name), help, &timings, 1000.0);
        }
        let revoked = stats.leases_revoked as f64;
        all.counter("etcd_debugging_lease_revoked_total", "Leases that ended, by whomever.", revoked);
        let expired = stats.leases_expired as f64;
        all.counter("etcd_debugging_server_lease_expired_total", "Leases that nobody renewed.", expired);
    }

    /// Who may take how much memory.
    #[expect(clippy::cast_precision_loss, reason = "metrics are floats")]
    fn bounds(&self, all: &mut Families, status: &KeyspaceStatus) {
        let Open { connections, calls, watch_streams, snapshots, range_streams, resharding } = &self.open;
        for gauge in [connections, calls, watch_streams, snapshots, range_streams, resharding] {
            all.0.extend(gauge.collect());
        }
        let count = |gauge: &IntGauge| gauge.get().max(0).cast_unsigned();
        let clients = Clients {
            connections: count(connections),
            calls: count(calls),
            watch_streams: count(watch_streams),
            watchers: status.watchers,
            snapshots: count(snapshots),
            range_streams: count(range_streams),
            resharding: count(resharding),
        };
        let index = status.shards.iter().map(|shard| shard.index_bytes).sum();
        let bound = memory::bound(self.engine.options(), self.unread_bytes_max, clients, index);
        all.gauge("polybolt_memory_bound_bytes", "Memory that all this may take, without mapped files.", bound as f64);
        all.gauge("polybolt_index_bytes", "Bytes of it for the index.", index as f64);
    }

    /// What the store did.
    #[expect(clippy::cast_precision_loss, reason = "metrics are floats")]
    fn store(&self, all: &mut Families) {
        let (journal, checkpoint) = (self.syncs.journal.stats(), self.syncs.checkpoint.stats());
        all.timings("etcd_disk_wal_fsync_duration_seconds", "Syncs of the journal.", &journal, 1.0);
        all.timings("etcd_disk_backend_commit_duration_seconds", "Syncs of a checkpoint.", &checkpoint, 1.0);
        let stats = self.engine.stats();
        all.gauge("polybolt_buffered_bytes", "Bytes of write buffers in use.", stats.buffered_bytes as f64);
        let most = self.engine.options().buffer_bytes as f64;
        all.gauge("polybolt_buffered_bytes_max", "The most that these may be.", most);
        let full = "1 while the disk is full: only what frees space is written.";
        all.gauge("polybolt_disk_full", full, f64::from(u8::from(stats.disk_full)));
        let failed = "1 once a write or sync has failed: nothing is written until a restart.";
        all.gauge("polybolt_storage_failed", failed, f64::from(u8::from(self.engine.failure().is_some())));
        let no_space = stats.no_space as f64;
        all.counter("polybolt_checkpoints_no_space_total", "Checkpoints that met a full disk.", no_space);
        all.gauge("polybolt_journal_bytes", "Bytes of journal segments on disk.", stats.journal_bytes as f64);
        all.gauge("polybolt_journal_groups", "Journal groups since the start.", stats.journal_groups as f64);
        all.gauge("polybolt_checkpoints", "Checkpoints since the start.", stats.checkpoints as f64);
        all.gauge("polybolt_disk_syncs", "Durability calls of the disk since the start.", stats.sync_calls as f64);
        let moved = stats.vacuum_moved_bytes as f64;
        all.counter("polybolt_vacuum_moved_bytes_total", "Bytes that vacuums moved down in files.", moved);
        let cut = stats.vacuum_cut_bytes as f64;
        all.counter("polybolt_vacuum_cut_bytes_total", "Bytes of files that vacuums gave back.", cut);
        all.counter("polybolt_page_bytes_total", "Bytes of pages that checkpoints wrote.", stats.page_bytes as f64);
        let journal = stats.journal_written_bytes as f64;
        all.counter("polybolt_journal_written_bytes_total", "Bytes of journal groups that were written.", journal);
        let written = stats.journal_written_bytes + stats.page_bytes;
        let put = self.keyspace.stats().put_bytes.max(1);
        let help =
            "Bytes of journal and pages that were written for each byte of keys and values put, since the start.";
        all.gauge("polybolt_write_amplification", help, written as f64 / put as f64);
        all.gauge("polybolt_scrub_rounds", "Times that the scrub has read all files.", stats.scrub_rounds as f64);
        all.gauge("polybolt_scrub_bytes", "Bytes that the scrub has read.", stats.scrub_bytes as f64);
        let round = stats.scrub_round_bytes as f64;
        all.gauge("polybolt_scrub_round_bytes", "Bytes that the scrub has read of the round under way.", round);
        let of = stats.scrub_round_of as f64;
        all.gauge("polybolt_scrub_round_of_bytes", "About as many as that round has, 0 between rounds.", of);
        all.gauge("polybolt_scrub_damage", "Damaged places that the scrub knows of.", stats.scrub_damage as f64);
    }
}
