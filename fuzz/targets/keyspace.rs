//! The whole: operations on an engine whose disk, clock and jobs are simulated, with txns over several shards and
//! two keyspaces, leases, compaction, watches, reads at any revision, snapshots, faults and crashes, held against
//! the sequential model. It is the simulator of `mvcc/tests/simulate` with the operations given.
//!
//! Input: a seed for the setup (2 bytes), then operations: kind (2 bytes), keyspace, and a seed for the rest
//! (2 bytes).
#![no_main]
#![allow(dead_code, unfulfilled_lint_expectations, reason = "written for campaigns too")]

#[path = "../../mvcc/tests/simulate/checks.rs"]
mod checks;
#[path = "../../mvcc/tests/simulate/coverage.rs"]
mod coverage;
#[path = "../../mvcc/tests/simulate/faults.rs"]
mod faults;
#[path = "../../mvcc/tests/simulate/copies.rs"]
mod copies;
#[path = "../../mvcc/tests/simulate/follow.rs"]
mod follow;
#[path = "../../mvcc/tests/simulate/restart.rs"]
mod restart;
#[path = "../../mvcc/tests/simulate/setup.rs"]
mod setup;
#[path = "../../mvcc/tests/simulate/ops.rs"]
mod ops;
#[path = "../../mvcc/tests/simulate/run.rs"]
mod run;
#[path = "../../mvcc/tests/simulate/world.rs"]
mod world;

use libfuzzer_sys::{Corpus, fuzz_target};

/// Operations of one input.
const OPERATIONS_MAX: usize = 64;

fuzz_target!(|input: &[u8]| -> Corpus {
    let Some((seed, rest)) = input.split_first_chunk() else { return Corpus::Reject };
    let setup = setup::Setup::draw(u16::from_le_bytes(*seed).into());
    let operations = rest.chunks_exact(5).take(OPERATIONS_MAX).map(|operation| {
        let [kind, kind_high, at, draws, draws_high] = operation else { unreachable!("five bytes") };
        let (kind, draws) = (u16::from_le_bytes([*kind, *kind_high]), u16::from_le_bytes([*draws, *draws_high]));
        (kind.into(), usize::from(*at), draws.into())
    });
    run::run_given(setup::Setup { operations: OPERATIONS_MAX as u64, ..setup }, operations);
    Corpus::Keep
});
