//! Load for any server of the etcd v3 API, and how fast it answers.
//!
//! Reading order: `error`, `schedule` (when requests are due), `options`, `keys`, `tally` (what is counted, and
//! the [`Report`]), `connect`, `turns` (who makes which request when), `work` (the requests), `watchers`, `run`,
//! `command` (`polybolt bench`).
//!
//! With a [`Rate`] a run is open: requests are due at even distances, and a latency counts from when its request
//! was due, even if every client was busy then. So a server that stalls does not hide what others would have
//! waited for. Without a rate each client asks again as soon as it is answered, and a latency counts from then.

mod error;
mod schedule;
mod options;
mod keys;
mod tally;
mod connect;
mod turns;
mod work;
mod watchers;
mod run;
mod command;

pub use command::Bench;
pub use error::Error;
pub use options::{Load, Options};
pub use run::{Ready, prepare, run};
pub use schedule::Rate;
pub use tally::{Failures, Latency, Operation, Report, Watched};
