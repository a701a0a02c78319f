//! Any bytes as segment headers, group headers and bodies.
#![no_main]

use libfuzzer_sys::fuzz_target;
use polybolt_engine::codec::Reader;
use polybolt_engine::journal::group::{self, GroupHead};
use polybolt_engine::journal::segment::SegmentHead;
use std::path::Path;

fuzz_target!(|bytes: &[u8]| {
    drop(SegmentHead::decode(Path::new("fuzz"), bytes));
    drop(GroupHead::decode(bytes));
    let mut body = Reader::new(bytes);
    while group::take_record(&mut body).is_ok_and(|_| !body.rest().is_empty()) {}
});
