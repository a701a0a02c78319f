//! The whole engine, simulated: random work on random faults, each run a function of its seed and compared
//! with a sequential model.
//!
//! ```text
//! POLYBOLT_SIM_SEEDS=20000 cargo test --release -p polybolt --test simulate -- --nocapture
//! POLYBOLT_SIM_SEED=17 POLYBOLT_SIM_SEEDS=1 POLYBOLT_SIM_TRACE=1 cargo test ...      replays seed 17
//! ```
//!
//! `POLYBOLT_SIM_SECONDS` is a budget of time instead of a count; `POLYBOLT_SIM_SKIP` (`3-40,50`) leaves
//! operations out, as the report of a violation says after it has shortened the run.
#![expect(clippy::unwrap_used, reason = "tests")]

mod campaign;
mod checks;
mod copies;
mod coverage;
mod faults;
mod follow;
mod ops;
mod restart;
mod run;
mod setup;
mod world;

use campaign::{Campaign, number, skipped};

/// Seeds of a plain `cargo test`.
const SEEDS: u64 = 60;

#[test]
fn nothing_that_was_promised_is_broken() {
    let campaign = Campaign {
        first: number("POLYBOLT_SIM_SEED").unwrap_or(1),
        seeds: number("POLYBOLT_SIM_SEEDS"),
        seconds: number("POLYBOLT_SIM_SECONDS"),
        default_seeds: SEEDS,
        skip: skipped(&std::env::var("POLYBOLT_SIM_SKIP").unwrap_or_default()),
        trace: number("POLYBOLT_SIM_TRACE").is_some_and(|trace| trace > 0),
    };
    let report = campaign.run();
    println!("{report}");
    if let Some(violation) = report.violation {
        println!("{}", campaign.explain(&violation));
        panic!("seed {} breaks a promise at operation {}: {}", violation.seed, violation.operation, violation.what);
    }
    if report.table.seeds >= 5_000 {
        assert_eq!(report.table.missing(), [""; 0], "met in fewer than 1 % of the seeds");
    }
}

/// Each broke a promise once; what it found is fixed, and named beside it. A seed is worth something as long as
/// the same is drawn from it: each bug, of this list and of earlier ones, has a test of its own in
/// `tests/regressions`.
const FOUND: [(u64, &str); 7] = [
    (3_779, "the simulation took a lease to begin when it saw the answer, which was some milliseconds after it did"),
    (5_841, "a snapshot lacked rows, as what pinned them was let go while it read the last ones"),
    (8_558, "files of a dropped keyspace were removed while a slot of the manifest named them"),
    (15_056, "a Volatile file that was made anew was not in its directory for good"),
    (18_201, "the simulated disk undid rot"),
    (100_104, "the scrub passed over a damaged header of a file that is open"),
    (109_435, "a Volatile file that could not be cut failed more than itself"),
];

#[test]
fn seeds_that_found_something_stay_fixed() {
    run::keep_panics();
    let outcomes = FOUND.map(|(seed, what)| run::run(seed, &Default::default(), false).map_err(|found| (what, found)));
    drop(std::panic::take_hook());
    for outcome in outcomes {
        if let Err((what, found)) = outcome {
            panic!("seed {} (once: {what}) breaks at operation {}: {}", found.seed, found.operation, found.what);
        }
    }
}
