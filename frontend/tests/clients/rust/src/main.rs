//! Asks a server for everything that the crate `etcd-client` has examples of, and says step by step how it went:
//! see `../../main.rs` for what is printed.

mod connect;
mod kv;
mod watch;
mod lease;
mod lock;
mod election;
mod maintenance;
mod restart;

use etcd_client::{Client, Error};
use std::io::Write;
use std::sync::Mutex;
use std::time::Duration;

/// How a step ended, if it did not panic.
pub(crate) type Outcome = Result<(), Failure>;

pub(crate) enum Failure {
    /// The client's or the server's.
    Error(Error),
    /// The server does not have it.
    Absent(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Error(error)
    }
}

/// The message of a call that has to be refused.
pub(crate) fn refused<T>(outcome: Result<T, Error>) -> String {
    match outcome {
        Ok(_) => panic!("it was not refused"),
        Err(Error::GRpcStatus(status)) => status.message().to_owned(),
        Err(error) => error.to_string(),
    }
}

/// Waits for what has to come.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), what).await.expect("it comes in time")
}

/// The version of the client, as it was locked.
fn version() -> &'static str {
    let locked = include_str!("../Cargo.lock").split("name = \"etcd-client\"\nversion = \"").nth(1);
    locked.and_then(|rest| rest.split('"').next()).expect("it is locked")
}

fn say(line: &str) {
    println!("{}", line.replace('\n', " "));
    std::io::stdout().flush().expect("somebody reads it");
}

/// The last panic: what it said, and where.
static PANIC: Mutex<String> = Mutex::new(String::new());

/// Runs one step as a task of its own, so that a panic ends only it.
async fn step(name: &str, future: impl Future<Output = Outcome> + Send + 'static) {
    say(&format!("begin {name}"));
    match tokio::spawn(future).await {
        Ok(Ok(())) => say("pass"),
        Ok(Err(Failure::Absent(why))) => say(&format!("absent {why}")),
        Ok(Err(Failure::Error(error))) => say(&format!("fail {error}")),
        Err(_) => say(&format!("fail {}", PANIC.lock().expect("nobody panics with it"))),
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    std::panic::set_hook(Box::new(|panic| *PANIC.lock().expect("nobody panics with it") = panic.to_string()));
    let endpoint = std::env::args().nth(1).expect("the address of a server");
    say(&format!("version {}", version()));
    let client = match Client::connect([&endpoint], None).await {
        Ok(client) => client,
        Err(error) => return say(&format!("fail {error}")),
    };
    macro_rules! steps {
        ($($name:literal: $($function:ident)::+,)*) => {
            $(step($name, $($function)::+(client.clone())).await;)*
        };
    }
    step("connect: with every option", connect::options(endpoint.clone())).await;
    step("connect: endpoints that come and go", connect::endpoints(endpoint.clone())).await;
    steps! {
        "kv: put, get, get all": kv::put_and_get,
        "kv: ranges with every option": kv::ranges,
        "kv: put with lease, prev_kv, ignore_value, ignore_lease": kv::put_options,
        "kv: delete a key, a range, a prefix, with prev_kv": kv::delete,
        "kv: txn that succeeds, fails, nests": kv::txn,
        "kv: every comparison of a txn": kv::compares,
        "kv: get as a stream": kv::get_stream,
        "kv: under a namespace": kv::namespace,
        "kv: compact": kv::compact,
        "kv: what is refused": kv::refusals,
        "watch: two on one stream, progress, cancel": watch::two_on_one_stream,
        "watch: history, prev_kv, filters": watch::history,
        "watch: prefix, range, from a key, all": watch::spans,
        "watch: progress on request": watch::progress,
        "watch: large history in fragments": watch::fragments,
        "watch: below what was compacted": watch::compacted,
        "watch: an id that is taken": watch::duplicate_id,
        "watch: sender and receiver apart": watch::split,
        "lease: grant, query, keep alive, list, revoke": lease::life,
        "lease: keys, an id of one's own": lease::keys,
        "lease: a stream of keep-alives": lease::keep_alive,
        "lease: under a namespace": lease::namespace,
        "lease: expires and takes its key along": lease::expiry,
        "lock: lock and unlock, with and without a lease": lock::lock_and_unlock,
        "lock: the second waits for the first": lock::contended,
        "lock: the end of a lease frees it": lock::lease_ends,
        "election: campaign, proclaim, observe, leader, resign": election::one,
        "election: a second candidate follows": election::two,
        "election: what is refused": election::refusals,
        "maintenance: status": maintenance::status,
        "maintenance: alarm raised, listed, disarmed": maintenance::alarm,
        "maintenance: defragment": maintenance::defragment,
        "maintenance: hash and hash_kv": maintenance::hashes,
        "maintenance: snapshot": maintenance::snapshot,
        "maintenance: member list and move leader": maintenance::move_leader,
        "restart: keys, leases and the connection outlive it": restart::goes_on,
    }
}
