//! The command line of a run.

use crate::peer::Kind;
use std::path::{Path, PathBuf};

/// What `--help` says of rows and peers.
pub const HELP: &str = "\
Rows (of a store that was closed and opened again, unless they fill one):
   1  memory of polybolt's index alone
   2  point get, newest revision        3  ... by 2 threads over 1
   4  gets beside puts at full speed    5  range of one namespace's pods
   6  range of all pods, streamed       7  limit 500 of them with the exact count
   8  count of them                     9  pages of 500 at an older revision
  10  load, Batch                      11  overwrites, Batch, by 1 caller and by 64
  12  durable put, 1 caller            13  durable puts by 64 callers
  14  compare-and-swap txns, Batch     15  puts beside an endless full range
  16  reopen after SIGKILL             17  a watcher far behind, and puts beside it
  18  bytes written, bytes of files    (19: growth, which `plot` prints of runs of several sizes)

Peers; no tables are compressed, every durable write is synced:
  polybolt  default options, routes for Kubernetes
  lmdb      default flags, no WRITEMAP, rows appended
  redb      immediate durability, a cache of 2 GiB
  fjall     an atomic batch an operation, the journal persisted at each commit, a cache of 2 GiB
  rocksdb   an atomic write an operation, the log synced at each commit, a cache of 2 GiB
  sqlite    a table as kine has it, WAL, synchronous = FULL, the file mapped
  etcd      etcd's own core, a program of its own (--etcd-core), its defaults
Batch is a commit every 100 ms or 10,000 operations. Of 64 callers, those of a peer without group commit share a
writer thread that commits whatever waits; without it is shown, too.";

/// What is to be run.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// How many keys are loaded, a multiple of 20,000.
    #[arg(long, default_value_t = 1_000_000)]
    pub keys: usize,
    /// What values are: 512 bytes each, or as long and as compressible as objects are. These take ten times the room.
    #[arg(long, value_enum, default_value_t = Shape::Flat)]
    pub data: Shape,
    /// Rounds over all peers of rows that read.
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// Rounds of rows that write. They take longest.
    #[arg(long, default_value_t = 1)]
    pub writes: usize,
    /// Rows of docs/benchmarks.md, all if none.
    #[arg(long, value_delimiter = ',')]
    pub rows: Vec<u32>,
    /// Peers, all if none.
    #[arg(long, value_delimiter = ',', value_enum)]
    pub peers: Vec<Kind>,
    /// Where stores are made; a new directory under the system's if not given.
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Seconds that a row may take for a peer in a round, if one pass is not longer.
    #[arg(long, default_value_t = 0.7)]
    pub seconds: f64,
    /// The program with etcd's core.
    #[arg(long, env = "POLYBOLT_ETCD_CORE")]
    pub etcd_core: Option<PathBuf>,
    /// Where the JSON goes; `benches/results/peers-KEYS.json` if not given.
    #[arg(long)]
    pub out: Option<PathBuf>,
}

/// The shape of values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Shape {
    /// 512 bytes that do not compress.
    Flat,
    /// A median of 2 KiB, one in a hundred above 64 KiB, about 4 times compressible.
    Objects,
}

impl Arguments {
    /// True if values are as objects have them.
    pub fn objects(&self) -> bool {
        self.data == Shape::Objects
    }

    /// Where the JSON goes.
    pub fn out(&self, memory: bool) -> PathBuf {
        let default = || {
            let data = if self.objects() { "-objects" } else { "" };
            let name = format!("peers-{}{data}{}.json", self.keys, if memory { "-tmpfs" } else { "" });
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../results").join(name)
        };
        self.out.clone().unwrap_or_else(default)
    }
}
