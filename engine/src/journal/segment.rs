//! A segment: one preallocated file of the journal, recycled again and again.
//!
//! Its first sector says which part of which session's journal it holds; groups follow from the
//! second sector on. Files keep their names; the number in the header gives their order. The
//! header of a segment is written with its first group and becomes durable with it.

use crate::codec::Reader;
use crate::disk::{Disk, DiskFile, OpenMode, SECTOR_BYTES};
use crate::error::{Damage, Error, Place, Result};
use crate::limits;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const MAGIC: &[u8; 8] = b"PBLTJRNL";
const VERSION: u32 = 1;
/// Where the first group of a segment begins.
pub const SEGMENT_DATA: u64 = SECTOR_BYTES as u64;

/// The first sector of a segment in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHead {
    /// The store's identity.
    pub engine: u128,
    /// The session that uses it.
    pub session: u64,
    /// Its number; the journal runs through ascending numbers.
    pub number: u64,
    /// Bytes of the file, so that a file that was cut is found; 0 if they were not noted.
    pub bytes: u64,
}

impl SegmentHead {
    /// The sector's bytes.
    pub fn encode(&self) -> [u8; SECTOR_BYTES] {
        let mut out = [0; SECTOR_BYTES];
        out[..8].copy_from_slice(MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        // 16..40: three feature words, none in use.
        out[40..56].copy_from_slice(&self.engine.to_le_bytes());
        out[56..64].copy_from_slice(&self.session.to_le_bytes());
        out[64..72].copy_from_slice(&self.number.to_le_bytes());
        out[72..80].copy_from_slice(&self.bytes.to_le_bytes());
        let crc = crc32fast::hash(&out[16..]);
        out[12..16].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// The head of a segment; None if it was never used (or its head was torn).
    pub fn decode(file: &Path, bytes: &[u8]) -> Result<Option<Self>> {
        let parse = || -> Result<Option<(u32, [u64; 3], Self)>, Damage> {
            let mut reader = Reader::new(bytes);
            if reader.array::<8>()? != *MAGIC {
                return Ok(None);
            }
            let (version, stored) = (reader.u32()?, reader.u32()?);
            if crc32fast::hash(reader.rest()) != stored {
                return Ok(None);
            }
            let features = [reader.u64()?, reader.u64()?, reader.u64()?];
            let (engine, session, number) = (reader.u128()?, reader.u64()?, reader.u64()?);
            let head = SegmentHead { engine, session, number, bytes: reader.u64()? };
            Ok(Some((version, features, head)))
        };
        match parse().map_err(|damage| Error::corrupt(file, Place::Offset(0), damage))? {
            Some((version, features, _)) if version != VERSION || features[1] | features[2] != 0 => {
                Err(Error::Unsupported {
                    file: file.to_owned(),
                    found: format!("journal format {version} with features {:#x}/{:#x}", features[1], features[2]),
                    supported: format!("format {VERSION} without features"),
                })
            }
            Some((_, _, head)) if head.number > limits::COUNTER_MAX => {
                let what = "the segment counts further than any journal can";
                Err(Error::corrupt(file, Place::Offset(0), Damage::Malformed { what }))
            }
            other => Ok(other.map(|(_, _, head)| head)),
        }
    }
}

/// An open segment file.
#[derive(Debug, Clone)]
pub struct Segment {
    /// The file.
    pub file: Arc<dyn DiskFile>,
    /// Its length.
    pub bytes: u64,
    /// What its first sector says.
    pub head: Option<SegmentHead>,
}

impl Segment {
    /// What is missing of its file, if it was cut: files are made whole before they get their names.
    pub fn cut(&self) -> Option<Damage> {
        let needed = self.head.map_or(0, |head| head.bytes).max(2 * SEGMENT_DATA);
        (self.bytes < needed).then_some(Damage::Truncated { needed, found: self.bytes })
    }
}

/// The directory of segments in a store's directory.
pub fn directory(store: &Path) -> PathBuf {
    store.join("journal")
}

/// The name of the `index`th segment file.
pub fn file_name(index: u64) -> String {
    format!("{index:06}.seg")
}

/// The index in a segment file's name.
pub fn file_index(name: &str) -> Option<u64> {
    name.strip_suffix(".seg")?.parse().ok()
}

/// Opens every segment file of a journal. Files still being prepared when the store stopped have
/// other names and are passed over.
pub fn open_all(disk: &dyn Disk, dir: &Path, mode: OpenMode) -> Result<Vec<(u64, Segment)>> {
    let names = match disk.list(dir) {
        Err(error) if error.is_not_found() => return Ok(Vec::new()),
        other => other?,
    };
    let mut segments = Vec::new();
    for name in names {
        let Some(index) = file_index(&name) else { continue };
        segments.push((index, open(disk, &dir.join(&name), mode)?));
    }
    Ok(segments)
}

/// Opens one segment file.
pub fn open(disk: &dyn Disk, path: &Path, mode: OpenMode) -> Result<Segment> {
    let file = disk.open(path, mode)?;
    let bytes = file.len()?;
    let mut sector = [0; SECTOR_BYTES];
    let head = if bytes < SEGMENT_DATA {
        None
    } else {
        file.read_at(&mut sector, 0)?;
        SegmentHead::decode(file.path(), &sector)?
    };
    Ok(Segment { file, bytes, head })
}
