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
mod coverage;
mod faults;
mod ops;
mod run;
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

/// Each broke a promise once; what it found is fixed, and named beside it.
const FOUND: [(u64, &str); 17] = [
    (9, "verify called a put that its own txn deletes a row that the index does not know"),
    (13, "a log's entry that found the disk full counted as applied"),
    (17, "a manifest that outgrew its slot on a full disk left the store without writes"),
    (19, "a read of the current revision was refused as compacted"),
    (52, "in batch durability a new reserve was forgotten as soon as it was made: revisions were used twice"),
    (141, "a Volatile shard that could not be written before a clean stop came back empty and without a floor"),
    (305, "at the last reserved revision an emptied Volatile shard had no floor"),
    (731, "a vacuum that had nothing to do kept its budget, and every writer waited"),
    (1410, "a restored keyspace that could not be opened at once stayed, and its name was taken"),
    (1888, "after a kill the newest manifest was trusted unsynced, and a power cut took both"),
    (2017, "a deleted key came back in a snapshot that the sweep ran beside"),
    (2160, "a Volatile file that could not be read once was replaced while the manifest named its root"),
    (2449, "a segment that a killed process had renamed was written to before its name was on disk"),
    (3382, "the last reserved revision, which had been shown, was shown again with another state"),
    (3332, "a request that waited for room was refused and never told"),
    (109435, "a Volatile file whose free end could not be cut left the whole store without writes"),
    (22528, "a stream whose pin was let go while it read reported damage, or could have missed keys"),
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
