//! What the services share: the keyspace, who this member is, its alarms, and how it stops.

use crate::compaction::Follower;
use crate::convert;
use crate::gauges::{LookedUp, Open};
use crate::metrics::Metrics;
use crate::proto::etcdserverpb as pb;
use crate::timed_disk::SyncTimings;
use crate::users::{AuthError, Caller, Users};
use bytes::Bytes;
use parking_lot::Mutex;
use polybolt::{Engine, Error, Keyspace, Refusal, Result, TableEdit};
use prost::Message;
use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::metadata::MetadataMap;

pub use crate::version::{CLUSTER_VERSION, ETCD_VERSION};

/// There are no elections: the term is always the first that etcd would have.
pub(crate) const TERM: u64 = 2;

/// What a gRPC message may have beyond the largest request.
const MESSAGE_SLACK: usize = 512 << 10;
/// How long a write may take before its caller is told that nobody knows (SRV-4).
const REQUEST_TIMEOUT: Duration = Duration::from_secs(7);

const DISK_FULL: &str =
    "the disk is full: only deletes and compactions are taken; free some disk space, and writes go on";

const MEMBER_TABLE: &str = "member";
const ALARM_TABLE: &str = "alarm";

/// How a server presents itself, and its limits.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The member's name.
    pub name: String,
    /// The URLs of the member for other members, at the first start; nobody listens there.
    pub peer_urls: Vec<String>,
    /// The URLs that clients are told.
    pub advertise_client_urls: Vec<String>,
    /// The quota as it is reported: negative if there is none.
    pub quota_bytes: i64,
    /// The largest request.
    pub max_request_bytes: usize,
    /// The most bytes of answers to ranges that clients have yet to read; more than one key at a time is not
    /// ranged over until they do.
    pub unread_bytes_max: u64,
    /// How often quiet watchers that ask for it are told their progress.
    pub progress_interval: Duration,
    /// How long a login lasts that is not used.
    pub token_ttl: Duration,
    /// How slow passwords are to guess: 2 to the power of this, 4..=31.
    pub bcrypt_cost: u32,
    /// Shards with a retention of their own: no change of routes may leave them out.
    pub retained_shards: Vec<String>,
}

impl Settings {
    /// The largest gRPC message (SRV-2).
    pub(crate) fn message_max(&self) -> usize {
        self.max_request_bytes + MESSAGE_SLACK
    }
}

/// One served keyspace.
#[derive(Debug)]
pub struct Server {
    // Set when it starts, never changed.
    pub(crate) engine: Engine,
    pub(crate) keyspace: Keyspace,
    pub(crate) settings: Settings,
    pub(crate) member_id: u64,
    pub(crate) cluster_id: u64,
    pub(crate) metrics: Metrics,
    pub(crate) users: Arc<Users>,
    pub(crate) compactions: Follower,
    /// Ends streams and listeners.
    pub(crate) stop: CancellationToken,

    /// Also in the table.
    peer_urls: Mutex<Vec<String>>,
    /// (member, type); also in the table.
    alarms: Mutex<BTreeSet<(u64, i32)>>,
}

impl Server {
    /// Serves `keyspace`, whose disk times its syncs; ids are made at the first start and kept with the data.
    ///
    /// # Errors
    /// If the tables cannot be read or written.
    pub fn start(
        engine: Engine,
        keyspace: Keyspace,
        settings: Settings,
        syncs: Arc<SyncTimings>,
        stop: CancellationToken,
    ) -> Result<Arc<Server>> {
        let member_id = identity(&keyspace, "member-id")?;
        let cluster_id = identity(&keyspace, "cluster-id")?;
        let alarms = keyspace.table_list(ALARM_TABLE)?.into_iter().filter_map(|(key, _)| alarm_of(&key)).collect();
        let metrics = Metrics::new(
            LookedUp {
                engine: engine.clone(),
                keyspace: keyspace.clone(),
                quota: settings.quota_bytes,
                member_id,
                syncs,
                unread_bytes_max: settings.unread_bytes_max,
                open: Open::default(),
            },
            settings.message_max(),
        );
        let peer_urls = match keyspace.table_get(MEMBER_TABLE, PEER_URLS)? {
            Some(stored) => pb::Member::decode(stored).map(|member| member.peer_ur_ls).unwrap_or_default(),
            None => {
                keyspace.table_write(vec![peer_urls_edit(&settings.peer_urls)]).wait()?;
                settings.peer_urls.clone()
            }
        };
        let (alarms, peer_urls) = (Mutex::new(alarms), Mutex::new(peer_urls));
        let users = Users::load(&keyspace, settings.token_ttl, settings.bcrypt_cost)?;
        Ok(Arc::new(Server {
            engine,
            keyspace,
            settings,
            member_id,
            cluster_id,
            metrics,
            users,
            compactions: Follower::default(),
            stop,
            peer_urls,
            alarms,
        }))
    }

    /// Who asks, by what comes with a request.
    pub(crate) fn caller(&self, metadata: &MetadataMap) -> Result<Caller, AuthError> {
        self.users.caller(metadata)
    }

    pub(crate) fn peer_urls(&self) -> Vec<String> {
        self.peer_urls.lock().clone()
    }

    /// Other URLs for other members.
    pub(crate) async fn set_peer_urls(&self, urls: Vec<String>) -> Result<()> {
        self.keyspace.table_write(vec![peer_urls_edit(&urls)]).await?;
        *self.peer_urls.lock() = urls;
        Ok(())
    }

    pub(crate) fn header(&self, revision: i64) -> pb::ResponseHeader {
        pb::ResponseHeader { cluster_id: self.cluster_id, member_id: self.member_id, revision, raft_term: TERM }
    }

    /// A header with the current revision.
    pub(crate) fn header_now(&self) -> pb::ResponseHeader {
        self.header(self.keyspace.revision())
    }

    /// Those that were raised, and NOSPACE as long as the disk is full: that one goes by itself.
    pub(crate) fn alarms(&self) -> Vec<pb::AlarmMember> {
        let mut alarms = self.alarms.lock().clone();
        if self.engine.is_disk_full() {
            alarms.insert((self.member_id, pb::AlarmType::Nospace as i32));
        }
        alarms.into_iter().map(|(member_id, alarm)| pb::AlarmMember { member_id, alarm }).collect()
    }

    pub(crate) fn has_alarm(&self, alarm: pb::AlarmType) -> bool {
        self.alarms.lock().iter().any(|(_, kind)| *kind == alarm as i32)
    }

    /// Why no writes are taken, or only those that free space.
    pub(crate) fn trouble(&self) -> Option<String> {
        let failure = self.engine.failure().map(|failure| failure.to_string());
        failure.or_else(|| self.engine.is_disk_full().then(|| DISK_FULL.to_owned()))
    }

    /// Raises an alarm; it stays until it is disarmed.
    pub(crate) async fn raise(&self, member: u64, alarm: i32) -> Result<()> {
        if !self.alarms.lock().insert((member, alarm)) {
            return Ok(());
        }
        tracing::warn!(alarm, "alarm raised");
        let edit = TableEdit { table: ALARM_TABLE.into(), key: alarm_key(member, alarm), value: Some(Bytes::new()) };
        self.keyspace.table_write(vec![edit]).await
    }

    /// Disarms an alarm; true if it was raised.
    pub(crate) async fn disarm(&self, member: u64, alarm: i32) -> Result<bool> {
        if !self.alarms.lock().contains(&(member, alarm)) {
            return Ok(false);
        }
        let edit = TableEdit { table: ALARM_TABLE.into(), key: alarm_key(member, alarm), value: None };
        self.keyspace.table_write(vec![edit]).await?;
        Ok(self.alarms.lock().remove(&(member, alarm)))
    }

    /// Refuses writes under a CORRUPT alarm, and those that need room under NOSPACE (QTA-6, MNT-6).
    pub(crate) fn check_alarms(&self, needs_room: bool) -> Result<(), Status> {
        if self.has_alarm(pb::AlarmType::Corrupt) {
            return Err(Status::data_loss("etcdserver: corrupt cluster"));
        }
        if needs_room && self.has_alarm(pb::AlarmType::Nospace) {
            return Err(convert::status(&Error::Refused(Refusal::NoSpace)));
        }
        if needs_room && self.engine.is_disk_full() {
            return Err(convert::status(&Error::Refused(Refusal::DiskFull)));
        }
        Ok(())
    }

    /// Refuses a request that is larger than a log entry of etcd's may be (SRV-1).
    pub(crate) fn check_size(&self, request: &impl Message) -> Result<(), Status> {
        let (size, max) = (request.encoded_len() + ENTRY_BYTES, self.settings.max_request_bytes);
        if size > max {
            let (size, max) = (size as u64, max as u64);
            return Err(convert::status(&Error::Refused(Refusal::TooLarge { size, max })));
        }
        Ok(())
    }

    /// Waits for a write, as long as etcd does. One that takes longer may still happen.
    pub(crate) async fn written<T>(
        &self,
        op: &'static str,
        write: impl Future<Output = Result<T>>,
    ) -> Result<T, Status> {
        let counted = self.metrics.write(op);
        match tokio::time::timeout(REQUEST_TIMEOUT, write).await {
            Ok(Ok(done)) => {
                counted.ended(true);
                Ok(done)
            }
            Ok(Err(error)) => {
                if matches!(error, Error::Refused(_)) {
                    counted.ended(false);
                }
                Err(self.refuse(error).await)
            }
            Err(_) => Err(Status::unavailable("etcdserver: request timed out")),
        }
    }

    /// The answer to a write that was refused or failed; being out of room raises the alarm (QTA-4).
    pub(crate) async fn refuse(&self, error: Error) -> Status {
        if matches!(error, Error::Refused(Refusal::NoSpace))
            && let Err(error) = self.raise(self.member_id, pb::AlarmType::Nospace as i32).await
        {
            tracing::error!(%error, "the NOSPACE alarm could not be stored; it holds until a restart");
        }
        if !matches!(error, Error::Refused(_)) {
            tracing::error!(%error, "write failed");
        }
        convert::status(&error)
    }
}

/// What a log entry of etcd's has besides its request.
const ENTRY_BYTES: usize = 32;

fn identity(keyspace: &Keyspace, what: &str) -> Result<u64> {
    let stored = keyspace.table_get(MEMBER_TABLE, what.as_bytes())?;
    if let Some(id) = stored.and_then(|bytes| Some(u64::from_be_bytes(bytes[..].try_into().ok()?))) {
        return Ok(id);
    }
    // Never 0 (CLU-2).
    let id = RandomState::new().hash_one(what) | 1;
    let value = Some(Bytes::copy_from_slice(&id.to_be_bytes()));
    let key = Bytes::copy_from_slice(what.as_bytes());
    keyspace.table_write(vec![TableEdit { table: MEMBER_TABLE.into(), key, value }]).wait()?;
    Ok(id)
}

const PEER_URLS: &[u8] = b"peer-urls";

fn peer_urls_edit(urls: &[String]) -> TableEdit {
    let member = pb::Member { peer_ur_ls: urls.to_vec(), ..pb::Member::default() };
    let (key, value) = (Bytes::from_static(PEER_URLS), Some(member.encode_to_vec().into()));
    TableEdit { table: MEMBER_TABLE.into(), key, value }
}

fn alarm_key(member: u64, alarm: i32) -> Bytes {
    let mut key = member.to_be_bytes().to_vec();
    key.extend_from_slice(&alarm.to_be_bytes());
    key.into()
}

fn alarm_of(key: &[u8]) -> Option<(u64, i32)> {
    let (member, alarm) = key.split_at_checked(8)?;
    Some((u64::from_be_bytes(member.try_into().ok()?), i32::from_be_bytes(alarm.try_into().ok()?)))
}

/// Runs what may take long on a thread that may block.
pub(crate) async fn off_thread<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    tokio::task::spawn_blocking(run).await.map_err(|error| Status::internal(error.to_string()))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use polybolt::{Options, Routes};

    pub(crate) fn start(dir: &std::path::Path) -> Arc<Server> {
        let engine = Engine::open(dir, Options::default()).expect("a new store");
        let keyspace = engine.create_keyspace("default", Routes::single()).expect("a new keyspace");
        let settings = Settings {
            name: "default".into(),
            peer_urls: Vec::new(),
            advertise_client_urls: Vec::new(),
            quota_bytes: -1,
            max_request_bytes: 1 << 20,
            unread_bytes_max: 1 << 30,
            progress_interval: Duration::from_secs(600),
            token_ttl: Duration::from_secs(300),
            bcrypt_cost: 4,
            retained_shards: Vec::new(),
        };
        Server::start(engine, keyspace, settings, Arc::default(), CancellationToken::new()).expect("tables")
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_takes_too_long_times_out_srv_4() {
        let dir = tempfile::tempdir().expect("a directory");
        let server = start(dir.path());
        let begun = tokio::time::Instant::now();
        let ended = server.written("Put", std::future::pending::<Result<()>>()).await.expect_err("nothing comes");
        assert_eq!((ended.code(), ended.message()), (tonic::Code::Unavailable, "etcdserver: request timed out"));
        // The clock is moved by the runtime: 5 s and two election timeouts of 1 s.
        assert_eq!(begun.elapsed().as_secs(), 7);
        let busy = async { Err::<(), _>(Refusal::TooManyRequests.into()) };
        let refused = server.written("Put", busy).await.expect_err("refused");
        assert_eq!((refused.code(), refused.message()), (tonic::Code::Unknown, "etcdserver: too many requests"));
    }
}
