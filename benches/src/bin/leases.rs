//! Many leases with one key each, all of which expire in the same minute while puts go on: the put rate
//! before and meanwhile. All keys go, each lease's in one revision.

use clap::Parser;
use polybolt::{Engine, Error, EventKind, Keyspace, Options, PutRequest, Routes, Span, WatchItem, WatchRequest};
use polybolt_benches::{machine, now, pause, resident, value};
use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

#[derive(Debug, Parser)]
struct Arguments {
    /// Leases, of one key each.
    #[arg(long, default_value_t = 200_000)]
    leases: u64,
    /// Seconds that each has.
    #[arg(long, default_value_t = 30)]
    ttl: i64,
    /// Puts under way at once.
    #[arg(long, default_value_t = 256)]
    pipeline: usize,
}

/// Answers come in order: the oldest is waited for when there are too many.
struct Pipeline<T> {
    under_way: VecDeque<polybolt::Pending<T>>,
    most: usize,
}

impl<T> Pipeline<T> {
    fn push(&mut self, pending: polybolt::Pending<T>) -> Result<(), Error> {
        self.under_way.push_back(pending);
        if self.under_way.len() > self.most
            && let Some(oldest) = self.under_way.pop_front()
        {
            oldest.wait()?;
        }
        Ok(())
    }

    fn finish(self) -> Result<(), Error> {
        self.under_way.into_iter().try_for_each(|pending| pending.wait().map(drop))
    }
}

fn fill(keyspace: &Keyspace, arguments: &Arguments) -> Result<(), Error> {
    let mut grants = Pipeline { under_way: VecDeque::new(), most: arguments.pipeline };
    let mut puts = Pipeline { under_way: VecDeque::new(), most: arguments.pipeline };
    for n in 0..arguments.leases {
        let lease = n.cast_signed() + 1;
        grants.push(keyspace.lease_grant(lease, arguments.ttl))?;
        let key = format!("/registry/events/ns-{:02}/event-{n:07}", n % 50);
        puts.push(keyspace.put(PutRequest { lease, ..PutRequest::new(key, value(n, 128)) }))?;
    }
    grants.finish()?;
    puts.finish()
}

/// Puts until told to stop.
fn put(keyspace: &Keyspace, arguments: &Arguments, done: &AtomicU64, stop: &AtomicBool) -> Result<(), Error> {
    let mut puts = Pipeline { under_way: VecDeque::new(), most: arguments.pipeline };
    for n in 0.. {
        if stop.load(Ordering::Acquire) {
            break;
        }
        puts.push(keyspace.put(PutRequest::new(format!("/registry/pods/{:05}", n % 10_000), value(n, 512))))?;
        done.fetch_add(1, Ordering::Relaxed);
    }
    puts.finish()
}

fn main() -> Result<(), Error> {
    let arguments = Arguments::parse();
    let scratch = tempfile::tempdir().map_err(|error| {
        Error::Refused(polybolt::Refusal::Invalid { why: format!("no scratch directory: {error}") })
    })?;
    println!(
        "{}; {} leases of {} s, {} puts under way",
        machine(),
        arguments.leases,
        arguments.ttl,
        arguments.pipeline
    );
    let engine = Engine::open(scratch.path().join("data"), Options::default())?;
    let keyspace = engine.create_keyspace("default", Routes::kubernetes())?;
    let begun = now();
    fill(&keyspace, &arguments)?;
    println!(
        "granted and attached in {:.1} s; anonymous memory {}",
        begun.elapsed().as_secs_f64(),
        polybolt_benches::mib(resident().anonymous)
    );
    let request = WatchRequest {
        span: Span::prefix("/registry/events/"),
        start_revision: 0,
        no_put: true,
        no_delete: false,
        prev_kv: false,
    };
    let mut watcher = keyspace.watch(request)?;
    let (done, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let (mut before, mut meanwhile) = (Vec::new(), Vec::new());
    let (mut deleted, mut revisions) = (0, BTreeSet::new());
    std::thread::scope(|scope| {
        let putting = scope.spawn(|| put(&keyspace, &arguments, &done, &stop));
        let mut first = None;
        while deleted < arguments.leases && begun.elapsed() < Duration::from_secs(180) {
            let (from, leases) = (done.load(Ordering::Relaxed), keyspace.leases().len());
            pause(Duration::from_secs(1));
            let puts = done.load(Ordering::Relaxed) - from;
            let left = keyspace.leases().len();
            while let Poll::Ready(Some(WatchItem::Events { events, .. })) = watcher.try_recv()? {
                for event in events {
                    assert_eq!(event.kind(), EventKind::Delete);
                    deleted += 1;
                    revisions.insert(event.kv().mod_revision);
                }
            }
            if left as u64 == arguments.leases {
                before.push(puts);
            } else {
                first.get_or_insert_with(|| begun.elapsed());
                if left > 0 {
                    meanwhile.push(puts);
                }
            }
            println!("  {:5.1} s: {puts} puts/s, {} leases expired", begun.elapsed().as_secs_f64(), leases - left);
        }
        stop.store(true, Ordering::Release);
        if let Some(first) = first {
            println!(
                "the first expired at {:.1} s, all were gone at {:.1} s",
                first.as_secs_f64(),
                begun.elapsed().as_secs_f64()
            );
        }
        putting.join().map_err(|_| polybolt::Refusal::Invalid { why: "the putting thread panicked".into() })?
    })?;
    let median = |rates: &mut Vec<u64>| {
        rates.sort_unstable();
        rates.get(rates.len() / 2).copied().unwrap_or(0)
    };
    println!("puts/s, median: {} before, {} while leases expire", median(&mut before), median(&mut meanwhile));
    println!(
        "{deleted} keys deleted in {} revisions, {} leases left; anonymous memory {}",
        revisions.len(),
        keyspace.leases().len(),
        polybolt_benches::mib(resident().anonymous)
    );
    drop(watcher);
    drop(keyspace);
    engine.close()
}
