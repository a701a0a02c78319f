//! What a load does and how hard.

use super::error::Error;
use super::keys::STAMP_BYTES;
use super::schedule::{Plan, Rate};
use serde::{Serialize, Serializer};
use std::time::Duration;

/// What is asked of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum Load {
    /// Puts of keys that may be new.
    Put,
    /// Puts of keys that are all there.
    Overwrite,
    /// One key each.
    Range {
        /// From what the asked member knows, without asking the others.
        serializable: bool,
    },
    /// Keys of a prefix, with their values and the count of all.
    List {
        /// How many keys a prefix has.
        list_keys: u64,
        /// The most that are listed; 0 is all.
        limit: u64,
        /// As above.
        serializable: bool,
    },
    /// Compare-and-swaps of one key each by the revision it was last changed at, as Kubernetes updates.
    Txn,
    /// Puts, and watchers of them all: an event's latency counts from when its put was due.
    Watch {
        /// Streams, each on a connection of the load.
        streams: u64,
        /// Watchers on each stream, all of the whole prefix.
        watch_per_stream: u64,
    },
    /// As a Kubernetes API server: of 100 requests, 50 get an object, 10 list a prefix, 30 update by
    /// compare-and-swap, 5 create a key and 5 delete one that was created; beside a few watchers.
    Mixed {
        /// How many keys a listed prefix has.
        list_keys: u64,
        /// As above.
        streams: u64,
        /// As above.
        watch_per_stream: u64,
    },
}

impl Load {
    /// Its subcommand.
    pub fn name(&self) -> &'static str {
        match self {
            Load::Put => "put",
            Load::Overwrite => "overwrite",
            Load::Range { .. } => "range",
            Load::List { .. } => "list",
            Load::Txn => "txn",
            Load::Watch { .. } => "watch",
            Load::Mixed { .. } => "mixed",
        }
    }

    pub(super) fn list_keys(&self) -> Option<u64> {
        match self {
            Load::List { list_keys, .. } | Load::Mixed { list_keys, .. } => Some(*list_keys),
            _ => None,
        }
    }

    /// Streams, and watchers on each.
    pub(super) fn watchers(&self) -> Option<(u64, u64)> {
        match self {
            Load::Watch { streams, watch_per_stream } | Load::Mixed { streams, watch_per_stream, .. } => {
                Some((*streams, *watch_per_stream)).filter(|(streams, each)| streams * each > 0)
            }
            _ => None,
        }
    }

    /// True if every key has to be there before.
    pub(super) fn needs_keys(&self) -> bool {
        !matches!(self, Load::Put | Load::Watch { .. })
    }
}

/// A run of a load.
#[derive(Debug, Clone, Serialize)]
pub struct Options {
    /// What is asked.
    pub load: Load,
    /// Whom, by turns: addresses with or without `http://`.
    pub endpoints: Vec<String>,
    /// As whom: name:password.
    #[serde(skip)]
    pub user: Option<String>,
    /// Requests under way at once, at most.
    pub clients: u64,
    /// Connections that they share.
    pub conns: u64,
    /// The most requests that count.
    pub total: Option<u64>,
    /// How long requests begin that count; at the end of the first of both.
    #[serde(serialize_with = "seconds_if")]
    pub duration: Option<Duration>,
    /// How long requests are made before that do not count.
    #[serde(serialize_with = "seconds")]
    pub warmup: Duration,
    /// Requests a second; as fast as answers come if none.
    #[serde(serialize_with = "per_second")]
    pub rate: Option<Rate>,
    /// Bytes of a key, prefix included.
    pub key_size: usize,
    /// Bytes of a value.
    pub val_size: usize,
    /// How many keys there are.
    pub key_space_size: u64,
    /// Keys by turns, not at random.
    pub sequential_keys: bool,
    /// What all keys begin with.
    pub prefix: String,
    /// Of random keys and values.
    pub seed: u64,
    /// How long an answer may take.
    #[serde(serialize_with = "seconds")]
    pub timeout: Duration,
    /// Wrong answers are failures. If not, for a server that does nothing, keys are not put before either.
    pub check: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            load: Load::Put,
            endpoints: vec!["127.0.0.1:2379".to_owned()],
            user: None,
            clients: 1,
            conns: 1,
            total: Some(10_000),
            duration: None,
            warmup: Duration::ZERO,
            rate: None,
            key_size: 32,
            val_size: 512,
            key_space_size: 10_000,
            sequential_keys: false,
            prefix: "/bench/".to_owned(),
            seed: 1,
            timeout: Duration::from_secs(30),
            check: true,
        }
    }
}

impl Options {
    pub(super) fn plan(&self) -> Plan {
        Plan { warmup: self.warmup, total: self.total, duration: self.duration, rate: self.rate }
    }

    pub(super) fn validate(&self) -> Result<(), Error> {
        let wrong = |what: &str| Err(Error::Options(what.to_owned()));
        if self.clients == 0 || self.conns == 0 {
            return wrong("--clients and --conns are at least 1");
        }
        if self.endpoints.is_empty() {
            return wrong("--endpoints names nobody to ask");
        }
        if self.total.is_none() && self.duration.is_none() {
            return wrong("a run without an end: --total or --duration is needed");
        }
        if matches!(self.load, Load::Watch { .. }) && self.load.watchers().is_none() {
            return wrong("--streams and --watch-per-stream are at least 1");
        }
        if self.load.watchers().is_some() && self.val_size < STAMP_BYTES {
            return Err(Error::Options(format!(
                "--val-size is {}: with watchers a value holds the time of its put, {STAMP_BYTES} bytes at least",
                self.val_size
            )));
        }
        Ok(())
    }
}

#[expect(clippy::ref_option, reason = "as serde passes it")]
fn seconds_if<S: Serializer>(time: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
    time.map(|time| time.as_secs_f64()).serialize(to)
}

fn seconds<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(time.as_secs_f64())
}

#[expect(clippy::trivially_copy_pass_by_ref, clippy::ref_option, reason = "as serde passes it")]
fn per_second<S: Serializer>(rate: &Option<Rate>, to: S) -> Result<S::Ok, S::Error> {
    rate.map(Rate::per_second).serialize(to)
}
