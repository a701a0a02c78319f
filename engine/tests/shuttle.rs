//! A store in random orders of threads (shuttle): whoever waits for room gets it. Loom forgets a load that
//! is followed by another thread's load and store, as all that counts up has them.
//!
//! `cargo test -p polybolt-engine --features shuttle --test shuttle`; `POLYBOLT_SCHEDULES=20000` runs more.
#![expect(clippy::unwrap_used, reason = "tests")]

mod explored;

use explored::{Jobs, append, journal, run, store, write};
use polybolt_engine::{AdmitError, Cost, Store};
use shuttle::scheduler::RandomScheduler;
use shuttle::sync::atomic::{AtomicBool, Ordering};
use shuttle::{Config, FailurePersistence, Runner, thread};
use std::sync::Arc;

fn explore(model: fn()) {
    let schedules = std::env::var("POLYBOLT_SCHEDULES").map_or(400, |text| text.parse().expect("a number of orders"));
    let mut config = Config::new();
    config.stack_size = 1 << 20;
    config.failure_persistence = FailurePersistence::None;
    // One after the other from the first: a failure is met again where it was.
    Runner::new(RandomScheduler::new_from_seed(0, schedules), config).run(model);
}

/// Takes room for as long as it does not get it.
fn admit(store: &Arc<Store>, cost: Cost) -> polybolt_engine::Admission {
    loop {
        match store.admit(cost) {
            Ok(admission) => return admission,
            Err(AdmitError::Short(ticket)) => ticket.wait().unwrap(),
            Err(AdmitError::Refused(error)) => panic!("{error}"),
        }
    }
}

/// Three that need more than half of what there is and give it back unused.
fn admit_three(cost: Cost) {
    let (store, _, jobs) = store();
    let others: Vec<_> = (0..2)
        .map(|_| {
            let store = Arc::clone(&store);
            thread::spawn(move || drop(admit(&store, cost)))
        })
        .collect();
    drop(admit(&store, cost));
    others.into_iter().for_each(|other| other.join().unwrap());
    drop(jobs);
}

#[test]
fn room_in_the_buffers_that_is_given_back_goes_to_whoever_waits() {
    explore(|| admit_three(Cost { edit_bytes: 700, edits: 1, ..Cost::default() }));
}

#[test]
fn room_in_the_journal_that_is_given_back_goes_to_whoever_waits() {
    explore(|| admit_three(Cost { edit_bytes: 1, edits: 1, record_bytes: 2000, ..Cost::default() }));
}

#[test]
fn writers_that_are_short_of_room_get_it_from_checkpoints() {
    explore(|| {
        let (store, space, Jobs { journal, segments, checkpoint }) = store();
        let ended = Arc::new(AtomicBool::new(false));
        let jobs = [journal, segments, checkpoint];
        let signals = [0, 1, 2].map(|at: usize| jobs[at].signal());
        let jobs: Vec<_> = jobs
            .into_iter()
            .map(|mut job| {
                let ended = Arc::clone(&ended);
                thread::spawn(move || run(&mut *job, || ended.load(Ordering::SeqCst)))
            })
            .collect();
        for _ in 0..4 {
            loop {
                match write(&store, &space, 700) {
                    Ok(_) => break,
                    Err(AdmitError::Short(ticket)) => ticket.wait().unwrap(),
                    Err(AdmitError::Refused(error)) => panic!("{error}"),
                }
            }
        }
        store.flush().wait().unwrap();
        ended.store(true, Ordering::SeqCst);
        signals.iter().for_each(polybolt_engine::run::Signal::raise);
        jobs.into_iter().for_each(|job| job.join().unwrap());
    });
}

/// Threads that wait for what they wrote, each leading if it is alone, and the job, which no time wakes here.
#[test]
fn whoever_waits_for_the_journal_leads_or_is_woken() {
    explore(|| {
        let (journal, durable, mut job) = journal();
        let ended = Arc::new(AtomicBool::new(false));
        let signal = journal.signal().clone();
        let jobs = thread::spawn({
            let ended = Arc::clone(&ended);
            move || run(&mut job, || ended.load(Ordering::SeqCst))
        });
        let writers: Vec<_> = (0..2)
            .map(|_| {
                let (journal, durable) = (Arc::clone(&journal), Arc::clone(&durable));
                thread::spawn(move || {
                    for _ in 0..4 {
                        let at = append(&journal);
                        durable.ticket(at).wait().unwrap();
                        assert!(durable.reached() >= at);
                    }
                })
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        assert_eq!(durable.reached(), journal.last());
        ended.store(true, Ordering::SeqCst);
        signal.raise();
        jobs.join().unwrap();
    });
}
