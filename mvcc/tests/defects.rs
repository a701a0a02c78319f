//! Deliberate defects, each switched on in turn: the simulator has to find every one of them.
//!
//! ```text
//! POLYBOLT_SIM_DEFECTS=all cargo test --release -p polybolt --test defects -- --nocapture
//! ```
//!
//! prints how many seeds each took, at most `POLYBOLT_SIM_DEFECT_SEEDS` (20,000). A plain `cargo test` tries
//! three that are found at once.
#![expect(clippy::unwrap_used, reason = "tests")]
#![expect(dead_code, reason = "the parts of the simulator are shared")]

#[path = "simulate/campaign.rs"]
mod campaign;
#[path = "simulate/checks.rs"]
mod checks;
#[path = "simulate/copies.rs"]
mod copies;
#[path = "simulate/coverage.rs"]
mod coverage;
#[path = "simulate/faults.rs"]
mod faults;
#[path = "simulate/follow.rs"]
mod follow;
#[path = "simulate/ops.rs"]
mod ops;
#[path = "simulate/restart.rs"]
mod restart;
#[path = "simulate/run.rs"]
mod run;
#[path = "simulate/setup.rs"]
mod setup;
#[path = "simulate/world.rs"]
mod world;

use campaign::{Campaign, number};
use polybolt::model::defect::{self, Defect};

/// Found at each run by a test of its own (`defrag_crash`): seeds meet it too rarely.
const BY_TESTS: [Defect; 1] = [Defect::ForgetWhatGoes];

#[test]
fn every_defect_is_found() {
    let wanted = std::env::var("POLYBOLT_SIM_DEFECTS").unwrap_or_default();
    let quick = [Defect::SkipSync, Defect::ForgetShardInManifest, Defect::CountAtApplied];
    let chosen: Vec<Defect> = match &wanted[..] {
        "" => quick.to_vec(),
        "all" => defect::ALL.into_iter().filter(|defect| !BY_TESTS.contains(defect)).collect(),
        name => defect::ALL.into_iter().filter(|defect| format!("{defect:?}") == name).collect(),
    };
    assert!(!chosen.is_empty(), "there is no defect {wanted:?}");
    let mut missed = Vec::new();
    for defect in chosen {
        defect::switch(Some(defect));
        let campaign = Campaign {
            first: number("POLYBOLT_SIM_SEED").unwrap_or(1),
            seeds: Some(number("POLYBOLT_SIM_DEFECT_SEEDS").unwrap_or(20_000)),
            seconds: number("POLYBOLT_SIM_SECONDS"),
            default_seeds: 0,
            skip: Default::default(),
            trace: false,
        };
        let report = campaign.run();
        defect::switch(None);
        match report.violation {
            Some(found) => {
                let seeds = found.seed - campaign.first + 1;
                let what: String = found.what.chars().take(160).collect();
                println!("{defect:?}: seed {seeds}, operation {}: {}", found.operation, what.replace('\n', " "));
            }
            None => {
                println!("{defect:?}: not found in {} seeds", report.table.seeds);
                missed.push(defect);
            }
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
