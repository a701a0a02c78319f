//! A page with any content under a header that holds: it is refused, or every access stays inside, and what is read
//! of it makes a page that reads the same.
//!
//! Input: height, count, content.
#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use polybolt_engine::page::build::PageBuilder;
use polybolt_engine::page::layout::{self, HEADER_BYTES, Head, Kind, Stamp};
use polybolt_engine::page::{self, Branch, Leaf, branch, leaf};
use polybolt_engine::{PagePtr, TreeId};

const STAMP: Stamp = Stamp { engine: 7, file: TreeId(3) };
const AT: PagePtr = PagePtr { unit: 5, epoch: 9 };
const PAGE: usize = 4096;

fn rebuilt(kind: Kind, height: u8, entries: impl Iterator<Item = Vec<u8>>) -> Vec<u8> {
    let mut builder = PageBuilder::new(PAGE);
    for entry in entries {
        assert!(builder.fits(entry.len()));
        builder.push(&entry);
    }
    let (mut bytes, count) = builder.take();
    layout::seal(&mut bytes, STAMP, AT, Head { kind, height, count });
    page::check(&bytes, STAMP, AT, height).expect("what was read can be written");
    bytes
}

fuzz_target!(|input: &[u8]| -> Corpus {
    let [height, count, content @ ..] = input else { return Corpus::Reject };
    if content.len() > PAGE - HEADER_BYTES {
        return Corpus::Reject;
    }
    let mut bytes = vec![0; HEADER_BYTES];
    bytes.extend_from_slice(content);
    bytes.resize(PAGE, 0);
    let kind = if *height == 0 { Kind::Leaf } else { Kind::Branch };
    layout::seal(&mut bytes, STAMP, AT, Head { kind, height: *height, count: (*count).into() });
    if page::check(&bytes, STAMP, AT, *height).is_err() {
        return Corpus::Keep;
    }
    if *height == 0 {
        let read = Leaf::new(&bytes);
        let entries = (0..read.len()).map(|at| {
            let mut entry = Vec::new();
            leaf::encode(&mut entry, read.entry(at));
            assert_eq!(entry, read.raw(at));
            assert_eq!(read.find(read.key(at)), Ok(at));
            entry
        });
        let again = rebuilt(kind, 0, entries);
        let again = Leaf::new(&again);
        assert_eq!(again.len(), read.len());
        assert!((0..read.len()).all(|at| again.entry(at) == read.entry(at)));
    } else {
        let read = Branch::new(&bytes);
        let children = (0..read.len()).map(|at| {
            let mut child = Vec::new();
            branch::encode(&mut child, read.key(at), read.child(at));
            assert_eq!(read.find(read.key(at)), at);
            child
        });
        let again = rebuilt(kind, *height, children);
        let again = Branch::new(&again);
        assert_eq!(again.len(), read.len());
        assert!((0..read.len()).all(|at| again.key(at) == read.key(at) && again.child(at) == read.child(at)));
    }
    Corpus::Keep
});
