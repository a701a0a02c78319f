//! What operators change beyond etcd's API: how keys are split into files.

use crate::convert;
use crate::metrics::Up;
use crate::proto::v1 as pb;
use crate::proto::v1::admin_server::Admin;
use crate::proto::v1::reshard_response::Stage;
use crate::server::Server;
use polybolt::{ReshardProgress, ReshardStage, Routes};
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
}

fn stage(stage: ReshardStage) -> Stage {
    match stage {
        ReshardStage::Copy => Stage::Copy,
        ReshardStage::Index => Stage::Index,
        ReshardStage::Follow => Stage::Follow,
        ReshardStage::Switch => Stage::Switch,
    }
}
