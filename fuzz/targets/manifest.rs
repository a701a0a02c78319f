//! Any bytes as a manifest slot, and with a checksum that holds: refused, or the same after a round trip.
#![no_main]

use libfuzzer_sys::fuzz_target;
use polybolt_engine::manifest::Manifest;
use std::path::Path;

fuzz_target!(|bytes: &[u8]| {
    let path = Path::new("fuzz");
    drop(Manifest::decode(path, bytes));
    let mut sealed = Vec::new();
    sealed.extend_from_slice(b"PBLTMNFT");
    sealed.extend_from_slice(&1u32.to_le_bytes());
    sealed.extend_from_slice(&[0; 4]);
    sealed.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    sealed.extend_from_slice(&[0; 40]);
    sealed.extend_from_slice(bytes);
    let crc = crc32fast::hash(&sealed[16..]);
    sealed[12..16].copy_from_slice(&crc.to_le_bytes());
    if let Ok(manifest) = Manifest::decode(path, &sealed) {
        assert_eq!(Manifest::decode(path, &manifest.encode()).unwrap(), manifest);
    }
});
