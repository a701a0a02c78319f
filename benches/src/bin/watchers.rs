//! Many watchers: 10,000 of single keys and 1,000 of one prefix, while puts go on; the put rate without and
//! with them, and the events delivered. Every watcher gets exactly its events, in order.
//!
//! Then slow ones alone: half read nothing during the run and fall below a compaction, half stop reading at the
//! compaction. They keep a bounded part of what is put, and do not slow the puts.

use clap::Parser;
use polybolt::{Engine, Error, Keyspace, Options, PutRequest, Routes, Span, WatchItem, WatchRequest, Watcher};
use polybolt_benches::{machine, now, resident, value};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;

#[derive(Debug, Parser)]
struct Arguments {
    /// Watchers of one key each.
    #[arg(long, default_value_t = 10_000)]
    singles: u64,
    /// Watchers of the prefix that all keys have.
    #[arg(long, default_value_t = 1_000)]
    prefixes: u64,
    /// Puts; over as many keys as there are single watchers.
    #[arg(long, default_value_t = 20_000)]
    puts: u64,
    /// Watchers of the prefix that stop reading.
    #[arg(long, default_value_t = 200)]
    slow: u64,
    /// Threads that read watchers.
    #[arg(long, default_value_t = 2)]
    readers: usize,
}

fn key(n: u64) -> String {
    format!("/registry/pods/ns-{:02}/web-{n:06}", n % 50)
}

/// Puts with 256 under way; puts per second.
fn put(keyspace: &Keyspace, arguments: &Arguments) -> Result<f64, Error> {
    let begun = now();
    let mut pending = VecDeque::new();
    for n in 0..arguments.puts {
        if pending.len() >= 256
            && let Some(oldest) = pending.pop_front()
        {
            polybolt::Pending::wait(oldest)?;
        }
        pending.push_back(keyspace.put(PutRequest::new(key(n % arguments.singles.max(1)), value(n, 512))));
    }
    pending.into_iter().try_for_each(|put| put.wait().map(drop))?;
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let puts = arguments.puts as f64;
    Ok(puts / begun.elapsed().as_secs_f64())
}

/// A watcher, how many events it has to get, and the last revision that it got.
struct Watched {
    watcher: Watcher,
    wanted: u64,
    got: u64,
    last: i64,
}

fn read(mut watched: Vec<Watched>, delivered: &AtomicU64, stop: &AtomicBool) -> Result<u64, Error> {
    loop {
        let (mut idle, mut done) = (true, true);
        for one in &mut watched {
            while let Poll::Ready(Some(WatchItem::Events { events, .. })) = one.watcher.try_recv()? {
                idle = false;
                for event in &events {
                    assert!(event.kv().mod_revision > one.last, "in order, once");
                    one.last = event.kv().mod_revision;
                }
                one.got += events.len() as u64;
                delivered.fetch_add(events.len() as u64, Ordering::Relaxed);
            }
            done &= one.got >= one.wanted;
        }
        if done || (idle && stop.load(Ordering::Acquire)) {
            return Ok(watched.iter().filter(|one| one.got != one.wanted).count() as u64);
        }
        if idle {
            polybolt_benches::pause(std::time::Duration::from_millis(1));
        }
    }
}

fn main() -> Result<(), Error> {
    let arguments = Arguments::parse();
    let scratch = tempfile::tempdir().map_err(|error| {
        Error::Refused(polybolt::Refusal::Invalid { why: format!("no scratch directory: {error}") })
    })?;
    println!(
        "{}; {} + {} watchers, {} puts, {} readers",
        machine(),
        arguments.singles,
        arguments.prefixes,
        arguments.puts,
        arguments.readers
    );
    let engine = Engine::open(scratch.path().join("data"), Options::default())?;
    let keyspace = engine.create_keyspace("default", Routes::kubernetes())?;
    // Warm.
    put(&keyspace, &arguments)?;
    let without = put(&keyspace, &arguments)?;

    let watch = |span| {
        let request = WatchRequest { span, start_revision: 0, no_put: false, no_delete: false, prev_kv: false };
        keyspace.watch(request)
    };
    let begun = now();
    let mut lanes: Vec<Vec<Watched>> = (0..arguments.readers.max(1)).map(|_| Vec::new()).collect();
    let lane_count = lanes.len();
    for n in 0..arguments.singles {
        let wanted = arguments.puts / arguments.singles + u64::from(n < arguments.puts % arguments.singles);
        lanes[n as usize % lane_count].push(Watched { watcher: watch(Span::key(key(n)))?, wanted, got: 0, last: 0 });
    }
    for n in 0..arguments.prefixes {
        let watcher = watch(Span::prefix("/registry/pods/"))?;
        lanes[n as usize % lane_count].push(Watched { watcher, wanted: arguments.puts, got: 0, last: 0 });
    }
    println!(
        "registered in {:.2} s; anonymous memory {}",
        begun.elapsed().as_secs_f64(),
        polybolt_benches::mib(resident().anonymous)
    );
    let (delivered, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let begun = now();
    let (with, wrong) = std::thread::scope(|scope| {
        let readers: Vec<_> = lanes
            .into_iter()
            .map(|lane| {
                let (delivered, stop) = (&delivered, &stop);
                scope.spawn(move || read(lane, delivered, stop))
            })
            .collect();
        let with = put(&keyspace, &arguments);
        let mut wrong = 0;
        for reader in readers {
            wrong += reader
                .join()
                .map_err(|_| polybolt::Refusal::Invalid { why: "a watcher got what it should not".into() })??;
        }
        stop.store(true, Ordering::Release);
        Ok::<_, Error>((with?, wrong))
    })?;
    let took = begun.elapsed().as_secs_f64();
    let events = delivered.load(Ordering::Relaxed);
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let rate = events as f64 / took;
    println!("puts/s: {without:.0} without watchers, {with:.0} with them");
    println!("{events} events in {took:.2} s, {rate:.0} a second; {wrong} watchers got too few or too many");
    println!("anonymous memory {}", polybolt_benches::mib(resident().anonymous));
    slow(&keyspace, &arguments, without)?;
    drop(keyspace);
    engine.close()
}

/// What a watcher got before it ended or had no more.
#[derive(Debug, Default, PartialEq, Eq)]
struct Got {
    events: u64,
    last: i64,
    compacted: Option<i64>,
}

fn drain(watcher: &mut Watcher, upto: i64, got: &mut Got) -> Result<(), Error> {
    while got.last < upto && got.compacted.is_none() {
        match watcher.recv()? {
            Some(WatchItem::Events { events, .. }) => {
                for event in events {
                    assert!(got.last == 0 || event.kv().mod_revision == got.last + 1, "no gap");
                    got.last = event.kv().mod_revision;
                    got.events += 1;
                }
            }
            Some(WatchItem::Compacted { compact_revision }) => {
                got.compacted = Some(compact_revision);
                assert_eq!(watcher.recv()?, None, "one cancel");
            }
            None => break,
        }
    }
    Ok(())
}

fn slow(keyspace: &Keyspace, arguments: &Arguments, without: f64) -> Result<(), Error> {
    let begin = || -> Result<Vec<(Watcher, Got)>, Error> {
        let watcher = |_| {
            let span = Span::prefix("/registry/pods/");
            let request = WatchRequest { span, start_revision: 0, no_put: false, no_delete: false, prev_kv: false };
            keyspace.watch(request).map(|watcher| (watcher, Got::default()))
        };
        (0..arguments.slow / 2).map(watcher).collect()
    };
    let memory = resident().anonymous;
    let first = keyspace.revision();
    let (mut behind, mut stopped) = (begin()?, begin()?);
    let one = put(keyspace, arguments)?;
    let compacted = keyspace.revision();
    for (watcher, got) in &mut stopped {
        drain(watcher, compacted, got)?;
    }
    keyspace.compact(compacted, true).wait()?;
    let two = put(keyspace, arguments)?;
    let last = keyspace.revision();
    let grown = resident().anonymous.saturating_sub(memory);
    let mut wrong = 0;
    for (watcher, got) in &mut stopped {
        drain(watcher, last, got)?;
        wrong += u64::from(*got != Got { events: (last - first).unsigned_abs(), last, compacted: None });
    }
    for (watcher, got) in &mut behind {
        drain(watcher, last, got)?;
        wrong += u64::from(got.compacted != Some(compacted) || got.last >= compacted || got.events == 0);
    }
    println!(
        "{} slow watchers: puts/s {one:.0} and {two:.0}, {without:.0} without watchers; {} more of anonymous memory",
        arguments.slow,
        polybolt_benches::mib(grown)
    );
    println!(
        "  half stopped reading at the compaction and got all {} events later; half fell below it and got {} events without \
         a gap, then one cancel with {compacted}; {wrong} got something else",
        last - first,
        behind.first().map_or(0, |(_, got)| got.events)
    );
    Ok(())
}
