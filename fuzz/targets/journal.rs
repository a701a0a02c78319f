//! Segments of any bytes under checksums that hold, read back as at an open and as by `check`: both see the same, up
//! to what is gone, and an error names its file.
//!
//! Input: flags, then segments of 4 KiB.
#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use polybolt_engine::codec::Reader;
use polybolt_engine::disk::sim::SimDisk;
use polybolt_engine::disk::{Disk, OpenMode};
use polybolt_engine::journal::group::{self, GroupHead};
use polybolt_engine::journal::replay;
use polybolt_engine::journal::segment::{self, SegmentHead};
use polybolt_engine::manifest::Manifest;
use polybolt_engine::ticket::Position;
use polybolt_engine::{Error, Result};
use polybolt_fuzz::{fixture, repair};
use std::path::Path;
use std::sync::LazyLock;

const AS_IT_IS: u8 = 1;
const DIR: &str = "/s/journal";

/// Of a store that was stopped: replay begins somewhere.
static MANIFEST: LazyLock<Manifest> = LazyLock::new(fixture::manifest);

/// Parts alone.
fn parts(bytes: &[u8]) {
    let path = Path::new("fuzz");
    if let Ok(Some(head)) = SegmentHead::decode(path, bytes) {
        assert_eq!(SegmentHead::decode(path, &head.encode()).expect("as it was"), Some(head));
    }
    if let Ok((head, crc)) = GroupHead::decode(bytes) {
        assert_eq!(head.encode().1, crc);
    }
    let mut body = Reader::new(bytes);
    let mut again = Vec::new();
    while !body.rest().is_empty() {
        let Ok((space, record)) = group::take_record(&mut body) else { break };
        group::put_record(&mut again, space, record);
    }
    assert!(bytes.starts_with(&again));
}

fn named(error: &Error) {
    assert!(error.to_string().contains(DIR), "{error} names no file");
}

fuzz_target!(|input: &[u8]| -> Corpus {
    let Some((flags, bytes)) = input.split_first() else { return Corpus::Reject };
    parts(bytes);
    let disk = SimDisk::new(1);
    disk.create_dir(Path::new(DIR)).expect("an empty disk");
    for (index, bytes) in bytes.chunks(fixture::SEGMENT).take(8).enumerate() {
        let mut bytes = bytes.to_vec();
        bytes.resize(fixture::SEGMENT, 0);
        if flags & AS_IT_IS == 0 {
            repair::segment(&mut bytes);
        }
        let path = Path::new(DIR).join(segment::file_name(index as u64 + 1));
        let file = disk.open(&path, OpenMode::CreateNew).expect("an empty disk");
        file.write_at(&bytes, 0).expect("the disk has room");
    }
    let segments = match segment::open_all(&disk, Path::new(DIR), OpenMode::Read) {
        Ok(segments) => segments,
        Err(error) => {
            named(&error);
            return Corpus::Keep;
        }
    };
    let mut read: Vec<(Position, Vec<u8>)> = Vec::new();
    let mut each = |position, _, record: &[u8]| -> Result<()> {
        read.push((position, record.to_vec()));
        Ok(())
    };
    let replayed = replay::replay(&segments, &MANIFEST, &mut each);
    assert!(read.windows(2).all(|pair| pair[0].0.0 + 1 == pair[1].0.0), "positions have holes");
    let (mut gaps, mut seen) = (0, Vec::new());
    let mut each = |position, _, record: &[u8]| -> Result<()> {
        seen.push((position, record.to_vec()));
        Ok(())
    };
    let surveyed = replay::survey(&segments, &MANIFEST, &mut each, &mut |_| {
        gaps += 1;
        Ok(())
    });
    assert!(seen.starts_with(&read));
    match (&replayed, &surveyed) {
        (Ok(replayed), Ok(surveyed)) => assert_eq!((replayed, gaps), (surveyed, 0)),
        (Err(error), Err(_)) => named(error),
        (Err(error), Ok(_)) => {
            named(error);
            assert!(gaps > 0 || segments.iter().any(|(_, segment)| segment.cut().is_some()), "{error}");
        }
        (Ok(_), Err(error)) => panic!("replayed, but {error}"),
    }
    Corpus::Keep
});
