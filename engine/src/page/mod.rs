//! What bytes mean. Never does I/O.
//!
//! [`layout`] has the header of every page and extent; [`leaf`] and [`branch`] have the two kinds of
//! tree pages, [`search`] finds keys in both. A page is checked once, whole, when it comes from disk ([`check`]); after that no
//! access through its view can leave it.

pub mod layout;
pub mod search;
pub mod branch;
pub mod leaf;
pub mod build;

pub use branch::Branch;
pub use layout::{Head, Kind, Stamp};
pub use leaf::Leaf;

use crate::error::Damage;
use crate::ids::PagePtr;

/// Checks a tree page from disk: header and content.
pub fn check(page: &[u8], stamp: Stamp, at: PagePtr, height: u8) -> Result<(), Damage> {
    if height == 0 {
        let head = layout::check(page, stamp, at, Kind::Leaf, 0)?;
        leaf::check(page, head.count)
    } else {
        let head = layout::check(page, stamp, at, Kind::Branch, height)?;
        branch::check(page, head.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::TreeId;
    use crate::run::seeded::Rng;
    use leaf::{BodyAt, Entry, ExtentRef};

    const STAMP: Stamp = Stamp { engine: 0x1122_3344_5566_7788, file: TreeId(3) };
    const AT: PagePtr = PagePtr { unit: 5, epoch: 9 };

    fn sample_leaf() -> Vec<u8> {
        let mut builder = build::PageBuilder::new(4096);
        let mut entry = Vec::new();
        leaf::encode(&mut entry, Entry { key: b"a", head: b"H", body: BodyAt::Here(b"body") });
        builder.push(&entry);
        entry.clear();
        let extent = ExtentRef { ptr: PagePtr { unit: 8, epoch: 9 }, len: 70_000, crc: 1 };
        leaf::encode(&mut entry, Entry { key: b"b", head: b"", body: BodyAt::There(extent) });
        builder.push(&entry);
        let (mut page, count) = builder.take();
        layout::seal(&mut page, STAMP, AT, Head { kind: Kind::Leaf, height: 0, count });
        page
    }

    fn sample_branch() -> Vec<u8> {
        let mut builder = build::PageBuilder::new(4096);
        for (key, unit) in [(&b""[..], 1), (b"m", 2)] {
            let mut entry = Vec::new();
            branch::encode(&mut entry, key, PagePtr { unit, epoch: 7 });
            builder.push(&entry);
        }
        let (mut page, count) = builder.take();
        layout::seal(&mut page, STAMP, AT, Head { kind: Kind::Branch, height: 1, count });
        page
    }

    #[test]
    fn the_bytes_of_a_leaf_are_pinned() {
        let page = sample_leaf();
        assert_eq!(page[4..8], [2, 0, 0, 0]);
        assert_eq!(page[8..16], [3, 0, 0, 0, 5, 0, 0, 0]);
        assert_eq!(page[16..32], [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 9, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(page[32..40], [1, 0, 0, 0, 2, 0, 0, 0]);
        assert_eq!(page[64..68], [68, 0, 84, 0]);
        assert_eq!(page[68..84], *b"\0\0\x01\0\x01\0\x04\0\0\0aHbody");
        assert_eq!(page[84..111], *b"\x01\0\x01\0\0\0\x70\x11\x01\0b\x08\0\0\0\x09\0\0\0\0\0\0\0\x01\0\0\0");
        check(&page, STAMP, AT, 0).unwrap();
        let leaf = Leaf::new(&page);
        assert_eq!(leaf.find(b"b"), Ok(1));
        assert_eq!(leaf.find(b"aa"), Err(1));
        assert_eq!(leaf.entry(0).body, BodyAt::Here(b"body"));
    }

    #[test]
    fn the_bytes_of_a_branch_are_pinned() {
        let page = sample_branch();
        assert_eq!(page[4..6], [3, 1]);
        assert_eq!(page[64..68], [68, 0, 82, 0]);
        assert_eq!(page[82..97], *b"\x01\0\x02\0\0\0\x07\0\0\0\0\0\0\0m");
        check(&page, STAMP, AT, 1).unwrap();
        let branch = Branch::new(&page);
        assert_eq!((branch.find(b"a"), branch.find(b"m"), branch.find(b"z")), (0, 1, 1));
    }

    #[test]
    fn a_flipped_bit_a_wrong_place_and_a_stale_epoch_are_found() {
        let page = sample_leaf();
        for bit in (0..page.len() * 8).step_by(if cfg!(miri) { 997 } else { 1 }) {
            let mut flipped = page.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(check(&flipped, STAMP, AT, 0).is_err(), "bit {bit}");
        }
        assert!(check(&page, STAMP, PagePtr { unit: 6, ..AT }, 0).is_err());
        assert!(check(&page, STAMP, PagePtr { epoch: 10, ..AT }, 0).is_err());
        assert!(check(&page, Stamp { file: TreeId(4), ..STAMP }, AT, 0).is_err());
        assert!(check(&page, Stamp { engine: 1, ..STAMP }, AT, 0).is_err());
        assert!(check(&page, STAMP, AT, 1).is_err());
    }

    #[test]
    fn garbage_with_a_good_checksum_never_panics() {
        let mut rng = Rng::new(7);
        for round in 0..if cfg!(miri) { 30 } else { 20_000 } {
            let height = u8::from(round % 2 == 1);
            let mut page = if height == 0 { sample_leaf() } else { sample_branch() };
            for _ in 0..=rng.below(4) {
                let at = 64 + rng.below(60) as usize;
                page[at] = rng.next_u64() as u8;
            }
            let count = rng.below(5) as u32;
            let kind = if height == 0 { Kind::Leaf } else { Kind::Branch };
            layout::seal(&mut page, STAMP, AT, Head { kind, height, count });
            if check(&page, STAMP, AT, height).is_ok() {
                for at in 0..count as usize {
                    if height == 0 {
                        let leaf = Leaf::new(&page);
                        assert!(leaf.entry(at).key.len() <= 4096 && !leaf.raw(at).is_empty());
                    } else {
                        assert!(Branch::new(&page).key(at).len() <= 4096);
                    }
                }
            }
        }
    }
}
