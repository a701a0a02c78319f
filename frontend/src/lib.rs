//! The etcd v3 services on polybolt.
//!
//! Reading order: [`proto`] (the wire), `convert` (wire to library and back, errors to codes), `calls` (what
//! every call passes), `metrics`, `users` (who may do what), [`server`] (what the services share: keyspace,
//! identity, alarms), one file per service, `http` (probes), `gateway` (JSON), `auto_compact`, `authority`
//! (connections of clients that send a bad one), [`tls`], and [`listen`], which serves it all on its ports. Apart
//! from them [`mod@bench`], a client. A file imports only from lines above it.
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
    /// The Watch service with events that are encoded already, which is the same on the wire: an event is
    /// encoded once, for all streams that it is sent on.
    pub mod encoded {
        use super::etcdserverpb::ResponseHeader;
        use bytes::Bytes;

        include!(concat!(env!("OUT_DIR"), "/etcdserverpb.KV.rs"));
        include!(concat!(env!("OUT_DIR"), "/etcdserverpb.Watch.rs"));

        /// `etcdserverpb.RangeResponse`.
        #[derive(Clone, PartialEq, prost::Message)]
        pub struct RangeResponse {
            #[prost(message, optional, tag = "1")]
            pub header: Option<ResponseHeader>,
            /// Each an `mvccpb.KeyValue`.
            #[prost(bytes = "bytes", repeated, tag = "2")]
            pub kvs: Vec<Bytes>,
            #[prost(bool, tag = "3")]
            pub more: bool,
            #[prost(int64, tag = "4")]
            pub count: i64,
        }

        /// `etcdserverpb.RangeStreamResponse`.
        #[derive(Clone, PartialEq, prost::Message)]
        pub struct RangeStreamResponse {
            #[prost(message, optional, tag = "1")]
            pub range_response: Option<RangeResponse>,
        }

        /// `etcdserverpb.WatchResponse`.
        #[derive(Clone, PartialEq, prost::Message)]
        pub struct WatchResponse {
            #[prost(message, optional, tag = "1")]
            pub header: Option<ResponseHeader>,
            #[prost(int64, tag = "2")]
            pub watch_id: i64,
            #[prost(bool, tag = "3")]
            pub created: bool,
            #[prost(bool, tag = "4")]
            pub canceled: bool,
            #[prost(int64, tag = "5")]
            pub compact_revision: i64,
            #[prost(string, tag = "6")]
            pub cancel_reason: String,
            #[prost(bool, tag = "7")]
            pub fragment: bool,
            /// Each an `mvccpb.Event`.
            #[prost(bytes = "bytes", repeated, tag = "11")]
            pub events: Vec<Bytes>,
        }
    }
    /// What polybolt answers beyond it.
    pub mod v1 {
        tonic::include_proto!("polybolt.v1");
    }

    /// All of them, by name.
    pub(crate) fn descriptors() -> &'static prost_reflect::DescriptorPool {
        static POOL: std::sync::LazyLock<prost_reflect::DescriptorPool> = std::sync::LazyLock::new(|| {
            let bytes = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
            prost_reflect::DescriptorPool::decode(&bytes[..]).expect("written by build.rs")
        });
        &POOL
    }
}

mod version;
mod convert;
mod outbox;
mod calls;
pub mod timed_disk;
mod memory;
mod gauges;
mod metrics;
mod users;
mod compaction;
pub mod server;
mod range;
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
pub mod admin;
pub mod access;
mod http;
mod gateway;
pub mod auto_compact;
mod hpack;
mod authority;
pub mod tls;
pub mod listen;
pub mod bench;
