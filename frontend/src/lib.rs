//! The etcd v3 services on polybolt.
//!
//! Reading order: [`proto`] (the wire), `convert` (wire to library and back, errors to codes),
//! [`server`] (what the services share: keyspace, identity, alarms), one file per service, `http`
//! (probes and metrics), `auto_compact`, and [`listen`], which serves it all on its ports. A file
//! imports only from lines above it.
#![forbid(unsafe_code)]

/// Messages and services, generated from `proto/`.
#[expect(
    missing_docs,
    unused_qualifications,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    reason = "generated"
)]
pub mod proto {
    /// Keys and events.
    pub mod mvccpb {
        tonic::include_proto!("mvccpb");
    }
    /// Users and roles.
    pub mod authpb {
        tonic::include_proto!("authpb");
    }
    /// The etcd v3 API.
    pub mod etcdserverpb {
        tonic::include_proto!("etcdserverpb");
    }
    /// Locks.
    pub mod v3lockpb {
        tonic::include_proto!("v3lockpb");
    }
    /// Elections.
    pub mod v3electionpb {
        tonic::include_proto!("v3electionpb");
    }
    /// What polybolt answers beyond it.
    pub mod v1 {
        tonic::include_proto!("polybolt.v1");
    }
}

mod convert;
mod metrics;
pub mod server;
mod kv;
mod watch;
mod lease;
mod maintenance;
mod queue;
mod lock;
mod election;
mod cluster;
mod auth;
pub mod inspect;
mod http;
pub mod auto_compact;
pub mod listen;
