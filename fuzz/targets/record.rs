//! Any bytes as what a keyspace stores: rows, records, states, routes, leases, snapshots.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| polybolt::decode_everything(bytes));
