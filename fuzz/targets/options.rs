//! What an operator gives: routes as text, and the command line of `polybolt serve`. It is refused in words, or an
//! engine runs with it.
//!
//! Input: `r` and routes, or one argument a line.
#![no_main]

#[allow(dead_code, reason = "only what is read of a command line is wanted")]
#[path = "../../frontend/src/serve.rs"]
mod serve;

use clap::Parser;
use libfuzzer_sys::{Corpus, fuzz_target};
use polybolt::{Options, PutRequest, RangeRequest, Routes, Span};
use polybolt_frontend::listen;
use polybolt_fuzz::drive::{self, Driven, STORE};
use std::path::{Component, Path};
use std::time::Duration;

#[derive(Parser)]
#[command(name = "polybolt")]
enum Command {
    Serve(Box<serve::Serve>),
}

/// A keyspace of these routes is the same after a restart.
fn routes(text: &str) {
    let routes = match Routes::parse(text) {
        Ok(routes) => routes,
        Err(why) => {
            assert!(!why.is_empty());
            return;
        }
    };
    let disk = drive::disk();
    let driven = Driven::open(&disk, STORE, drive::options(), 1).expect("a new store");
    let Ok(ks) = driven.engine.create_keyspace("ks", routes.clone()) else {
        driven.close().expect("it closes");
        Driven::open(&disk, STORE, drive::options(), 2).expect("it opens again");
        return;
    };
    let keys: Vec<Vec<u8>> = routes.shards().iter().flat_map(|shard| &shard.prefixes).map(|key| key.to_vec()).collect();
    for key in keys.iter().take(8) {
        driven.finish(ks.put(PutRequest::new(key.clone(), "v"))).expect("a put");
    }
    for (path, _) in disk.files() {
        let inside = path.strip_prefix(STORE).is_ok_and(|path| path.components().all(is_plain));
        assert!(inside, "{} is a file of {text:?}", path.display());
    }
    let found = ks.range(&RangeRequest::new(Span::prefix(""))).expect("a range").kvs;
    drop(ks);
    driven.close().expect("it closes");
    let driven = Driven::open(&disk, STORE, drive::options(), 2).expect("it opens again");
    let ks = driven.engine.keyspace("ks").expect("it was there");
    assert_eq!(*ks.routes(), routes);
    assert_eq!(ks.range(&RangeRequest::new(Span::prefix(""))).expect("a range").kvs, found);
}

fn is_plain(part: Component<'_>) -> bool {
    matches!(part, Component::Normal(name) if Path::new(name).file_name() == Some(name))
}

/// An engine with these options takes writes, compacts, and lets time pass.
fn engine(options: Options) {
    let small = drive::options();
    let (segment_bytes, journal_bytes) = (small.segment_bytes, small.journal_bytes);
    let options = Options { segment_bytes, journal_bytes, space_reserve_bytes: 0, ..options };
    let disk = drive::disk();
    let Ok(driven) = Driven::open(&disk, STORE, options, 1) else { return };
    let ks = driven.engine.create_keyspace("ks", Routes::single()).expect("a new keyspace");
    drop(driven.finish(ks.lease_grant(5, 400)));
    for n in 0..6u8 {
        drop(driven.finish(ks.put(PutRequest { lease: 5, ..PutRequest::new("k", vec![n; 20]) })));
    }
    drop(driven.finish(ks.compact(3, true)));
    for _ in 0..20 {
        driven.run(8, Duration::from_secs(7));
    }
    drop(driven.finish(ks.lease_keep_alive(5)));
    drop(ks);
    driven.close().expect("it closes");
}

fn command(text: &str) {
    let arguments = ["polybolt", "serve"].into_iter().chain(text.lines());
    let Command::Serve(serve) = match Command::try_parse_from(arguments) {
        Ok(command) => command,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    if let Err(why) = serve.check() {
        assert!(!why.is_empty());
        return;
    }
    std::hint::black_box((serve.tls(), serve.listening()));
    engine(serve.options());
}

fuzz_target!(|input: &[u8]| -> Corpus {
    let Ok(text) = std::str::from_utf8(input) else { return Corpus::Reject };
    for line in text.lines() {
        std::hint::black_box(listen::host(line));
    }
    match text.strip_prefix('r') {
        Some(text) => routes(text),
        None => command(text),
    }
    Corpus::Keep
});
