//! What operators change beyond etcd's API: how keys are split into files.

use crate::convert;
use crate::metrics::Up;
use crate::proto::v1 as pb;
use crate::proto::v1::admin_server::Admin;
use crate::proto::v1::compaction_pace_request::Budget;
use crate::proto::v1::reshard_response::Stage;
use crate::server::Server;
use polybolt::{CompactionPace, ReshardProgress, ReshardStage, Routes};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// The Admin service of a server.
#[derive(Debug, Clone)]
pub(crate) struct AdminService(pub(crate) Arc<Server>);

/// How often a client is told of rows.
const TELL_INTERVAL: Duration = Duration::from_millis(200);

#[tonic::async_trait]
impl Admin for AdminService {
    type ReshardStream = ReceiverStream<Result<pb::ReshardResponse, Status>>;

    async fn reshard(&self, request: Request<pb::ReshardRequest>) -> Result<Response<Self::ReshardStream>, Status> {
        let Self(server) = self;
        server.caller(request.metadata())?.check_root()?;
        let routes = Routes::parse(&request.get_ref().routes)
            .map_err(|why| Status::invalid_argument(format!("polybolt: routes: {why}")))?;
        let missing = |kept: &&String| !routes.shards().iter().any(|shard| shard.name == **kept);
        if let Some(kept) = server.settings.retained_shards.iter().find(missing) {
            return Err(Status::failed_precondition(format!(
                "polybolt: shard {kept:?} has a retention of its own (--shard-retention), and these routes have no such shard"
            )));
        }
        let server = Arc::clone(server);
        // What nobody reads is left out, but for the end.
        let (sender, receiver) = mpsc::channel(16);
        tokio::task::spawn_blocking(move || {
            let up = Up::new(&server.metrics.resharding);
            let mut last: Option<(Stage, Instant)> = None;
            let mut now = pb::ReshardResponse::default();
            let progress = |progress: ReshardProgress| {
                let stage = stage(progress.stage);
                now = pb::ReshardResponse { stage: stage.into(), rows: progress.rows, of: progress.of };
                if last.is_none_or(|(before, at)| before != stage || at.elapsed() >= TELL_INTERVAL) {
                    last = Some((stage, Instant::now()));
                    sender.try_send(Ok(now)).ok();
                }
            };
            let name = server.keyspace.name().to_owned();
            let done = server.engine.reshard(&name, routes, progress).and_then(|reshard| reshard.wait());
            match &done {
                Ok(()) => tracing::info!(rows = now.rows, "keys are split otherwise"),
                Err(error) => tracing::warn!(%error, "keys could not be split otherwise"),
            }
            let end = done.map(|()| pb::ReshardResponse { stage: Stage::Done.into(), ..now });
            // A client that does not read keeps this thread, and nothing else.
            drop(up);
            sender.blocking_send(end.map_err(|error| convert::status(&error))).ok();
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn compaction_pace(
        &self,
        request: Request<pb::CompactionPaceRequest>,
    ) -> Result<Response<pb::CompactionPaceResponse>, Status> {
        let Self(server) = self;
        server.caller(request.metadata())?.check_root()?;
        let keyspace = &server.keyspace;
        let request = request.into_inner();
        check(&request)?;
        let failed = |error: polybolt::Error| convert::status(&error);
        let shard = Some(&request.shard[..]).filter(|shard| !shard.is_empty());
        if let Some(shard) = shard {
            keyspace.compaction_pace(shard).map_err(failed)?;
        }
        if request != (pb::CompactionPaceRequest { shard: request.shard.clone(), ..Default::default() }) {
            keyspace.change_compaction_pace(shard, |pace| change(pace, &request)).map_err(failed)?;
            tracing::info!(?request, "the pace of compactions is changed");
        }
        let routes = keyspace.routes();
        let names =
            routes.shards().iter().map(|known| &known.name[..]).filter(|name| shard.is_none_or(|one| one == *name));
        let shards = names.map(|name| Ok(show(name, keyspace.compaction_pace(name).map_err(failed)?)));
        Ok(Response::new(pb::CompactionPaceResponse { shards: shards.collect::<Result<_, Status>>()? }))
    }
}

fn show(shard: &str, pace: CompactionPace) -> pb::ShardPace {
    pb::ShardPace {
        shard: shard.to_owned(),
        batch_limit: pace.batch_limit as u64,
        sleep_micros: micros(pace.sleep_interval),
        budget_percent: pace.budget_percent,
        deadline_millis: pace.deadline.map(|deadline| micros(deadline) / 1000),
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// More in one step would hold up whatever else the background does.
pub const BATCH_LIMIT_MAX: u64 = 1 << 20;
/// More is no budget.
pub const BUDGET_PERCENT_MAX: u32 = 10_000;
/// A day, and a year.
const SLEEP_MICROS_MAX: u64 = 24 * 3600 * 1_000_000;
const DEADLINE_MILLIS_MAX: u64 = 365 * 24 * 3600 * 1000;

/// Refuses what is no pace.
fn check(request: &pb::CompactionPaceRequest) -> Result<(), Status> {
    let refused = |what: String| Err(Status::invalid_argument(format!("polybolt: {what}")));
    if request.batch_limit.is_some_and(|limit| !(1..=BATCH_LIMIT_MAX).contains(&limit)) {
        return refused(format!("batch_limit is from 1 to {BATCH_LIMIT_MAX}"));
    }
    if request.sleep_micros.is_some_and(|sleep| sleep > SLEEP_MICROS_MAX) {
        return refused("sleep_micros is a day at most".to_owned());
    }
    if matches!(request.budget, Some(Budget::BudgetPercent(percent)) if percent > BUDGET_PERCENT_MAX) {
        return refused(format!("budget_percent is {BUDGET_PERCENT_MAX} at most"));
    }
    if request.deadline_millis.is_some_and(|deadline| deadline > DEADLINE_MILLIS_MAX) {
        return refused("deadline_millis is a year at most".to_owned());
    }
    Ok(())
}

/// Changes what a request sets, which was checked.
fn change(pace: &mut CompactionPace, request: &pb::CompactionPaceRequest) {
    if let Some(limit) = request.batch_limit {
        pace.batch_limit = usize::try_from(limit).unwrap_or(usize::MAX);
    }
    if let Some(sleep) = request.sleep_micros {
        pace.sleep_interval = Duration::from_micros(sleep);
    }
    match request.budget {
        Some(Budget::BudgetPercent(percent)) => pace.budget_percent = Some(percent),
        Some(Budget::NoBudget(_)) => pace.budget_percent = None,
        None => {}
    }
    match request.deadline_millis {
        Some(0) => pace.deadline = None,
        Some(deadline) => pace.deadline = Some(Duration::from_millis(deadline)),
        None => {}
    }
}

fn stage(stage: ReshardStage) -> Stage {
    match stage {
        ReshardStage::Copy => Stage::Copy,
        ReshardStage::Index => Stage::Index,
        ReshardStage::Follow => Stage::Follow,
        ReshardStage::Switch => Stage::Switch,
    }
}
