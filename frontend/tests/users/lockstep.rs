//! The same calls, by several users, to a real etcd and to the server: the same answers.
//!
//! Answers are compared whole, but for who answers and for tokens; errors by code and message. First comes a
//! script through every rule, then sequences from seeds. Where etcd may differ is a closed list (`rules.rs`),
//! whose use is counted.
//!
//! `POLYBOLT_USERS_SEED` is the first seed, `POLYBOLT_USERS_SEEDS` says how many, `POLYBOLT_USERS_CALLS` how many
//! calls each has, `POLYBOLT_USERS_TRACE=1` prints every call, and `POLYBOLT_ETCD` names the etcd programs,
//! separated by colons.

use crate::calls::{Step, prologue, script, step};
use crate::common::{Rng, Served, free_port, has_program, succeed};
use crate::rules::{Rule, Used, agree, not_asked};
use crate::side::{Call, Side, Who};
use std::process::Command;

/// Hashing is slow on purpose; here it is not what counts.
pub(crate) const CHEAP: [&str; 2] = ["--bcrypt-cost", "4"];

/// etcd commits each write: until it does, it may still find users and roles that were deleted.
const AT_ONCE: [&str; 2] = ["--backend-batch-limit", "1"];

struct Reference {
    program: String,
    version: String,
    /// Older than 3.5.
    old: bool,
    trace: bool,
}

impl Reference {
    fn new(program: &str) -> Option<Reference> {
        if !has_program(program) {
            return None;
        }
        let text = succeed(Command::new(program).arg("--version"));
        let version = text.lines().next().unwrap().trim_start_matches("etcd Version: ").to_owned();
        let old = version.starts_with("3.4.");
        Some(Reference { program: program.to_owned(), version, old, trace: number("POLYBOLT_USERS_TRACE", 0) > 0 })
    }

    /// Makes calls on fresh servers: those of `first`, then those of the numbers. How many, and how many of
    /// them were refused.
    async fn run(&self, name: &str, first: Vec<Step>, numbers: &[u64], used: &mut Used) -> (usize, usize) {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let flags = [&CHEAP[..], &AT_ONCE].concat();
        let etcd = Served::etcd(&self.program, &dir.path().join("etcd"), free_port(), &flags);
        let served = Served::start(&dir.path().join("polybolt"), &CHEAP);
        let (mut real, mut ours) = (Side::connect(&etcd.url()).await, Side::connect(&served.url()).await);
        let (mut enabled, mut refused) = (false, 0);
        let count = first.len() + numbers.len();
        let (mut first, mut numbers) = (first.into_iter(), numbers.iter());
        for at in 0..count {
            let next = first.next().or_else(|| numbers.next().map(|number| step(*number, enabled)));
            let (who, call) = &next.expect("there are as many as were counted");
            let mine = ours.call(*who, call).await;
            if self.trace {
                println!("{at}: {who:?} {call:?}: {mine:?}");
            }
            refused += usize::from(mine.is_err());
            if self.old
                && let Some(rule) = not_asked(call, &mine)
            {
                *used.entry(rule).or_default() += 1;
                continue;
            }
            let mut as_whom = *who;
            if self.old && !enabled && *who != Who::Nobody {
                *used.entry(Rule::TokenWhileOff).or_default() += 1;
                as_whom = Who::Nobody;
            }
            let theirs = real.call(as_whom, call).await;
            match agree(call, &theirs, &mine) {
                Ok(None) => {}
                Ok(Some(rule)) => *used.entry(rule).or_default() += 1,
                Err(()) => panic!(
                    "etcd {}, {name}, call {at}: {who:?} {call:?}\n  etcd: {theirs:?}\n  ours: {mine:?}",
                    self.version
                ),
            }
            match (call, mine) {
                (Call::Enable, Ok(_)) => enabled = true,
                (Call::Disable, Ok(_)) => enabled = false,
                _ => {}
            }
        }
        (count, refused)
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_are_refused_what_etcd_refuses_them() {
    let (first, seeds) = (number("POLYBOLT_USERS_SEED", 1), number("POLYBOLT_USERS_SEEDS", 3));
    let count = number("POLYBOLT_USERS_CALLS", 1500);
    let programs = std::env::var("POLYBOLT_ETCD").unwrap_or("etcd".into());
    for reference in programs.split(':').filter_map(Reference::new) {
        let mut used = Used::new();
        let (mut calls, mut refused) = reference.run("the script", script(), &[], &mut used).await;
        for seed in first..first + seeds {
            let mut rng = Rng(seed);
            let numbers: Vec<u64> = (0..count).map(|_| rng.next()).collect();
            let done = reference.run(&format!("seed {seed}"), prologue(), &numbers, &mut used).await;
            (calls, refused) = (calls + done.0, refused + done.1);
        }
        println!("etcd {}: {calls} calls, {refused} of them refused, no difference", reference.version);
        for (rule, count) in &used {
            println!("  rule {}: {count}", rule.text());
        }
    }
}

#[test]
fn where_a_reference_may_differ_our_side_has_a_test() {
    let tests = include_str!("ours.rs");
    for (rule, _, test) in Rule::ALL {
        assert!(tests.contains(&format!("fn {test}()")), "{rule:?}: {test} is not a test");
        assert_eq!(Rule::ALL.iter().filter(|(other, ..)| *other == rule).count(), 1);
    }
}
