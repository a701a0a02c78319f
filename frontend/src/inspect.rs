//! What polybolt answers beyond etcd's API: the shards.

use crate::proto::v1 as pb;
use crate::proto::v1::inspect_server::Inspect;
use crate::server::Server;
use polybolt::{Engine, Keyspace};
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// The Inspect service of a server.
#[derive(Debug, Clone)]
pub(crate) struct InspectService(pub(crate) Arc<Server>);

#[tonic::async_trait]
impl Inspect for InspectService {
    async fn shards(&self, request: Request<pb::ShardsRequest>) -> Result<Response<pb::ShardsResponse>, Status> {
        self.0.caller(request.metadata())?.check_user()?;
        Ok(Response::new(shards(&self.0.engine, &self.0.keyspace)))
    }
}

/// Sizes and counts of a keyspace, shard by shard.
pub fn shards(engine: &Engine, keyspace: &Keyspace) -> pb::ShardsResponse {
    let status = keyspace.status();
    let stats = engine.stats();
    let activity = keyspace.stats();
    let shard = |shard: polybolt::ShardStatus| pb::Shard {
        name: shard.name,
        file: shard.file.display().to_string(),
        durability: shard.durability.to_owned(),
        prefixes: shard.prefixes,
        size: shard.size,
        size_in_use: shard.size_in_use,
        keys: shard.keys,
        revisions: shard.revisions,
        depth: shard.depth,
        index_bytes: shard.index_bytes,
        floor: shard.floor,
    };
    pb::ShardsResponse {
        keyspace: keyspace.name().to_owned(),
        revision: status.revision,
        compact_revision: status.compact_revision,
        leases: status.leases,
        watchers: status.watchers,
        shards: status.shards.into_iter().map(shard).collect(),
        journal_bytes: stats.journal_bytes,
        journal_segments_recycled: stats.segments_recycled,
        checkpoints: stats.checkpoints,
        sync_calls: stats.sync_calls,
        journal_groups: stats.journal_groups,
        scrub_rounds: stats.scrub_rounds,
        scrub_bytes: stats.scrub_bytes,
        scrub_round_bytes: stats.scrub_round_bytes,
        scrub_round_of: stats.scrub_round_of,
        compaction_left: activity.sweep_left,
        compaction_seconds_left: activity.sweep_time_left.map_or(0, |left| left.as_secs()),
        compaction_lingering: activity.lingering,
        vacuum_moved_bytes: stats.vacuum_moved_bytes,
        vacuum_cut_bytes: stats.vacuum_cut_bytes,
        put_bytes: activity.put_bytes,
        journal_written_bytes: stats.journal_written_bytes,
        page_written_bytes: stats.page_bytes,
        damage: status.damage.iter().map(ToString::to_string).collect(),
    }
}
