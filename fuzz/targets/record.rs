//! Any bytes as what a keyspace stores: rows, records, states, routes, leases, snapshots; once as they are, once as a
//! row and once as a snapshot whose checksums hold.
#![no_main]

use libfuzzer_sys::fuzz_target;
use polybolt_fuzz::repair;

fuzz_target!(|bytes: &[u8]| {
    polybolt::decode_everything(bytes);
    for repair in [repair::row, repair::snapshot] {
        let mut sealed = bytes.to_vec();
        repair(&mut sealed);
        polybolt::decode_everything(&sealed);
    }
});
