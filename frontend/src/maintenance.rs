//! The Maintenance service.

use crate::convert;
use crate::metrics::Up;
use crate::outbox::Outbox;
use crate::proto::etcdserverpb as pb;
use crate::proto::etcdserverpb::maintenance_server::Maintenance;
use crate::server::{CLUSTER_VERSION, ETCD_VERSION, Server, TERM, off_thread};
use bytes::{Bytes, BytesMut};
use polybolt::Refusal;
use sha2::{Digest, Sha256};
use std::pin::Pin;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// The Maintenance service of a server.
#[derive(Debug, Clone)]
pub(crate) struct MaintenanceService(pub(crate) Arc<Server>);

/// The most bytes of one message of a snapshot (MNT-3).
const BLOB_BYTES: usize = 32 << 10;
/// Tools expect an image of whole sectors, then its hash.
const SECTOR_BYTES: usize = 512;

/// One minor version below the cluster's.
const DOWNGRADE_TARGET: (u32, u32) = (3, 5);

/// Major and minor of `X.Y` or `X.Y.Z`, which may have a suffix after its numbers.
fn minor_version(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.splitn(3, '.');
    let mut number = || parts.next().and_then(|part| part.parse().ok());
    let (major, minor) = (number()?, number()?);
    match parts.next().map(|patch| patch.split(['-', '+']).next().unwrap_or_default().parse::<u32>()) {
        None | Some(Ok(_)) => Some((major, minor)),
        Some(Err(_)) => None,
    }
}

#[tonic::async_trait]
impl Maintenance for MaintenanceService {
    async fn alarm(&self, request: Request<pb::AlarmRequest>) -> Result<Response<pb::AlarmResponse>, Status> {
        let Self(server) = self;
        let caller = server.caller(request.metadata())?;
        // To look, any user will do (MNT-9).
        if request.get_ref().action == pb::alarm_request::AlarmAction::Get as i32 {
            caller.check_user()?;
        } else {
            caller.check_root()?;
        }
        let pb::AlarmRequest { action, member_id, alarm } = request.into_inner();
        let one = pb::AlarmMember { member_id, alarm };
        let failed = |error: polybolt::Error| convert::status(&error);
        let alarms = match action {
            0 => {
                let wanted = |member: &pb::AlarmMember| alarm == pb::AlarmType::None as i32 || member.alarm == alarm;
                server.alarms().into_iter().filter(wanted).collect()
            }
            1 if alarm == pb::AlarmType::None as i32 => Vec::new(),
            1 => {
                server.raise(member_id, alarm).await.map_err(failed)?;
                vec![one]
            }
            2 if server.disarm(member_id, alarm).await.map_err(failed)? => vec![one],
            2 => Vec::new(),
            _ => {
                return Err(Status::invalid_argument(format!("etcdserver: there is no alarm action {action}")));
            }
        };
        Ok(Response::new(pb::AlarmResponse { header: Some(server.header_now()), alarms }))
    }

    async fn status(&self, request: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        let Self(server) = self;
        server.caller(request.metadata())?.check_user()?;
        let status = server.keyspace.status();
        let name = |alarm| pb::AlarmType::try_from(alarm).map_or("UNKNOWN", |alarm| alarm.as_str_name());
        let mut errors: Vec<String> = server
            .alarms()
            .iter()
            .map(|alarm| format!("memberID:{} alarm:{}", alarm.member_id, name(alarm.alarm)))
            .collect();
        errors.extend(server.trouble());
        // There is no log of its own: a revision stands for the entry that made it.
        let index = status.revision.cast_unsigned();
        Ok(Response::new(pb::StatusResponse {
            header: Some(server.header(status.revision)),
            version: ETCD_VERSION.into(),
            db_size: status.size.cast_signed(),
            leader: server.member_id,
            raft_index: index,
            raft_term: TERM,
            raft_applied_index: index,
            errors,
            db_size_in_use: status.size_in_use.cast_signed(),
            is_learner: false,
            storage_version: CLUSTER_VERSION.into(),
            db_size_quota: server.settings.quota_bytes,
            downgrade_info: Some(pb::DowngradeInfo::default()),
        }))
    }

    async fn defragment(
        &self,
        request: Request<pb::DefragmentRequest>,
    ) -> Result<Response<pb::DefragmentResponse>, Status> {
        self.0.caller(request.metadata())?.check_root()?;
        let metrics = &self.0.metrics;
        let (_up, _timer) = (Up::new(&metrics.defragmenting), metrics.defragment.start_timer());
        let keyspace = self.0.keyspace.clone();
        off_thread(move || keyspace.defragment()).await?.map_err(|error| convert::status(&error))?;
        Ok(Response::new(pb::DefragmentResponse { header: None }))
    }

    async fn hash(&self, request: Request<pb::HashRequest>) -> Result<Response<pb::HashResponse>, Status> {
        let Self(server) = self;
        server.caller(request.metadata())?.check_root()?;
        let _timer = server.metrics.hash.start_timer();
        let keyspace = server.keyspace.clone();
        let hash = off_thread(move || keyspace.hash()).await?.map_err(|error| convert::status(&error))?;
        Ok(Response::new(pb::HashResponse { header: Some(server.header_now()), hash }))
    }

    async fn hash_kv(&self, request: Request<pb::HashKvRequest>) -> Result<Response<pb::HashKvResponse>, Status> {
        let Self(server) = self;
        server.caller(request.metadata())?.check_root()?;
        let _timer = server.metrics.hash_rev.start_timer();
        let keyspace = server.keyspace.clone();
        let revision = request.into_inner().revision;
        let hash = off_thread(move || keyspace.hash_kv(revision)).await?.map_err(|error| convert::status(&error))?;
        Ok(Response::new(pb::HashKvResponse {
            header: Some(server.header(hash.revision)),
            hash: hash.hash,
            compact_revision: hash.compact_revision,
            hash_revision: hash.hash_revision,
        }))
    }

    type SnapshotStream = Pin<Box<dyn futures_util::Stream<Item = Result<pb::SnapshotResponse, Status>> + Send>>;

    async fn snapshot(&self, request: Request<pb::SnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        let Self(server) = self;
        server.caller(request.metadata())?.check_root()?;
        let place = server.metrics.snapshots.take().ok_or_else(|| convert::refused(Refusal::TooManyRequests))?;
        let stall_max = server.engine.options().pin_age_max;
        let keyspace = server.keyspace.clone();
        let frames = off_thread(move || keyspace.snapshot()).await?.map_err(|error| convert::status(&error))?;
        // How long the stream will be is not known before its end: at least 1 until then.
        let estimate = server.keyspace.status().size_in_use;
        let (sender, receiver) = Outbox::new(&server.metrics.snapshot_bytes);
        let timer = server.metrics.snapshot.start_timer();
        tokio::task::spawn_blocking(move || {
            let _place = place;
            let mut digest = Sha256::new();
            let (mut buffer, mut sent) = (BytesMut::new(), 0u64);
            let mut send = |blob: Bytes, remaining: Option<u64>| {
                let bytes = blob.len();
                sent += bytes as u64;
                let remaining_bytes = remaining.unwrap_or_else(|| estimate.saturating_sub(sent).max(1));
                let message =
                    pb::SnapshotResponse { header: None, remaining_bytes, blob, version: CLUSTER_VERSION.into() };
                // What it is of may be gone by then: a client that reads nothing for so long is let go.
                sender.send_within(stall_max, Ok(message), bytes).is_ok()
            };
            for frame in frames {
                match frame {
                    Ok(frame) => buffer.extend_from_slice(&frame),
                    Err(error) => {
                        drop(sender.send_within(stall_max, Err(convert::status(&error)), 0));
                        return;
                    }
                }
                while buffer.len() >= BLOB_BYTES {
                    let blob = buffer.split_to(BLOB_BYTES).freeze();
                    digest.update(&blob);
                    if !send(blob, None) {
                        return;
                    }
                }
            }
            // What is left is shorter than a blob, which is whole sectors: so is the image, padded.
            buffer.resize(buffer.len().next_multiple_of(SECTOR_BYTES), 0);
            digest.update(&buffer);
            if send(buffer.freeze(), Some(0)) {
                send(Bytes::copy_from_slice(&digest.finalize()), Some(0));
            }
            timer.observe_duration();
        });
        Ok(Response::new(Box::pin(receiver)))
    }

    async fn move_leader(
        &self,
        request: Request<pb::MoveLeaderRequest>,
    ) -> Result<Response<pb::MoveLeaderResponse>, Status> {
        self.0.caller(request.metadata())?.check_root()?;
        if request.into_inner().target_id == self.0.member_id {
            Ok(Response::new(pb::MoveLeaderResponse { header: None }))
        } else {
            Err(Status::failed_precondition("etcdserver: bad leader transferee"))
        }
    }

    async fn downgrade(
        &self,
        request: Request<pb::DowngradeRequest>,
    ) -> Result<Response<pb::DowngradeResponse>, Status> {
        self.0.caller(request.metadata())?.check_root()?;
        let pb::DowngradeRequest { action, version } = request.into_inner();
        let header = Some(self.0.header_now());
        match action {
            0 | 1 => match minor_version(&version) {
                None => Err(Status::invalid_argument("etcdserver: wrong downgrade target version format")),
                Some(DOWNGRADE_TARGET) if action == 0 => {
                    Ok(Response::new(pb::DowngradeResponse { header, version: CLUSTER_VERSION.into() }))
                }
                Some(DOWNGRADE_TARGET) => {
                    Err(Status::unimplemented("polybolt's files have no older format to go back to"))
                }
                Some(_) => Err(Status::invalid_argument("etcdserver: invalid downgrade target version")),
            },
            2 => Err(Status::failed_precondition("etcdserver: no inflight downgrade job")),
            _ => Err(Status::unknown("etcdserver: unknown method")),
        }
    }
}
