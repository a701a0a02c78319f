//! Checksums put right after a change, as a writer with a bug would write them, or one that means harm.

use polybolt_engine::UNIT_BYTES;
use polybolt_engine::journal::group::GROUP_HEAD_BYTES;
use sha2::{Digest, Sha256};

const SECTOR: usize = 512;

fn put_crc(bytes: &mut [u8], at: usize, crc: u32) {
    bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
}

fn u32_at(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize
}

/// The checksum of a slot of the manifest.
pub fn manifest(bytes: &mut [u8]) {
    let body = bytes.get(16..24).map_or(u64::MAX, |body| u64::from_le_bytes(body.try_into().expect("eight bytes")));
    let end = usize::try_from(body).unwrap_or(usize::MAX).saturating_add(64).min(bytes.len());
    if end >= 64 {
        let crc = crc32fast::hash(&bytes[16..end]);
        put_crc(bytes, 12, crc);
    }
}

/// Where pages and extents begin in a sound tree file, and how long they are.
pub fn pages_of(bytes: &[u8]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut at = 0;
    while at + UNIT_BYTES <= bytes.len() {
        let len = u32_at(bytes, at + 32) * UNIT_BYTES;
        let whole = len > 0 && at + len <= bytes.len() && bytes[at + 4] != 0;
        if whole && crc32fast::hash(&bytes[at + 4..at + len]) as usize == u32_at(bytes, at) {
            found.push((at, len));
            at += len;
        } else {
            at += UNIT_BYTES;
        }
    }
    found
}

/// The checksums of those of `pages` that a change of `len` bytes at `at` touches.
pub fn pages(bytes: &mut [u8], pages: &[(usize, usize)], at: usize, len: usize) {
    for &(start, page) in pages.iter().filter(|(start, page)| *start < at + len && at < start + page) {
        let crc = crc32fast::hash(&bytes[start + 4..start + page]);
        put_crc(bytes, start, crc);
    }
}

/// The checksums of a segment's head and of the groups in it, which chain to each other.
pub fn segment(bytes: &mut [u8]) {
    if bytes.len() < 2 * SECTOR {
        return;
    }
    let crc = crc32fast::hash(&bytes[16..SECTOR]);
    put_crc(bytes, 12, crc);
    let mut chain = None;
    let mut at = SECTOR;
    while at + GROUP_HEAD_BYTES <= bytes.len() {
        if bytes[at..at + 4] != *b"PBJG" {
            at += SECTOR;
            continue;
        }
        let len = u32_at(bytes, at + 40);
        let body = at + GROUP_HEAD_BYTES;
        // One that runs on in the next segment keeps its body's checksum.
        if let Some(body) = bytes.get(body..body.saturating_add(len)) {
            let crc = crc32fast::hash(body);
            put_crc(bytes, at + 52, crc);
        }
        if let Some(chain) = chain {
            put_crc(bytes, at + 56, chain);
        }
        let crc = crc32fast::hash(&bytes[at + 8..at + GROUP_HEAD_BYTES]);
        put_crc(bytes, at + 4, crc);
        chain = Some(crc);
        at = body.saturating_add(len).next_multiple_of(SECTOR);
    }
}

/// The checksums of a snapshot's rows and frames, and its trailer.
pub fn snapshot(bytes: &mut [u8]) {
    let (mut digest, mut rows, mut entries) = (Sha256::new(), 0u64, 0u64);
    let mut at = 0;
    while at + 9 <= bytes.len() {
        let len = u32_at(bytes, at);
        let (kind, from) = (bytes[at + 8], at + 9);
        let to = from.saturating_add(len).min(bytes.len());
        match kind {
            2 => rows += parts(&mut bytes[from..to], row),
            3 => entries += parts(&mut bytes[from..to], |_| ()) / 2,
            4 if to - from >= 48 => {
                bytes[from..from + 8].copy_from_slice(&rows.to_le_bytes());
                bytes[from + 8..from + 16].copy_from_slice(&entries.to_le_bytes());
                bytes[from + 16..from + 48].copy_from_slice(&digest.clone().finalize());
            }
            _ => {}
        }
        let crc = crc32fast::hash(&bytes[at + 8..to]);
        put_crc(bytes, at + 4, crc);
        digest.update(&bytes[at..to]);
        at = to;
    }
}

/// Shows each of a run of parts with their lengths before them; how many there are.
fn parts(bytes: &mut [u8], each: impl Fn(&mut [u8])) -> u64 {
    let (mut at, mut count) = (0, 0);
    while at + 4 <= bytes.len() {
        let to = (at + 4).saturating_add(u32_at(bytes, at));
        if to > bytes.len() {
            break;
        }
        each(&mut bytes[at + 4..to]);
        (at, count) = (to, count + 1);
    }
    count
}

/// A row: 12 bytes of tree key, a head with the checksum of all else behind its flags (of a wide head, its fifth byte), a
/// body.
pub fn row(row: &mut [u8]) {
    let at = 12 + if row.get(12).is_some_and(|flags| flags & 4 != 0) { 1 } else { 4 };
    if row.len() >= at + 4 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&row[..at]);
        hasher.update(&row[at + 4..]);
        let crc = hasher.finalize();
        put_crc(row, at, crc);
    }
}
