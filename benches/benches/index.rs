//! The index's hot paths, on 1M Kubernetes-shaped keys in scattered order.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use polybolt_benches::dataset;
use polybolt_index::{Index, KeyRange, Revision};
use std::hint::black_box;
use std::ops::ControlFlow;

const KEYS: usize = 1_000_000;

fn index(c: &mut Criterion) {
    let keys = dataset::keys(KEYS);
    let order: Vec<usize> = dataset::scattered(KEYS).collect();
    let mut index = Index::new();
    let mut main = 1;
    for at in &order {
        main += 1;
        index.put(keys[*at].as_bytes(), Revision::new(main, 0));
    }
    let mut group = c.benchmark_group("index");
    let mut next = order.iter().cycle();
    let mut key = || &keys[*next.next().expect("it goes round")];
    group.bench_function("get", |b| {
        b.iter_batched(&mut key, |key| index.get(key.as_bytes(), u64::MAX), BatchSize::SmallInput);
    });
    group.bench_function("overwrite", |b| {
        b.iter_batched(
            &mut key,
            |key| {
                main += 1;
                index.put(key.as_bytes(), Revision::new(main, 0))
            },
            BatchSize::SmallInput,
        );
    });
    let pods = KeyRange { start: b"/registry/pods/", end: Some(b"/registry/pods0") };
    group.bench_function("count of 600k", |b| b.iter(|| index.count(black_box(pods), u64::MAX)));
    group.throughput(Throughput::Elements(500));
    group.bench_function("walk of 500", |b| {
        b.iter(|| {
            let mut left = 500;
            index.walk(black_box(pods), u64::MAX, &mut |key, hit| {
                black_box((key, hit));
                left -= 1;
                if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
        });
    });
    group.finish();
}

criterion_group!(benches, index);
criterion_main!(benches);
