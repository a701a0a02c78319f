//! A store in random orders of threads (shuttle): whoever waits for room gets it. Loom forgets a load that
//! is followed by another thread's load and store, as all that counts up has them.
//!
//! `cargo test -p polybolt-engine --features shuttle --test shuttle`; `POLYBOLT_SCHEDULES=20000` runs more.
#![expect(clippy::unwrap_used, reason = "tests")]

mod explored;

use explored::{Jobs, append, journal, run, store, store_of, write};
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

/// Two threads with so many puts each, beside the jobs.
fn put_beside_jobs(buffer_bytes: u64, journal_bytes: u64, puts: usize, bytes: usize, record_bytes: u64) {
    let (store, space, Jobs { journal, segments, checkpoint }) = store_of(buffer_bytes, journal_bytes);
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
    let writers: Vec<_> = (0..2)
        .map(|_| {
            let (store, space) = (Arc::clone(&store), space.clone());
            thread::spawn(move || {
                for _ in 0..puts {
                    loop {
                        match write(&store, &space, bytes, record_bytes) {
                            Ok(_) => break,
                            Err(AdmitError::Short(ticket)) => ticket.wait().unwrap(),
                            Err(AdmitError::Refused(error)) => panic!("{error}"),
                        }
                    }
                }
            })
        })
        .collect();
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    store.flush().wait().unwrap();
    ended.store(true, Ordering::SeqCst);
    signals.iter().for_each(polybolt_engine::run::Signal::raise);
    jobs.into_iter().for_each(|job| job.join().unwrap());
}

#[test]
fn writers_that_are_short_of_room_get_it_from_checkpoints() {
    explore(|| put_beside_jobs(1000, 8192, 2, 700, 4));
}

/// Each record has a segment of its own: the second half of them fits only where others were.
#[test]
fn writers_that_are_short_of_journal_get_segments_that_are_used_again() {
    explore(|| put_beside_jobs(1 << 20, 8192, 3, 10, 1500));
}

#[test]
fn writers_that_are_short_of_journal_get_segments_that_are_made() {
    explore(|| put_beside_jobs(1 << 20, 5 * 4096, 2, 10, 1500));
}

/// Short records are charged more than they take: whoever is refused is told of what a group leaves.
#[test]
fn writers_that_are_short_of_journal_get_what_a_group_leaves() {
    explore(|| put_beside_jobs(1 << 20, 8192, 6, 10, 4));
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
