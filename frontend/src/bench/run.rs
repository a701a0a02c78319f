//! One run of a load.

use super::connect::{Connection, connect};
use super::error::Error;
use super::keys::{Keys, Values};
use super::options::{Load, Options};
use super::tally::{Report, Tally};
use super::turns::Turns;
use super::watchers::Watchers;
use super::work::{Client, Shared};
use crate::proto::etcdserverpb as pb;
use indicatif::{HumanCount, ProgressBar};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// Puts under way while keys are put before a run.
const FILL_AHEAD: u64 = 256;
/// Keys of one page while revisions are read before a run.
const PAGE_KEYS: i64 = 5000;
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// Runs a load until its end, or until `stop` is cancelled, and tells what came of it. Keys that the load needs
/// are put first where they are not there. `bar` shows how far it is.
pub async fn run(options: &Options, bar: &ProgressBar, stop: &CancellationToken) -> Result<Report, Error> {
    Ok(prepare(options, bar, stop).await?.run(bar, stop).await)
}

/// A load that can begin: connected, with the keys that it needs, and with its watchers.
#[derive(Debug)]
pub struct Ready {
    shared: Arc<Shared>,
    connections: Vec<Connection>,
    watchers: Option<Watchers>,
    server: String,
    filled: u64,
}

/// All of a run that comes before its requests.
///
/// # Errors
/// What makes no sense, whom nobody reaches, and what the server refused.
pub async fn prepare(options: &Options, bar: &ProgressBar, stop: &CancellationToken) -> Result<Ready, Error> {
    options.validate()?;
    let keys = Keys::new(options)?;
    let connections = connect(options).await?;
    let Some(first) = connections.first() else {
        return Err(Error::Options("--endpoints names nobody to ask".to_owned()));
    };
    let server = first.version().await;
    let run =
        getrandom::u64().map_err(|error| Error::Options(format!("the system gives no random number: {error}")))?;
    let mut shared = Shared {
        values: Values::new(options.seed, options.val_size, run),
        options: options.clone(),
        keys,
        run,
        epoch: Instant::now(),
        known: Vec::new(),
        tally: Tally::new(options.clients),
    };
    let filled =
        if options.check && options.load.needs_keys() { fill(&connections, &shared, bar, stop).await? } else { 0 };
    if matches!(options.load, Load::Txn | Load::Mixed { .. }) {
        shared.known = revisions(first, &shared).await?;
    }
    let shared = Arc::new(shared);
    let watchers = match options.load.watchers() {
        Some((streams, each)) => Some(Watchers::start(&connections, streams, each, &shared).await?),
        None => None,
    };
    Ok(Ready { shared, connections, watchers, server, filled })
}

impl Ready {
    /// Makes the requests, until the end or until `stop` is cancelled.
    pub async fn run(self, bar: &ProgressBar, stop: &CancellationToken) -> Report {
        let Ready { shared, connections, watchers, server, filled } = self;
        let options = &shared.options;
        let (turns, pacer) = Turns::begin(options.plan(), options.clients, stop.clone());
        let progress = tokio::spawn(show(bar.clone(), Arc::clone(&shared), Arc::clone(&turns)));
        let mut clients = JoinSet::new();
        for (id, connection) in (0..options.clients).zip(connections.iter().cycle()) {
            clients.spawn(Client::new(id, connection.kv(), Arc::clone(&shared), Arc::clone(&turns)).run());
        }
        clients.join_all().await;
        let unsent = turns.unsent();
        drop(pacer);
        progress.abort();
        let watch = match watchers {
            Some(watchers) => Some(watchers.finish(&shared, stop).await),
            None => None,
        };
        bar.finish_and_clear();
        Report { server, filled, unsent, watch, ..shared.tally.report(options, options.warmup) }
    }
}

/// How many keys of the load are there.
async fn count(connection: &Connection, keys: &Keys) -> Result<i64, Error> {
    let (key, range_end) = keys.all();
    let request = pb::RangeRequest { key, range_end, count_only: true, ..Default::default() };
    let answer = connection.kv().range(request).await.map_err(connection.refused("a count of the load's keys"))?;
    Ok(answer.into_inner().count)
}

/// Puts every key, unless all are there; how many it put.
async fn fill(
    connections: &[Connection],
    shared: &Shared,
    bar: &ProgressBar,
    stop: &CancellationToken,
) -> Result<u64, Error> {
    let (first, keys) = (&connections[0], &shared.keys);
    let wanted = i64::try_from(keys.count).unwrap_or(i64::MAX);
    if count(first, keys).await? == wanted {
        return Ok(0);
    }
    bar.set_length(keys.count);
    bar.set_message("putting the keys that the load needs");
    let next = Arc::new(AtomicU64::new(0));
    let mut fillers = JoinSet::new();
    for (filler, connection) in (0..FILL_AHEAD).zip(connections.iter().cycle()) {
        let (connection, mut kv, next) = (connection.clone(), connection.kv(), Arc::clone(&next));
        let (keys, values, bar, stop) = (keys.clone(), shared.values.clone(), bar.clone(), stop.clone());
        let mut numbers = super::keys::Numbers::of(shared.options.seed, u64::MAX - filler);
        fillers.spawn(async move {
            let refused = connection.refused("a put of a key that the load needs");
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= keys.count {
                    return Ok(());
                }
                if stop.is_cancelled() {
                    return Err(refused(Status::cancelled("it was interrupted")));
                }
                let (key, value) = (keys.key(n), values.any(&mut numbers));
                kv.put(pb::PutRequest { key, value, ..Default::default() }).await.map_err(&refused)?;
                bar.inc(1);
            }
        });
    }
    while let Some(done) = fillers.join_next().await {
        done.unwrap_or_else(|_| Err(first.refused("a put")(Status::aborted("its task ended"))))?;
    }
    let found = count(first, keys).await?;
    if found != wanted {
        let (endpoint, prefix) = (first.endpoint.clone(), shared.options.prefix.clone());
        return Err(Error::Foreign { endpoint, prefix, expected: keys.count, found });
    }
    Ok(keys.count)
}

/// The revision that each key was last changed at; 0 if answers mean nothing.
async fn revisions(connection: &Connection, shared: &Shared) -> Result<Vec<AtomicI64>, Error> {
    if !shared.options.check {
        return Ok((0..shared.keys.count).map(|_| AtomicI64::new(0)).collect());
    }
    let (mut key, range_end) = shared.keys.all();
    let mut known = Vec::new();
    loop {
        let request = pb::RangeRequest {
            key,
            range_end: range_end.clone(),
            keys_only: true,
            limit: PAGE_KEYS,
            ..Default::default()
        };
        let answer = connection.kv().range(request).await.map_err(connection.refused("a list of the load's keys"))?;
        let answer = answer.into_inner();
        known.extend(answer.kvs.iter().map(|kv| AtomicI64::new(kv.mod_revision)));
        match answer.kvs.last() {
            Some(last) if answer.more => key = [&last.key[..], &[0]].concat().into(),
            _ => return Ok(known),
        }
    }
}

/// Shows how far a run is, until it is aborted.
async fn show(bar: ProgressBar, shared: Arc<Shared>, turns: Arc<Turns>) {
    const STEPS: u64 = 1000;
    bar.set_length(STEPS);
    let mut tick = tokio::time::interval(PROGRESS_EVERY);
    let (mut before, mut at) = (0, Duration::ZERO);
    loop {
        tick.tick().await;
        let (tally, options, now) = (&shared.tally, &shared.options, turns.now());
        let (answered, failed) = (tally.answered.load(Ordering::Relaxed), tally.failed.load(Ordering::Relaxed));
        let all = answered + tally.warmed.load(Ordering::Relaxed);
        let part = |done: u128, of: u128| u64::try_from(done * u128::from(STEPS) / of.max(1)).unwrap_or(STEPS);
        let timed = options.duration.map(|duration| part(now.as_nanos(), (options.warmup + duration).as_nanos()));
        let counted = options.total.map(|total| part(u128::from(answered), u128::from(total)));
        bar.set_position(timed.max(counted).unwrap_or(0).min(STEPS));
        let millis = now.saturating_sub(at).as_millis().max(1);
        let rate = u64::try_from(u128::from(all.saturating_sub(before)) * 1000 / millis).unwrap_or(0);
        let phase = if now < options.warmup { "warming up: " } else { "" };
        bar.set_message(format!("{phase}{} requests/s, {} failed", HumanCount(rate), HumanCount(failed)));
        (before, at) = (all, now);
    }
}
