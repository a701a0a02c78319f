//! What is asked of every server, and by how much polybolt has to be better.

use polybolt_frontend::bench::{Load, Options};
use serde::Serialize;
use std::time::Duration;

/// How the load is shaped.
#[derive(Debug, Clone, Serialize, clap::Args)]
pub(crate) struct Shape {
    /// Clients of the rows that have many; each has one request under way.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    clients: u64,
    /// Connections that they share.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    conns: u64,
    /// Keys of each row.
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u64).range(LIST_GROUP..))]
    keys: u64,
    /// Bytes of a value.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u64).range(16..=1 << 20))]
    pub(crate) value_bytes: u64,
    /// Seconds of a turn before what is measured.
    #[arg(long, default_value = "0.5", value_parser = crate::seconds)]
    #[serde(skip)]
    warmup: Duration,
    /// Seconds of a turn.
    #[arg(long, default_value = "3", value_parser = crate::seconds)]
    #[serde(skip)]
    seconds: Duration,
}

/// Keys of a prefix that is listed, and how many are on a page, as Kubernetes lists a large resource.
const LIST_GROUP: u64 = 5000;
const LIST_PAGE: u64 = 500;
/// Keys of a prefix that is listed whole, among other requests.
pub(crate) const MIXED_GROUP: u64 = 50;

/// What polybolt has to reach; a lower 99th percentile in any case.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bar {
    /// So many times the requests a second.
    Times(f64),
    /// [`READ_TIMES`] the requests a second, or, where the generator takes more than [`GENERATOR_SHARE`] of the
    /// processors, [`READ_CPU`] times less of the server's processor time for each.
    Read,
    /// Nothing but that.
    Latency,
}

pub(crate) const READ_TIMES: f64 = 2.0;
pub(crate) const READ_CPU: f64 = 2.5;
pub(crate) const GENERATOR_SHARE: f64 = 0.4;

/// A load that every server gets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) bar: Bar,
    load: Load,
    prefix: &'static str,
    one_client: bool,
}

pub(crate) const ROWS: [Row; 5] = [
    Row {
        name: "put-1",
        what: "put, one client",
        bar: Bar::Times(1.1),
        load: Load::Put,
        prefix: "/registry/configmaps/",
        one_client: true,
    },
    Row {
        name: "put",
        what: "put, many clients",
        bar: Bar::Times(3.0),
        load: Load::Put,
        prefix: "/registry/configmaps/",
        one_client: false,
    },
    Row {
        name: "get",
        what: "linearizable get",
        bar: Bar::Read,
        load: Load::Range { serializable: false },
        prefix: "/registry/pods/",
        one_client: false,
    },
    Row {
        name: "list",
        what: "a page of 500 of 5,000 keys, with their count",
        bar: Bar::Read,
        load: Load::List { list_keys: LIST_GROUP, limit: LIST_PAGE, serializable: false },
        prefix: "/registry/secrets/",
        one_client: false,
    },
    Row {
        name: "mixed",
        what: "of 100: 50 get, 10 list 50 keys, 30 update, 5 create, 5 delete; 4 watchers of all",
        bar: Bar::Latency,
        load: Load::Mixed { list_keys: MIXED_GROUP, streams: 2, watch_per_stream: 2 },
        prefix: "/registry/minions/",
        one_client: false,
    },
];

impl Shape {
    /// How long a turn is measured.
    pub(crate) fn seconds(&self) -> f64 {
        self.seconds.as_secs_f64()
    }
}

impl Row {
    /// A turn at the server on a port. One that is `idle` answers without a store, and has no watchers.
    pub(crate) fn options(&self, shape: &Shape, port: u16, idle: bool, seed: u64) -> Options {
        let load = match self.load {
            Load::Mixed { list_keys, .. } if idle => Load::Mixed { list_keys, streams: 0, watch_per_stream: 0 },
            load => load,
        };
        let (clients, conns) = if self.one_client { (1, 1) } else { (shape.clients, shape.conns) };
        Options {
            load,
            endpoints: vec![format!("127.0.0.1:{port}")],
            clients,
            conns,
            total: None,
            duration: Some(shape.seconds),
            warmup: shape.warmup,
            key_size: 56,
            val_size: usize::try_from(shape.value_bytes).unwrap_or(usize::MAX),
            key_space_size: shape.keys,
            prefix: self.prefix.to_owned(),
            seed,
            check: !idle,
            ..Options::default()
        }
    }
}
