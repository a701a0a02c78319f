//! A page with any content under a header that holds: it is refused, or every access stays inside.
#![no_main]

use libfuzzer_sys::fuzz_target;
use polybolt_engine::page::layout::{self, HEADER_BYTES, Head, Kind, Stamp};
use polybolt_engine::page::leaf::BodyAt;
use polybolt_engine::page::{self, Branch, Leaf};
use polybolt_engine::{PagePtr, TreeId};

fuzz_target!(|input: (u8, u8, Vec<u8>)| {
    let (height, count, content) = input;
    let mut bytes = vec![0; HEADER_BYTES];
    bytes.extend_from_slice(&content);
    bytes.resize(4096, 0);
    let (stamp, at) = (Stamp { engine: 7, file: TreeId(3) }, PagePtr { unit: 5, epoch: 9 });
    let kind = if height == 0 { Kind::Leaf } else { Kind::Branch };
    layout::seal(&mut bytes, stamp, at, Head { kind, height, count: count.into() });
    if page::check(&bytes, stamp, at, height).is_err() {
        return;
    }
    let mut sum = 0;
    if height == 0 {
        let leaf = Leaf::new(&bytes);
        for at in 0..leaf.len() {
            let entry = leaf.entry(at);
            sum += entry.key.len() + entry.head.len();
            sum += match entry.body {
                BodyAt::Here(body) => body.len(),
                BodyAt::There(extent) => extent.units() as usize,
            };
        }
    } else {
        let branch = Branch::new(&bytes);
        for at in 0..branch.len() {
            sum += branch.key(at).len() + branch.child(at).unit as usize;
        }
    }
    std::hint::black_box(sum);
});
