//! Reads of a store that was closed and opened again, so that write buffers are empty: 1M Kubernetes-shaped keys
//! loaded in scattered order, values of 512 bytes. `POLYBOLT_BENCH_KEYS` says how many keys instead.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use polybolt::{Durability, Engine, Options, PutRequest, RangeRequest, Routes, Span};
use polybolt_benches::dataset::{self, Numbers, Values};
use std::time::Duration;

const KEYS: usize = 1_000_000;

fn reads(c: &mut Criterion) {
    let count = std::env::var("POLYBOLT_BENCH_KEYS").ok().and_then(|keys| keys.parse().ok()).unwrap_or(KEYS);
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let durability = Durability::Batch { interval: Duration::from_millis(100), limit: 10_000 };
    let options = Options { durability, ..Options::default() };
    let keys = dataset::keys(count);
    let values = Values::new();
    let engine = Engine::open(scratch.path(), options.clone()).expect("a new store");
    let keyspace = engine.create_keyspace("default", Routes::kubernetes()).expect("a new keyspace");
    for (at, number) in dataset::scattered(count).zip(0..) {
        keyspace.put(PutRequest::new(keys[at].clone(), values.of(number).to_vec())).wait().expect("a put");
    }
    drop(keyspace);
    engine.close().expect("a clean stop");
    let engine = Engine::open(scratch.path(), options).expect("it opens");
    let keyspace = engine.keyspace("default").expect("it is there");

    let mut group = c.benchmark_group("reads");
    let mut numbers = Numbers::new(7);
    group.bench_function("get", |b| {
        let key = || RangeRequest::new(Span::key(keys[numbers.below(count)].clone()));
        b.iter_batched(key, |request| keyspace.range(&request).expect("a get").kvs, BatchSize::SmallInput);
    });
    let limited = RangeRequest { limit: 500, ..RangeRequest::new(Span::prefix("/registry/pods/")) };
    group.throughput(Throughput::Elements(500));
    group.bench_function("limit 500 with the count", |b| {
        b.iter(|| {
            let found = keyspace.range(&limited).expect("a range");
            assert_eq!((found.kvs.len(), found.more), (500, true));
            found.kvs
        });
    });
    let namespace = |number: usize| RangeRequest::new(Span::prefix(format!("/registry/pods/namespace-{number:03}/")));
    let in_one = keyspace.range(&namespace(1)).expect("a range").count.cast_unsigned();
    group.throughput(Throughput::Elements(in_one));
    group.bench_function("a namespace's pods", |b| {
        let request = || namespace(1 + numbers.below(200));
        b.iter_batched(request, |request| keyspace.range(&request).expect("a range").kvs, BatchSize::SmallInput);
    });
    let pods = RangeRequest::new(Span::prefix("/registry/pods/"));
    group.throughput(Throughput::Elements(keyspace.range_stream(&pods).expect("a stream").total().cast_unsigned()));
    group.sample_size(10);
    group.bench_function("all pods, streamed", |b| {
        b.iter(|| {
            let chunks = keyspace.range_stream(&pods).expect("a stream");
            chunks.map(|chunk| chunk.expect("a chunk").len()).sum::<usize>()
        });
    });
    group.bench_function("all pods, lent", |b| {
        b.iter(|| {
            let (mut stream, mut bytes) = (keyspace.range_stream(&pods).expect("a stream"), 0);
            while let Some(shown) = stream.lend(&mut |kv| bytes += kv.value.len()) {
                shown.expect("a chunk");
            }
            bytes
        });
    });
    group.finish();
}

criterion_group!(benches, reads);
criterion_main!(benches);
