//! `polybolt serve`: flags with etcd's names where etcd has the thing.

use clap::{ArgAction, Args, ValueEnum};
use polybolt::{CompactionPace, Durability, Engine, Keyspace, Options, Refusal, Routes};
use polybolt_frontend::access::Access;
use polybolt_frontend::admin::{BATCH_LIMIT_MAX, BUDGET_PERCENT_MAX};
use polybolt_frontend::auto_compact::{self, Retention};
use polybolt_frontend::listen;
use polybolt_frontend::server::{Server, Settings};
use polybolt_frontend::timed_disk::{SyncTimings, TimedDisk};
use polybolt_frontend::tls::Tls;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The served keyspace.
pub(crate) const KEYSPACE: &str = "default";
/// What quota 0 stands for (QTA-1).
const QUOTA_DEFAULT: i64 = 2 << 30;
/// Far more than anybody waits, and far less than clocks can be moved by.
const DURATION_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DurabilityArgument {
    /// Every write is synced before it is acknowledged.
    Sync,
    /// Writes are synced every --backend-batch-interval or --backend-batch-limit writes; a crash loses the last of them.
    Batch,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum CompactionMode {
    Periodic,
    Revision,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum AuthToken {
    Simple,
}

#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// This member's name.
    #[arg(long, default_value = "default", env = "ETCD_NAME")]
    name: String,
    /// Where the data is.
    #[arg(long, default_value = "polybolt.data", env = "ETCD_DATA_DIR")]
    data_dir: PathBuf,
    /// URLs to listen on for clients, separated by commas.
    #[arg(long, default_value = "http://127.0.0.1:2379", value_delimiter = ',', env = "ETCD_LISTEN_CLIENT_URLS")]
    listen_client_urls: Vec<String>,
    /// URLs that clients are told; those it listens on if not given.
    #[arg(long, value_delimiter = ',', env = "ETCD_ADVERTISE_CLIENT_URLS")]
    advertise_client_urls: Vec<String>,
    /// URLs that this member is listed with for other members; nobody listens there.
    #[arg(
        long,
        default_value = "http://localhost:2380",
        value_delimiter = ',',
        env = "ETCD_INITIAL_ADVERTISE_PEER_URLS"
    )]
    initial_advertise_peer_urls: Vec<String>,
    /// More URLs for /metrics and the probes only.
    #[arg(long, value_delimiter = ',', env = "ETCD_LISTEN_METRICS_URLS")]
    listen_metrics_urls: Vec<String>,
    /// The most bytes of files before writes raise the NOSPACE alarm; 0 is 2 GiB, negative is none.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true, env = "ETCD_QUOTA_BACKEND_BYTES")]
    quota_backend_bytes: i64,
    /// When a write is acknowledged.
    #[arg(long, value_enum, default_value = "sync")]
    durability: DurabilityArgument,
    /// How keys are split into files: kubernetes, single, or name=prefix,... (name:volatile=prefix for one
    /// that is not synced and empty after a crash). Fixed once the data exists.
    #[arg(long, value_parser = Routes::parse)]
    routes: Option<Routes>,
    /// The longest time between syncs with --durability=batch.
    #[arg(long, default_value = "100ms", value_parser = duration, env = "ETCD_BACKEND_BATCH_INTERVAL")]
    backend_batch_interval: Duration,
    /// The most writes between syncs with --durability=batch.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..), env = "ETCD_BACKEND_BATCH_LIMIT")]
    backend_batch_limit: u64,
    /// Bytes of write buffers, after half of which a checkpoint begins.
    #[arg(long, default_value_t = 64 << 20, value_parser = clap::value_parser!(u64).range(1 << 20..))]
    buffer_bytes: u64,
    /// How --auto-compaction-retention is meant.
    #[arg(long, value_enum, default_value = "periodic", env = "ETCD_AUTO_COMPACTION_MODE")]
    auto_compaction_mode: CompactionMode,
    /// What auto-compaction keeps: a duration (a bare number is hours) or a number of revisions; 0 is off.
    #[arg(long, default_value = "0", env = "ETCD_AUTO_COMPACTION_RETENTION")]
    auto_compaction_retention: String,
    /// Keep less history of some shards than of the rest: shard=duration or shard=revisions, of several with commas.
    /// Older reads and watches of their keys are refused like compacted ones.
    #[arg(long, value_delimiter = ',', value_parser = shard_retention)]
    shard_retention: Vec<(String, Retention)>,
    /// Revisions that one step of a compaction removes.
    #[arg(long, default_value = "1000", alias = "experimental-compaction-batch-limit", value_parser = batch_limit)]
    compaction_batch_limit: usize,
    /// The pause between steps of a compaction.
    #[arg(long, default_value = "10ms", value_parser = duration, alias = "experimental-compaction-sleep-interval")]
    compaction_sleep_interval: Duration,
    /// By how many percent the 99th percentile of reads and writes beside a compaction may rise before it slows
    /// down, to a third of what the two above allow at most; "off" is full speed always.
    #[arg(long, default_value = "10", value_parser = budget)]
    compaction_budget_percent: Budget,
    /// A compaction speeds up again to be done so long after it began; 0 is none.
    #[arg(long, default_value = "0s", value_parser = duration)]
    compaction_deadline: Duration,
    /// A leaf is written without what compactions removed of it once that is so much of it, or so much in all leaves of
    /// a shard that it is two thirds of that; 0 is at once.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u8).range(0..=100))]
    compaction_reclaim_percent: u8,
    /// Remember the hashes of compacted revisions for HashKV; reads every row once more at each compaction.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true",
        env = "ETCD_EXPERIMENTAL_COMPACT_HASH_CHECK_ENABLED")]
    experimental_compact_hash_check_enabled: bool,
    /// Record the remaining time of long leases, so that a restart extends them by less.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true",
        env = "ETCD_EXPERIMENTAL_ENABLE_LEASE_CHECKPOINT")]
    experimental_enable_lease_checkpoint: bool,
    /// Taken for granted: what is recorded is durable.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true",
        env = "ETCD_EXPERIMENTAL_ENABLE_LEASE_CHECKPOINT_PERSIST")]
    experimental_enable_lease_checkpoint_persist: bool,
    /// The same by their names of etcd 3.6: CompactHashCheck, LeaseCheckpoint and LeaseCheckpointPersist, each
    /// =true or =false, separated by commas.
    #[arg(long, value_delimiter = ',', value_parser = gate, env = "ETCD_FEATURE_GATES")]
    feature_gates: Vec<(Gate, bool)>,
    /// How often the remaining time of a lease is recorded.
    #[arg(long, default_value = "5m", value_parser = duration)]
    lease_checkpoint_interval: Duration,
    /// The most operations in a txn.
    #[arg(long, default_value_t = 128, env = "ETCD_MAX_TXN_OPS")]
    max_txn_ops: usize,
    /// The largest request in bytes, at most 256 MiB.
    #[arg(long, default_value_t = 1_572_864, value_parser = clap::value_parser!(u32).range(..=256 << 20), env = "ETCD_MAX_REQUEST_BYTES")]
    max_request_bytes: u32,
    /// The most bytes of answers to ranges that clients have yet to read; beyond, longer ranges are refused.
    #[arg(long, default_value_t = 1 << 30)]
    unread_bytes_max: u64,
    /// Read files with pread and a cache of so many bytes each, so that an error of the disk is one of the read
    /// that meets it; files are mapped if not given, and such an error ends the server.
    #[arg(long)]
    read_cache_bytes: Option<u64>,
    /// The longest that a slow reader (a snapshot, a stream of a range) holds compaction back.
    #[arg(long, default_value = "10m", value_parser = duration)]
    pin_age_max: Duration,
    /// The most revisions that it holds compaction back by.
    #[arg(long, default_value_t = 10_000_000)]
    pin_revisions_max: u64,
    /// The most streams of one connection; no limit if not given.
    #[arg(long, env = "ETCD_MAX_CONCURRENT_STREAMS")]
    max_concurrent_streams: Option<u32>,
    /// A client from which nothing comes for so long is pinged; 0 is never.
    #[arg(long, default_value = "2h", value_parser = duration, env = "ETCD_GRPC_KEEPALIVE_INTERVAL")]
    grpc_keepalive_interval: Duration,
    /// How long it has to answer before the connection is closed.
    #[arg(long, default_value = "20s", value_parser = duration, env = "ETCD_GRPC_KEEPALIVE_TIMEOUT")]
    grpc_keepalive_timeout: Duration,
    /// Origins whose pages may ask over HTTP, separated by commas; * is all.
    #[arg(long, default_value = "*", value_delimiter = ',', env = "ETCD_CORS")]
    cors: Vec<String>,
    /// Host names that requests over plain HTTP may have, separated by commas; * is all.
    #[arg(long, default_value = "*", value_delimiter = ',', env = "ETCD_HOST_WHITELIST")]
    host_whitelist: Vec<String>,
    /// The certificate for https, and those between it and its root (PEM); read again when it changes.
    #[arg(long, env = "ETCD_CERT_FILE")]
    cert_file: Option<PathBuf>,
    /// Its key (PEM).
    #[arg(long, env = "ETCD_KEY_FILE")]
    key_file: Option<PathBuf>,
    /// Roots of clients' certificates (PEM); if given, clients have to show one.
    #[arg(long, env = "ETCD_TRUSTED_CA_FILE")]
    trusted_ca_file: Option<PathBuf>,
    /// Clients have to show a certificate.
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", env = "ETCD_CLIENT_CERT_AUTH")]
    client_cert_auth: bool,
    /// Serves https with a certificate of its own, made at every start, if there is no --cert-file.
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", env = "ETCD_AUTO_TLS")]
    auto_tls: bool,
    /// Bytes of files that the scrub reads in a second, to find damage before it is met; 0 is no scrub.
    #[arg(long, default_value_t = 4 << 20)]
    scrub_bytes_per_second: u64,
    /// Bytes that the vacuum moves in a second from the ends of files to where there is room, so that they can be
    /// made shorter; it slows down while writers need the buffers. 0 is no vacuum but Defragment.
    #[arg(long, default_value_t = 8 << 20)]
    vacuum_bytes_per_second: u64,
    /// The vacuum takes up a file of which more than so much is free (and more than 4 MiB), and leaves half of that.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u8).range(1..=100))]
    vacuum_free_percent: u8,
    /// Bytes that Defragment (`etcdctl defrag`) writes in a second; 0 is as fast as it can be.
    #[arg(long, default_value_t = 32 << 20)]
    defragment_bytes_per_second: u64,
    /// Bytes of rows that `polybolt reshard` copies in a second on this server; 0 is as fast as it can be.
    #[arg(long, default_value_t = 32 << 20)]
    reshard_bytes_per_second: u64,
    /// How often quiet watchers are told their progress.
    #[arg(long, default_value = "10m", value_parser = duration, alias = "experimental-watch-progress-notify-interval")]
    watch_progress_notify_interval: Duration,
    /// How logins are remembered: simple is a token in this process's memory, so that a restart ends all logins.
    #[arg(long, value_enum, default_value = "simple", env = "ETCD_AUTH_TOKEN")]
    auth_token: AuthToken,
    /// Seconds after which a login ends that is not used.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..), env = "ETCD_AUTH_TOKEN_TTL")]
    auth_token_ttl: u32,
    /// How slow passwords are to guess: each step more doubles the time of a login.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(4..=31), env = "ETCD_BCRYPT_COST")]
    bcrypt_cost: u32,
    /// debug, info, warn or error.
    #[arg(long, default_value = "info", env = "ETCD_LOG_LEVEL")]
    log_level: tracing::Level,
}

/// What etcd 3.6 switches by name and this server has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gate {
    CompactHashCheck,
    LeaseCheckpoint,
    LeaseCheckpointPersist,
}

fn gate(text: &str) -> Result<(Gate, bool), String> {
    let (name, on) = text.split_once('=').ok_or_else(|| format!("{text:?} is not name=true or name=false"))?;
    let gate = match name.trim() {
        "CompactHashCheck" => Gate::CompactHashCheck,
        "LeaseCheckpoint" => Gate::LeaseCheckpoint,
        "LeaseCheckpointPersist" => Gate::LeaseCheckpointPersist,
        name => return Err(format!("there is no feature gate {name:?}")),
    };
    let on = on.trim().parse().map_err(|_| format!("{on:?} is neither true nor false"))?;
    Ok((gate, on))
}

/// --compaction-budget-percent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget(pub(crate) Option<u32>);

/// --compaction-budget-percent.
pub(crate) fn budget(text: &str) -> Result<Budget, String> {
    match text {
        "off" => Ok(Budget(None)),
        _ => text
            .parse()
            .ok()
            .filter(|percent| *percent <= BUDGET_PERCENT_MAX)
            .map(|percent| Budget(Some(percent)))
            .ok_or_else(|| format!("{text:?} is neither a number up to {BUDGET_PERCENT_MAX} nor off")),
    }
}

/// --compaction-batch-limit.
pub(crate) fn batch_limit(text: &str) -> Result<usize, String> {
    let limit = text.parse().ok().filter(|limit| (1..=BATCH_LIMIT_MAX).contains(limit));
    let limit = limit.and_then(|limit| usize::try_from(limit).ok());
    limit.ok_or_else(|| format!("{text:?} is no number from 1 to {BATCH_LIMIT_MAX}"))
}

/// --shard-retention.
fn shard_retention(text: &str) -> Result<(String, Retention), String> {
    let (shard, kept) = text.split_once('=').ok_or("it is shard=duration or shard=revisions, as events=10m")?;
    let retention = match kept.parse() {
        Ok(revisions) if revisions > 0 => Retention::Revisions(revisions),
        Ok(_) => return Err(format!("{kept:?} revisions cannot be kept")),
        Err(_) => Retention::Period(duration(kept)?),
    };
    match retention {
        Retention::Period(Duration::ZERO) => Err(format!("{kept:?}: nothing would be kept")),
        retention => Ok((shard.to_owned(), retention)),
    }
}

/// A flag that is a time.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|error| format!("{error}; try 100ms, 5s or 1h"))?;
    if duration > DURATION_MAX {
        return Err(format!("{text:?} is more than {}", humantime::format_duration(DURATION_MAX)));
    }
    Ok(duration)
}

/// Refuses --shard-retention of shards that are not there.
fn check_shards(keyspace: &Keyspace, retention: &[(String, Retention)]) -> Result<(), String> {
    let routes = keyspace.routes();
    let known: Vec<&str> = routes.shards().iter().map(|shard| &shard.name[..]).collect();
    for (at, (shard, _)) in retention.iter().enumerate() {
        if !known.contains(&&shard[..]) {
            return Err(format!("--shard-retention: no shard {shard:?}; there are {}", known.join(", ")));
        }
        if retention[..at].iter().any(|(other, _)| other == shard) {
            return Err(format!("--shard-retention: shard {shard:?} twice"));
        }
    }
    Ok(())
}

impl Serve {
    pub(crate) fn run(self) -> Result<(), String> {
        let ansi = std::io::stderr().is_terminal();
        let log = tracing_subscriber::fmt().with_max_level(self.log_level).with_target(false);
        log.with_ansi(ansi).with_writer(std::io::stderr).init();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        runtime.map_err(|error| format!("cannot start threads: {error}"))?.block_on(self.serve())
    }

    fn retention(&self) -> Result<Option<Retention>, String> {
        let text = &self.auto_compaction_retention;
        let bad = || format!("--auto-compaction-retention {text:?} is neither a duration nor a number");
        let number = text.parse::<i64>().ok();
        if number == Some(0) {
            return Ok(None);
        }
        match (self.auto_compaction_mode, number) {
            (CompactionMode::Revision, Some(count)) if count > 0 => Ok(Some(Retention::Revisions(count))),
            (CompactionMode::Periodic, Some(hours)) => {
                let hours = u64::try_from(hours).map_err(|_| bad())?;
                Ok(Some(Retention::Period(Duration::from_secs(hours.saturating_mul(3600)))))
            }
            (CompactionMode::Periodic, None) => {
                let period = humantime::parse_duration(text).map_err(|_| bad())?;
                Ok((!period.is_zero()).then_some(Retention::Period(period)))
            }
            _ => Err(bad()),
        }
    }

    /// A gate by its flag of 3.5 or its name of 3.6.
    fn is_on(&self, gate: Gate) -> bool {
        let flag = match gate {
            Gate::CompactHashCheck => self.experimental_compact_hash_check_enabled,
            Gate::LeaseCheckpoint => self.experimental_enable_lease_checkpoint,
            Gate::LeaseCheckpointPersist => self.experimental_enable_lease_checkpoint_persist,
        };
        let named = self.feature_gates.iter().rev().find(|(named, _)| *named == gate);
        named.map_or(flag, |(_, on)| *on)
    }

    pub(crate) fn options(&self) -> Options {
        let durability = match self.durability {
            DurabilityArgument::Sync => Durability::Sync,
            DurabilityArgument::Batch => {
                Durability::Batch { interval: self.backend_batch_interval, limit: self.backend_batch_limit }
            }
        };
        Options {
            durability,
            buffer_bytes: self.buffer_bytes,
            compaction_pace: CompactionPace {
                batch_limit: self.compaction_batch_limit,
                sleep_interval: self.compaction_sleep_interval,
                budget_percent: self.compaction_budget_percent.0,
                deadline: Some(self.compaction_deadline).filter(|deadline| !deadline.is_zero()),
            },
            reclaim_percent: self.compaction_reclaim_percent,
            max_txn_ops: self.max_txn_ops,
            max_request_bytes: self.max_request_bytes.into(),
            quota_bytes: u64::try_from(self.quota()).ok(),
            remember_hashes: self.is_on(Gate::CompactHashCheck),
            lease_checkpoint_interval: self.is_on(Gate::LeaseCheckpoint).then_some(self.lease_checkpoint_interval),
            read_cache_bytes: self.read_cache_bytes,
            pin_age_max: self.pin_age_max,
            pin_revisions_max: self.pin_revisions_max,
            scrub_bytes_per_second: self.scrub_bytes_per_second,
            vacuum_bytes_per_second: self.vacuum_bytes_per_second,
            vacuum_free_percent: self.vacuum_free_percent,
            defragment_bytes_per_second: self.defragment_bytes_per_second,
            reshard_bytes_per_second: self.reshard_bytes_per_second,
            ..Options::default()
        }
    }

    fn quota(&self) -> i64 {
        if self.quota_backend_bytes == 0 { QUOTA_DEFAULT } else { self.quota_backend_bytes.max(-1) }
    }

    pub(crate) fn tls(&self) -> Tls {
        Tls {
            cert_file: self.cert_file.clone(),
            key_file: self.key_file.clone(),
            trusted_ca_file: self.trusted_ca_file.clone(),
            client_cert_auth: self.client_cert_auth,
            auto: self.auto_tls,
        }
    }

    pub(crate) fn listening(&self) -> listen::Options {
        let set = |names: &[String]| names.iter().filter(|name| !name.is_empty()).cloned().collect();
        listen::Options {
            streams_max: self.max_concurrent_streams,
            keepalive_interval: self.grpc_keepalive_interval,
            keepalive_timeout: self.grpc_keepalive_timeout,
            access: Access { origins: set(&self.cors), hosts: set(&self.host_whitelist) },
        }
    }

    /// Refuses what cannot be served; the retention of auto-compaction, if it is on.
    pub(crate) fn check(&self) -> Result<Option<Retention>, String> {
        let retention = self.retention()?;
        if self.watch_progress_notify_interval < Duration::from_millis(100) {
            return Err("--watch-progress-notify-interval has to be at least 100ms".to_owned());
        }
        if self.is_on(Gate::LeaseCheckpointPersist) && !self.is_on(Gate::LeaseCheckpoint) {
            return Err("LeaseCheckpointPersist requires LeaseCheckpoint".to_owned());
        }
        if self.lease_checkpoint_interval.is_zero() {
            return Err("--lease-checkpoint-interval has to be above 0".to_owned());
        }
        Ok(retention)
    }

    async fn serve(self) -> Result<(), String> {
        let retention = self.check()?;
        // Before anything slow, and before the ports are taken.
        let mut terminate = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| error.to_string())?;
        let mut clients = Vec::new();
        let hosts = self.listen_client_urls.iter().chain(&self.listen_metrics_urls).chain(&self.advertise_client_urls);
        let hosts = hosts.filter_map(|url| listen::host(url)).map(str::to_owned).collect();
        let tls = self.tls().config(hosts)?;
        for url in &self.listen_client_urls {
            clients.push(listen::bind(url, tls.as_ref()).await?);
        }
        let mut metrics = Vec::new();
        for url in &self.listen_metrics_urls {
            metrics.push(listen::bind(url, tls.as_ref()).await?);
        }
        let (path, options, routes) = (self.data_dir.clone(), self.options(), self.routes.clone());
        let opened = tokio::task::spawn_blocking(move || open(&path, options, routes)).await;
        let (engine, keyspace, syncs) = opened.map_err(|error| error.to_string())??;
        if let Err(why) = check_shards(&keyspace, &self.shard_retention) {
            // Not just left: it would count as a crash.
            drop(keyspace);
            engine.close().map_err(|error| error.to_string())?;
            return Err(why);
        }
        let settings = Settings {
            name: self.name.clone(),
            peer_urls: self.initial_advertise_peer_urls.clone(),
            advertise_client_urls: if self.advertise_client_urls.is_empty() {
                self.listen_client_urls.clone()
            } else {
                self.advertise_client_urls.clone()
            },
            quota_bytes: self.quota(),
            max_request_bytes: self.max_request_bytes as usize,
            unread_bytes_max: self.unread_bytes_max,
            progress_interval: self.watch_progress_notify_interval,
            token_ttl: Duration::from_secs(self.auth_token_ttl.into()),
            bcrypt_cost: self.bcrypt_cost,
            retained_shards: self.shard_retention.iter().map(|(shard, _)| shard.clone()).collect(),
        };
        let stop = CancellationToken::new();
        let (served, token) = (engine.clone(), stop.clone());
        let started =
            tokio::task::spawn_blocking(move || Server::start(served, keyspace, settings, syncs, token)).await;
        let server = started.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        if let Some(retention) = retention {
            tokio::spawn(auto_compact::run(server.clone(), None, retention));
        }
        for (shard, retention) in self.shard_retention.clone() {
            tokio::spawn(auto_compact::run(server.clone(), Some(shard), retention));
        }
        tokio::spawn(log_damage(engine.clone(), stop.clone()));
        for url in &self.listen_client_urls {
            tracing::info!(%url, "ready to serve client requests");
        }
        let serving = tokio::spawn(listen::serve(server, clients, metrics, self.listening()));
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal = name, "stopping");
        stop.cancel();
        drop(serving.await);
        let closed = tokio::task::spawn_blocking(move || engine.close()).await;
        closed
            .map_err(|error| error.to_string())?
            .map_err(|error| format!("closing {}: {error}", self.data_dir.display()))?;
        tracing::info!("closed");
        Ok(())
    }
}

/// How often the findings of the scrub and the state of the disk are looked at.
const DAMAGE_INTERVAL: Duration = Duration::from_secs(5);

/// Logs what the scrub finds, once each, and when the disk is full and when it is not any more.
async fn log_damage(engine: Engine, stop: CancellationToken) {
    let (mut known, mut was_full) = (Vec::new(), false);
    while tokio::time::timeout(DAMAGE_INTERVAL, stop.cancelled()).await.is_err() {
        match (was_full, engine.is_disk_full()) {
            (false, true) => tracing::error!("the disk is full: writes are refused until there is room"),
            (true, false) => tracing::info!("the disk has room: writes go on"),
            _ => {}
        }
        was_full = engine.is_disk_full();
        let found = engine.scrubbed().damage;
        for damage in found.iter().filter(|damage| !known.contains(*damage)) {
            tracing::error!(%damage, "the scrub found damage");
        }
        known = found;
    }
}

fn open(
    path: &std::path::Path,
    options: Options,
    routes: Option<Routes>,
) -> Result<(Engine, Keyspace, Arc<SyncTimings>), String> {
    let disk = TimedDisk::default();
    let syncs = disk.timings();
    let clock = Arc::new(polybolt::run::SystemClock::default());
    let runtime = polybolt::Runtime { disk: Arc::new(disk), clock, threads: true };
    let engine = Engine::open_with(path, options, runtime).map_err(|error| error.to_string())?;
    let report = engine.report();
    let dropped = report.dropped.as_ref().map(|dropped| format!("{dropped:?}"));
    tracing::info!(
        path = %path.display(), created = report.created, clean = report.clean, slot = report.slot, groups = report.groups,
        records = report.records, emptied = report.emptied, "opened"
    );
    if let Some(other) = &report.other_slot {
        tracing::warn!(why = %other, "the other manifest slot could not be used");
    }
    if let Some(dropped) = dropped {
        tracing::warn!(%dropped, "the unsynced end of the journal was dropped");
    }
    let keyspace = match engine.keyspace(KEYSPACE) {
        Ok(keyspace) => keyspace,
        Err(polybolt::Error::Refused(Refusal::KeyspaceNotFound { .. })) => {
            let routes = routes.clone().unwrap_or_else(Routes::kubernetes);
            engine.create_keyspace(KEYSPACE, routes).map_err(|error| error.to_string())?
        }
        Err(error) => return Err(error.to_string()),
    };
    if let Some(routes) = routes
        && *keyspace.routes() != routes
    {
        return Err(format!(
            "--routes: {} has other routes; leave the flag out to keep them, or change them with polybolt reshard",
            path.display()
        ));
    }
    Ok((engine, keyspace, syncs))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The time of the next tick overflowed, and with it went every watch stream.
    #[test]
    fn a_duration_that_no_clock_reaches_is_refused() {
        assert_eq!(duration("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(duration("3650days"), Ok(DURATION_MAX));
        for text in ["3650days 1s", "500000000000y", "99999999999999999999y", "-1s", ""] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
