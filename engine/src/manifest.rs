//! The one commit point of all files: two slots, each a file of its own.
//!
//! A commit writes the slot that holds the older manifest and syncs it; the newer one stays whole
//! meanwhile, so there is always a slot to open from. The newest valid slot wins. What a manifest
//! names (roots, journal start) is durable before it is written. `FORMAT.md` has the fields.
//!
//! Not here: what a tree or a space is, and when to commit (`checkpoint.rs`, `store.rs`).

use crate::batch::{TreeClass, TreeSpec};
use crate::codec::{Reader, put_bytes};
use crate::disk::{Disk, DiskFile, OpenMode};
use crate::error::{Damage, Error, Place, Result};
use crate::ids::{SpaceId, TreeId};
use crate::limits;
use crate::ticket::Position;
use crate::tree::Root;
use bytes::Bytes;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The slot files.
pub const SLOT_NAMES: [&str; 2] = ["MANIFEST.0", "MANIFEST.1"];
const MAGIC: &[u8; 8] = b"PBLTMNFT";
const VERSION: u32 = 1;
/// Slots grow by this much, so that few commits need room.
const ROOM_BYTES: usize = 4096;
/// magic, version, crc, body length, three feature words, reserved.
const HEAD_BYTES: usize = 8 + 4 + 4 + 8 + 3 * 8 + 16;

/// Everything that is true of a store as of one commit.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    /// The store's identity, in every file of it.
    pub engine: u128,
    /// Counts commits; the slot is its parity.
    pub sequence: u64,
    /// The highest epoch any page may carry.
    pub epoch: u64,
    /// The open-to-close life of the store that wrote this.
    pub session: u64,
    /// True if the session ended with a close; Volatile trees have roots only then.
    pub clean: bool,
    /// Where replay begins.
    pub journal: JournalStart,
    /// The next space id.
    pub next_space: u32,
    /// The next tree id.
    pub next_tree: u32,
    /// Spaces by id, ascending.
    pub spaces: Vec<SpaceEntry>,
}

/// Where replay begins: after which group, and what the next one has to look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct JournalStart {
    /// The segment that holds the next group's header.
    pub segment: u64,
    /// The offset in it.
    pub offset: u64,
    /// The next group's sequence.
    pub sequence: u64,
    /// The checksum that the next group chains to.
    pub chain: u32,
    /// The last position before the next group.
    pub position: Position,
}

/// A space as the manifest knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct SpaceEntry {
    /// Its id.
    pub id: SpaceId,
    /// Its name.
    pub name: String,
    /// Its creator's description.
    pub config: Bytes,
    /// Its owner's state.
    pub state: Bytes,
    /// Records up to here are in the trees.
    pub replayed_to: Position,
    /// Its trees.
    pub trees: Vec<TreeEntry>,
}

/// A tree as the manifest knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct TreeEntry {
    /// Its id.
    pub id: TreeId,
    /// What it was created with.
    pub spec: TreeSpec,
    /// Its root; None for a Volatile tree of an unclean session.
    pub root: Option<Root>,
    /// The first unit after its last page.
    pub end_unit: u32,
}

impl Manifest {
    /// The manifest's bytes, as a slot holds them.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; HEAD_BYTES];
        out.extend_from_slice(&self.engine.to_le_bytes());
        for word in [self.sequence, self.epoch, self.session, u64::from(self.clean)] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        let JournalStart { segment, offset, sequence, chain, position } = self.journal;
        for word in [segment, offset, sequence, u64::from(chain), position.0] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&self.next_space.to_le_bytes());
        out.extend_from_slice(&self.next_tree.to_le_bytes());
        out.extend_from_slice(&[0; 64]); // room for index checkpoints, reserves and a boot id
        let count = u32::try_from(self.spaces.len()).expect("at most SPACES_MAX spaces");
        out.extend_from_slice(&count.to_le_bytes());
        for space in &self.spaces {
            space.encode(&mut out);
        }
        let body = (out.len() - HEAD_BYTES) as u64;
        out[..8].copy_from_slice(MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[16..24].copy_from_slice(&body.to_le_bytes());
        let crc = crc32fast::hash(&out[16..]);
        out[12..16].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// A manifest from a slot's bytes; what stands behind its end is ignored.
    pub fn decode(file: &Path, bytes: &[u8]) -> Result<Self> {
        let damaged = |damage| Error::corrupt(file, Place::File, damage);
        let mut reader = Reader::new(bytes);
        if reader.array::<8>().map_err(damaged)? != *MAGIC {
            return Err(damaged(Damage::Malformed { what: "it does not begin like a manifest" }));
        }
        let version = reader.u32().map_err(damaged)?;
        let stored = reader.u32().map_err(damaged)?;
        let sealed = reader.rest();
        let body = reader.u64().map_err(damaged)?;
        let features: [u64; 3] =
            [reader.u64().map_err(damaged)?, reader.u64().map_err(damaged)?, reader.u64().map_err(damaged)?];
        let unsupported = || {
            Err(Error::Unsupported {
                file: file.to_owned(),
                found: format!("manifest format {version} with features {:#x}/{:#x}", features[1], features[2]),
                supported: format!("format {VERSION} without features"),
            })
        };
        if version != VERSION {
            return unsupported();
        }
        let whole = (HEAD_BYTES as u64 - 16).saturating_add(body);
        let sealed = usize::try_from(whole).ok().and_then(|whole| sealed.get(..whole)).ok_or_else(|| {
            damaged(Damage::Truncated { needed: whole.saturating_add(16), found: bytes.len() as u64 })
        })?;
        let computed = crc32fast::hash(sealed);
        if computed != stored {
            return Err(damaged(Damage::Checksum { stored, computed }));
        }
        // Only now: a flipped bit is no feature.
        if features[1] | features[2] != 0 {
            return unsupported();
        }
        Self::decode_body(&sealed[HEAD_BYTES - 16 - 16..]).map_err(damaged)
    }

    /// `bytes` begin at the reserved bytes of the head.
    fn decode_body(bytes: &[u8]) -> Result<Self, Damage> {
        let mut reader = Reader::new(bytes);
        reader.zeros(16)?;
        let engine = reader.u128()?;
        let (sequence, epoch, session) = (reader.u64()?, reader.u64()?, reader.u64()?);
        let clean = reader.u64()? == 1;
        let (segment, offset, group) = (reader.u64()?, reader.u64()?, reader.u64()?);
        let chain = u32::try_from(reader.u64()?).map_err(|_| Damage::Malformed { what: "chain is over 32 bits" })?;
        let position = Position(reader.u64()?);
        let (next_space, next_tree) = (reader.u32()?, reader.u32()?);
        let counters = [sequence, epoch, session, segment, offset, group, position.0];
        if counters.iter().any(|counter| *counter > limits::COUNTER_MAX) || next_space.max(next_tree) > limits::IDS_MAX
        {
            return Err(Damage::Malformed { what: "it counts further than any store can" });
        }
        reader.zeros(64)?;
        let count = reader.u32()? as usize;
        if count > limits::SPACES_MAX {
            return Err(Damage::Malformed { what: "it has more spaces than a store can have" });
        }
        let spaces = (0..count).map(|_| SpaceEntry::decode(&mut reader)).collect::<Result<_, _>>()?;
        reader.finish()?;
        let journal = JournalStart { segment, offset, sequence: group, chain, position };
        Ok(Manifest { engine, sequence, epoch, session, clean, journal, next_space, next_tree, spaces })
    }
}

impl SpaceEntry {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.id.0.to_le_bytes());
        put_bytes(out, self.name.as_bytes());
        put_bytes(out, &self.config);
        put_bytes(out, &self.state);
        out.extend_from_slice(&self.replayed_to.0.to_le_bytes());
        out.extend_from_slice(&[0; 16]);
        let count = u32::try_from(self.trees.len()).expect("a space has few trees");
        out.extend_from_slice(&count.to_le_bytes());
        for tree in &self.trees {
            tree.encode(out);
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, Damage> {
        let id = SpaceId(reader.u32()?);
        let name = name(reader)?;
        let config = Bytes::copy_from_slice(reader.bytes()?);
        let state = Bytes::copy_from_slice(reader.bytes()?);
        let replayed_to = Position(reader.u64()?);
        if replayed_to.0 > limits::COUNTER_MAX {
            return Err(Damage::Malformed { what: "a space counts further than any store can" });
        }
        reader.zeros(16)?;
        let count = reader.u32()?;
        let trees = (0..count).map(|_| TreeEntry::decode(reader)).collect::<Result<_, _>>()?;
        Ok(SpaceEntry { id, name, config, state, replayed_to, trees })
    }
}

impl TreeEntry {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.id.0.to_le_bytes());
        put_bytes(out, self.spec.name.as_bytes());
        let page_bytes = u32::try_from(self.spec.page_bytes).expect("a page has at most 64 KiB");
        out.extend_from_slice(&page_bytes.to_le_bytes());
        out.push(u8::from(self.spec.class == TreeClass::Volatile));
        let dir = self.spec.dir.as_ref().map(|dir| dir.to_string_lossy().into_owned()).unwrap_or_default();
        put_bytes(out, dir.as_bytes());
        out.push(u8::from(self.root.is_some()));
        if let Some(root) = self.root {
            root.encode(out);
        }
        out.extend_from_slice(&self.end_unit.to_le_bytes());
        out.extend_from_slice(&[0; 32]); // room for a floor and an index checkpoint
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, Damage> {
        let id = TreeId(reader.u32()?);
        let name = name(reader)?;
        let page_bytes = reader.u32()? as usize;
        if !limits::is_page_bytes(page_bytes) {
            return Err(Damage::Malformed { what: "a tree has pages of a size that cannot be" });
        }
        let class = match reader.u8()? {
            0 => TreeClass::Durable,
            1 => TreeClass::Volatile,
            _ => {
                return Err(Damage::Malformed { what: "a tree has an unknown class" });
            }
        };
        let dir = Some(reader.string()?).filter(|dir| !dir.is_empty()).map(PathBuf::from);
        let root = match reader.u8()? {
            0 => None,
            1 => Some(Root::decode(reader)?),
            _ => {
                return Err(Damage::Malformed { what: "a root is neither there nor absent" });
            }
        };
        let end_unit = reader.u32()?;
        reader.zeros(32)?;
        Ok(TreeEntry { id, spec: TreeSpec { name, page_bytes, class, dir }, root, end_unit })
    }
}

/// A name that becomes a part of a path.
fn name(reader: &mut Reader<'_>) -> Result<String, Damage> {
    let name = reader.string()?;
    if limits::is_name(&name) { Ok(name) } else { Err(Damage::Malformed { what: "a space or tree has no plain name" }) }
}

/// The two slot files of a store.
#[derive(Debug)]
pub struct Slots {
    files: [Arc<dyn DiskFile>; 2],
}

/// What the slots hold at open.
#[derive(Debug)]
pub struct Chosen {
    /// The newest valid manifest.
    pub manifest: Manifest,
    /// Which slot it came from.
    pub slot: usize,
    /// Why the other slot was not used, if it is not simply older.
    pub other: Option<Error>,
}

impl Slots {
    /// Makes both slots of a new store; each appears in the directory only when it is whole.
    pub fn create(disk: &dyn Disk, dir: &Path, manifest: &Manifest) -> Result<()> {
        for name in SLOT_NAMES {
            let fresh = dir.join(format!("{name}.new"));
            match disk.remove(&fresh) {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
            let file = disk.open(&fresh, OpenMode::CreateNew)?;
            file.write_at(&manifest.encode(), 0)?;
            file.sync_data()?;
            disk.rename(&fresh, &dir.join(name))?;
            disk.sync_dir(dir)?;
        }
        Ok(())
    }

    /// Opens the slots for commits; a missing second slot (a crash while the store was made) is made.
    pub fn open(disk: &dyn Disk, dir: &Path, chosen: &Chosen) -> Result<Self> {
        let open = |index: usize| {
            let path = dir.join(SLOT_NAMES[index]);
            match disk.open(&path, OpenMode::Write) {
                Err(error) if error.is_not_found() && index != chosen.slot => {
                    let file = disk.open(&path, OpenMode::CreateNew)?;
                    disk.sync_dir(dir)?;
                    Ok(file)
                }
                other => other,
            }
        };
        let files = [open(0)?, open(1)?];
        // A killed process may have written the chosen slot and not synced it, or failed to: written once
        // more, it is on disk before the next commit overwrites the other one (R10).
        files[chosen.slot].write_at(&chosen.manifest.encode(), 0)?;
        files[chosen.slot].sync_data()?;
        Ok(Slots { files })
    }

    /// Reads one slot.
    pub fn read(disk: &dyn Disk, dir: &Path, index: usize) -> Result<Manifest> {
        let file = disk.open(&dir.join(SLOT_NAMES[index]), OpenMode::Read)?;
        let len = usize::try_from(file.len()?).map_err(|_| Error::invalid("a manifest slot is too large"))?;
        let mut bytes = vec![0; len];
        file.read_at(&mut bytes, 0)?;
        Manifest::decode(file.path(), &bytes)
    }

    /// Reads both slots and chooses. Damage in one is reported, damage in both is an error, and so
    /// is a slot of a version that this build does not know: the other may be older than it.
    pub fn choose(disk: &dyn Disk, dir: &Path) -> Result<Chosen> {
        match (Self::read(disk, dir, 0), Self::read(disk, dir, 1)) {
            (Err(error @ Error::Unsupported { .. }), _) | (_, Err(error @ Error::Unsupported { .. })) => Err(error),
            // A slot that cannot be read may be the newer one, and be read the next time.
            (Err(error @ Error::Io { .. }), _) | (_, Err(error @ Error::Io { .. })) if !error.is_not_found() => {
                Err(error)
            }
            (Ok(a), Ok(b)) if a.engine != b.engine => Err(Error::corrupt(
                &dir.join(SLOT_NAMES[1]),
                Place::File,
                Damage::Malformed { what: "it is of another store than the first slot" },
            )),
            (Ok(a), Ok(b)) if a.sequence >= b.sequence => Ok(Chosen { manifest: a, slot: 0, other: None }),
            (Ok(_), Ok(b)) => Ok(Chosen { manifest: b, slot: 1, other: None }),
            (Ok(manifest), Err(error)) => Ok(Chosen { manifest, slot: 0, other: Some(error) }),
            (Err(error), Ok(manifest)) => Ok(Chosen { manifest, slot: 1, other: Some(error) }),
            (Err(first), Err(second)) => Err(if first.is_not_found() { second } else { first }),
        }
    }

    /// Makes `manifest` the newest: writes its slot and syncs it. The other slot is only made as long, so
    /// that a commit of the same to it needs no room. On [`Error::NoSpace`] nothing was written.
    pub fn commit(&self, manifest: &Manifest) -> Result<()> {
        let bytes = manifest.encode();
        for file in &self.files {
            if file.len()? < bytes.len() as u64 {
                file.preallocate((bytes.len() + ROOM_BYTES).next_multiple_of(ROOM_BYTES) as u64)?;
            }
        }
        let slot = &self.files[usize::from(manifest.sequence % 2 == 1)];
        slot.write_at(&bytes, 0)?;
        slot.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Manifest {
        let spec = TreeSpec { dir: Some("/fast".into()), ..TreeSpec::new("pods") };
        let tree = TreeEntry { id: TreeId(4), spec, root: None, end_unit: 9 };
        Manifest {
            engine: 7,
            sequence: 3,
            epoch: 12,
            session: 2,
            clean: true,
            journal: JournalStart { segment: 1, offset: 512, sequence: 9, chain: 77, position: Position(5) },
            next_space: 2,
            next_tree: 5,
            spaces: vec![SpaceEntry {
                id: SpaceId(1),
                name: "default".into(),
                config: Bytes::from_static(b"routes"),
                state: Bytes::from_static(b"revision"),
                replayed_to: Position(5),
                trees: vec![tree],
            }],
        }
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let mut bytes = sample().encode();
        bytes.extend_from_slice(b"left by a longer manifest");
        assert_eq!(Manifest::decode(Path::new("m"), &bytes).unwrap(), sample());
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_found() {
        let bytes = sample().encode();
        for at in (0..bytes.len() * 8).step_by(if cfg!(miri) { 61 } else { 1 }) {
            let mut flipped = bytes.clone();
            flipped[at / 8] ^= 1 << (at % 8);
            assert!(Manifest::decode(Path::new("m"), &flipped).is_err(), "bit {at}");
        }
        for len in (0..bytes.len()).step_by(if cfg!(miri) { 17 } else { 1 }) {
            assert!(Manifest::decode(Path::new("m"), &bytes[..len]).is_err(), "cut to {len}");
        }
    }

    #[test]
    fn a_feature_is_refused_by_name_and_a_flipped_bit_is_none() {
        let mut bytes = sample().encode();
        bytes[40] ^= 4;
        assert!(matches!(Manifest::decode(Path::new("m"), &bytes), Err(Error::Corrupt { .. })));
        let crc = crc32fast::hash(&bytes[16..]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        assert!(matches!(Manifest::decode(Path::new("m"), &bytes), Err(Error::Unsupported { .. })));
    }

    #[test]
    fn what_no_store_can_have_is_refused_though_its_checksum_holds() {
        let tree = |change: fn(&mut TreeEntry)| move |manifest: &mut Manifest| change(&mut manifest.spaces[0].trees[0]);
        let changes: [(&str, Box<dyn Fn(&mut Manifest)>); 9] = [
            ("an epoch at the end", Box::new(|manifest| manifest.epoch = u64::MAX)),
            ("a session at the end", Box::new(|manifest| manifest.session = u64::MAX)),
            ("a journal that begins nowhere", Box::new(|manifest| manifest.journal.offset = u64::MAX - 100)),
            ("no tree can follow", Box::new(|manifest| manifest.next_tree = u32::MAX)),
            ("a position at the end", Box::new(|manifest| manifest.spaces[0].replayed_to = Position(u64::MAX))),
            ("a space out of its directory", Box::new(|manifest| manifest.spaces[0].name = "../other/x".into())),
            ("a tree out of its directory", Box::new(tree(|tree| tree.spec.name = "/etc/x".into()))),
            ("pages of no bytes", Box::new(tree(|tree| tree.spec.page_bytes = 0))),
            ("pages of odd bytes", Box::new(tree(|tree| tree.spec.page_bytes = 5000))),
        ];
        for (what, change) in changes {
            let mut manifest = sample();
            change(&mut manifest);
            let error = Manifest::decode(Path::new("MANIFEST.0"), &manifest.encode()).expect_err(what);
            assert!(error.to_string().starts_with("MANIFEST.0 is damaged: "), "{what}: {error}");
        }
    }

    #[test]
    fn another_version_is_refused_by_name() {
        let mut bytes = sample().encode();
        bytes[8] = 2;
        let error = Manifest::decode(Path::new("MANIFEST.0"), &bytes).unwrap_err();
        assert_eq!(
            error.to_string(),
            "MANIFEST.0 has manifest format 2 with features 0x0/0x0, but this build supports format 1 without features"
        );
    }
}
