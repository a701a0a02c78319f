//! Every order of a few threads (loom) for what is synchronized by hand: marks, tickets, signals, the first
//! failure, the budget. Orders of memory are part of it: a relaxed load may see what is old.
//!
//! `cargo test -p polybolt-engine --features loom --test loom`; `LOOM_MAX_PREEMPTIONS=5` looks further.
#![expect(clippy::unwrap_used, reason = "tests")]

mod explored;

use explored::{Jobs, append, journal, run, store, write};
use loom::thread;
use polybolt_engine::poison::Poison;
use polybolt_engine::run::{ReadyList, Signal};
use polybolt_engine::sync::atomic::{AtomicU64, Ordering};
use polybolt_engine::{AdmitError, Error, Position, Ticket, Watermark};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// All orders of threads that differ by at most so many preemptions.
fn explore(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
    builder.check(model);
}

/// What a mark stands for: looked at without any order of its own.
#[derive(Debug, Default)]
struct Data(AtomicU64);

impl Data {
    fn put(&self) {
        self.0.store(1, Ordering::Relaxed);
    }

    fn is_there(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 1
    }
}

/// Waits as a task does.
fn block_on(mut ticket: Ticket) -> Result<(), Error> {
    let signal = Signal::default();
    loop {
        match Pin::new(&mut ticket).poll(&mut Context::from_waker(&signal.waker())) {
            Poll::Ready(done) => return done,
            Poll::Pending => signal.wait(None),
        }
    }
}

#[test]
fn what_a_mark_stands_for_is_there_once_it_is_reached() {
    explore(3, || {
        let (mark, data) = (Arc::new(Watermark::default()), Arc::new(Data::default()));
        let moved = thread::spawn({
            let (mark, data) = (Arc::clone(&mark), Arc::clone(&data));
            move || {
                data.put();
                mark.advance(Position(1));
            }
        });
        let looked = thread::spawn({
            let (mark, data) = (Arc::clone(&mark), Arc::clone(&data));
            move || assert!(mark.reached() < Position(1) || data.is_there())
        });
        mark.ticket(Position(1)).wait().unwrap();
        assert!(data.is_there());
        moved.join().unwrap();
        looked.join().unwrap();
    });
}

#[test]
fn a_thread_and_a_task_are_woken_for_their_positions() {
    explore(2, || {
        let mark = Arc::new(Watermark::default());
        let (first, second) = (mark.ticket(Position(1)), mark.ticket(Position(2)));
        let thread_waits = thread::spawn(move || first.wait().unwrap());
        let task_waits = thread::spawn(move || block_on(second).unwrap());
        mark.advance(Position(1));
        mark.advance(Position(2));
        thread_waits.join().unwrap();
        task_waits.join().unwrap();
    });
}

#[test]
fn marks_moved_by_two_end_at_the_higher_one() {
    explore(3, || {
        let mark = Arc::new(Watermark::default());
        let other = thread::spawn({
            let mark = Arc::clone(&mark);
            move || mark.advance(Position(1))
        });
        mark.advance(Position(2));
        assert_eq!(mark.reached(), Position(2));
        other.join().unwrap();
        assert_eq!(mark.reached(), Position(2));
    });
}

#[test]
fn a_ticket_dropped_while_its_mark_moves_leaves_nothing() {
    explore(3, || {
        let mark = Arc::new(Watermark::default());
        let mut ticket = mark.ticket(Position(2));
        let dropped = thread::spawn(move || {
            drop(Pin::new(&mut ticket).poll(&mut Context::from_waker(Waker::noop())));
        });
        mark.advance(Position(1));
        dropped.join().unwrap();
        assert_eq!(mark.tasks_waiting(), 0);
    });
}

#[test]
fn whoever_waits_is_told_of_the_first_failure() {
    explore(2, || {
        let (mark, poison) = (Arc::new(Watermark::default()), Arc::new(Poison::default()));
        poison.watch(&mark);
        let ticket = mark.ticket(Position(1));
        let waits = thread::spawn({
            let poison = Arc::clone(&poison);
            move || {
                let told = block_on(ticket);
                assert!(poison.check().is_err(), "whoever is told can see it");
                told
            }
        });
        let sets = thread::spawn({
            let poison = Arc::clone(&poison);
            move || {
                poison.set(&Error::Closed);
                assert!(poison.check().is_err());
            }
        });
        // Whoever sees that there is a failure sees which, and the first stays.
        if let Err(error) = poison.check() {
            assert!(matches!(error, Error::Closed));
        }
        assert!(matches!(waits.join().unwrap(), Err(Error::Closed)));
        sets.join().unwrap();
        poison.set(&Error::ReadOnly);
        assert!(matches!(poison.check(), Err(Error::Closed)));
    });
}

#[test]
fn a_raised_signal_is_never_lost() {
    explore(3, || {
        let (signal, work) = (Signal::default(), Arc::new(AtomicU64::new(0)));
        let raisers: Vec<_> = (0..2)
            .map(|_| {
                let (signal, work) = (signal.clone(), Arc::clone(&work));
                thread::spawn(move || {
                    work.fetch_add(1, Ordering::Relaxed);
                    signal.raise();
                })
            })
            .collect();
        // As a job does: looks for work, then waits.
        while work.load(Ordering::Relaxed) < 2 {
            signal.wait(None);
        }
        raisers.into_iter().for_each(|raiser| raiser.join().unwrap());
    });
}

#[test]
fn one_of_many_that_is_woken_is_polled_after_that() {
    explore(3, || {
        let (list, signal) = (Arc::new(ReadyList::default()), Signal::default());
        let work: Arc<[AtomicU64; 2]> = Arc::default();
        list.add(7);
        let waker = Waker::from(list.pop().unwrap());
        let others: Vec<_> = (0..2)
            .map(|at| {
                let (work, waker) = (Arc::clone(&work), waker.clone());
                thread::spawn(move || {
                    work[at].store(1, Ordering::Relaxed);
                    waker.wake();
                })
            })
            .collect();
        // As a stream of watchers does.
        let mut found = 0;
        while found < 2 {
            list.set_waker(&signal.waker());
            let mut polled = false;
            while let Some(ready) = list.pop() {
                assert_eq!(ready.key, 7);
                for one in work.iter().filter(|one| one.load(Ordering::Relaxed) == 1) {
                    one.store(0, Ordering::Relaxed);
                    found += 1;
                }
                polled = true;
            }
            if !polled {
                signal.wait(None);
            }
        }
        others.into_iter().for_each(|other| other.join().unwrap());
    });
}

/// A thread that has room for what a job calls.
fn spawn<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
    thread::Builder::new().stack_size(1 << 16).spawn(run).unwrap()
}

/// All orders of the threads of `model`, from where it says so.
fn explore_jobs(preemptions: usize, model: fn()) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
    builder.max_branches = 100_000;
    builder.expect_explicit_explore = true;
    let orders = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let seen = Arc::clone(&orders);
    builder.check(move || {
        seen.fetch_add(1, Ordering::Relaxed);
        spawn(model).join().unwrap();
    });
    assert!(orders.load(Ordering::Relaxed) > 3, "{orders:?} orders of these threads");
}

#[test]
fn a_checkpoint_that_waits_for_the_journal_is_woken() {
    explore_jobs(2, || {
        let (store, space, Jobs { mut journal, mut checkpoint, segments }) = store();
        let position = write(&store, &space, 100, 4).ok().unwrap();
        let flushed = store.flush();
        loom::explore();
        let journals = spawn({
            let store = Arc::clone(&store);
            move || {
                run(&mut *journal, || store.durable() >= position);
                journal
            }
        });
        run(&mut *checkpoint, || flushed.is_reached());
        let journal = journals.join().unwrap();
        loom::stop_exploring();
        drop((journal, segments, checkpoint));
    });
}

#[test]
fn a_writer_that_is_short_of_room_gets_it_from_a_checkpoint() {
    explore_jobs(1, || {
        let (store, space, Jobs { mut journal, mut checkpoint, segments }) = store();
        write(&store, &space, 700, 4).ok().unwrap();
        while store.durable() < Position(1) {
            journal.step(Duration::ZERO);
        }
        loom::explore();
        let written = Arc::new(AtomicU64::new(0));
        let signal = checkpoint.signal();
        let checkpoints = spawn({
            let written = Arc::clone(&written);
            move || {
                run(&mut *checkpoint, || written.load(Ordering::Acquire) == 1);
                checkpoint
            }
        });
        loop {
            match write(&store, &space, 700, 4) {
                Ok(_) => break,
                Err(AdmitError::Short(ticket)) => ticket.wait().unwrap(),
                Err(AdmitError::Refused(error)) => panic!("{error}"),
            }
        }
        written.store(1, Ordering::Release);
        signal.raise();
        let checkpoint = checkpoints.join().unwrap();
        loom::stop_exploring();
        drop((journal, segments, checkpoint));
    });
}

#[test]
fn whoever_waits_for_the_journal_leads_or_is_woken() {
    explore_jobs(2, || {
        let (journal, durable, mut job) = journal();
        // From here on the job is not woken by a first record.
        durable.ticket(append(&journal)).wait().unwrap();
        let signal = journal.signal().clone();
        loom::explore();
        let ended = Arc::new(AtomicU64::new(0));
        let jobs = spawn({
            let ended = Arc::clone(&ended);
            move || {
                run(&mut job, || ended.load(Ordering::Acquire) == 1);
                job
            }
        });
        let at = append(&journal);
        durable.ticket(at).wait().unwrap();
        ended.store(1, Ordering::Release);
        signal.raise();
        let job = jobs.join().unwrap();
        loom::stop_exploring();
        drop(job);
    });
}
