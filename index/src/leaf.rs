//! A leaf: some keys in order and their newest states, in one block of bytes.
//!
//! ```text
//! keys u16, flags u16, prefix length u32
//! prefix     what all keys begin with
//! heads      u64 each   the 8 bytes after the prefix, big-endian, zeros if there are fewer
//! revisions  u64 each   packed
//! offsets    u32 each   where the key's tail begins
//! lives      16 each    packed; only if a key has more to say than its revision
//! tails      the number of bytes after the prefix as a varint, then those after the head
//! ```
//!
//! A search counts heads that are lower, without a branch for each; few keys share a head. Blocks are
//! nearly as large as what they hold, so that half-empty leaves cost little.

use crate::packed::{Newest, WIDE, pack, pack_life, unpack, unpack_life};
use std::cmp::Ordering;
use std::ops::{ControlFlow, Range};

const HEADER: usize = 8;
/// Bytes of a key that are compared as one number.
pub(crate) const HEAD: usize = 8;
const LIVES: u16 = 1;

/// A leaf.
#[derive(Debug, Default)]
pub(crate) struct Leaf {
    bytes: Vec<u8>,
}

/// Where the parts of a block begin.
#[derive(Debug, Clone, Copy)]
struct Parts {
    keys: usize,
    prefix: usize,
    lives: bool,
}

impl Parts {
    fn heads(self) -> usize {
        HEADER + self.prefix
    }

    fn revisions(self) -> usize {
        self.heads() + 8 * self.keys
    }

    fn offsets(self) -> usize {
        self.revisions() + 8 * self.keys
    }

    fn lives(self) -> usize {
        self.offsets() + 4 * self.keys
    }

    fn tails(self) -> usize {
        self.lives() + if self.lives { 16 * self.keys } else { 0 }
    }
}

/// What a leaf says of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Its newest state.
    Here(Newest),
    /// It is in the map of what does not fit.
    Wide,
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes")) as usize
}

/// The first 8 bytes, big-endian, so that they compare as the bytes do.
pub(crate) fn head_of(suffix: &[u8]) -> u64 {
    if let Some(head) = suffix.first_chunk::<HEAD>() {
        return u64::from_be_bytes(*head);
    }
    let mut head = [0; HEAD];
    head[..suffix.len()].copy_from_slice(suffix);
    u64::from_be_bytes(head)
}

/// How many bytes both begin with.
pub(crate) fn common(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

fn push_varint(out: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn varint_len(number: usize) -> usize {
    (number.max(1).ilog2() / 7 + 1) as usize
}

fn varint(bytes: &[u8]) -> (usize, &[u8]) {
    let (mut number, mut shift) = (0, 0);
    let mut rest = bytes;
    loop {
        let (byte, after) = rest.split_first().expect("a varint ends");
        number |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        rest = after;
        if byte & 0x80 == 0 {
            return (number, rest);
        }
    }
}

impl Leaf {
    fn parts(&self) -> Parts {
        if self.bytes.is_empty() {
            return Parts { keys: 0, prefix: 0, lives: false };
        }
        let keys = usize::from(u16::from_le_bytes([self.bytes[0], self.bytes[1]]));
        Parts { keys, prefix: u32_at(&self.bytes, 4), lives: self.bytes[2] & LIVES as u8 != 0 }
    }

    /// Keys in it.
    pub(crate) fn len(&self) -> usize {
        self.parts().keys
    }

    /// Bytes it takes from the heap.
    pub(crate) fn heap_bytes(&self) -> usize {
        self.bytes.capacity()
    }

    fn prefix(&self, parts: Parts) -> &[u8] {
        &self.bytes[HEADER.min(self.bytes.len())..][..parts.prefix]
    }

    /// The suffix length and the bytes after the head.
    fn tail(&self, parts: Parts, at: usize) -> (usize, &[u8]) {
        let offset = u32_at(&self.bytes, parts.offsets() + 4 * at);
        let (len, rest) = varint(&self.bytes[parts.tails() + offset..]);
        (len, &rest[..len.saturating_sub(HEAD)])
    }

    fn heads(&self, parts: Parts) -> &[[u8; 8]] {
        self.bytes[parts.heads().min(self.bytes.len())..][..8 * parts.keys].as_chunks().0
    }

    /// Where the key is, or where it belongs.
    pub(crate) fn search(&self, key: &[u8]) -> Result<usize, usize> {
        self.search_from(0, key)
    }

    /// The same, if no key before the `first`th is as high.
    pub(crate) fn search_from(&self, first: usize, key: &[u8]) -> Result<usize, usize> {
        let parts = self.parts();
        let prefix = self.prefix(parts);
        let Some(suffix) = key.strip_prefix(prefix) else {
            return Err(if key < prefix { 0 } else { parts.keys });
        };
        let head = head_of(suffix);
        let heads = self.heads(parts);
        let lower = heads[first..].iter().map(|other| usize::from(u64::from_le_bytes(*other) < head));
        let at = first + lower.sum::<usize>();
        let same = heads[at..].iter().take_while(|other| u64::from_le_bytes(**other) == head).count();
        // Equal heads: who ends within the head is a prefix of the other.
        let order = |at: usize| {
            let (len, tail) = self.tail(parts, at);
            match suffix.get(HEAD..) {
                Some(wanted) if len > HEAD => tail.cmp(wanted),
                _ => len.cmp(&suffix.len()),
            }
        };
        let (mut low, mut high) = (at, at + same);
        while low < high {
            let middle = usize::midpoint(low, high);
            match order(middle) {
                Ordering::Less => low = middle + 1,
                Ordering::Equal => return Ok(middle),
                Ordering::Greater => high = middle,
            }
        }
        Err(low)
    }

    /// The place of the first key that is not below `key`.
    pub(crate) fn rank(&self, key: &[u8]) -> usize {
        self.search(key).unwrap_or_else(|at| at)
    }

    /// Writes the `at`th key into `out`.
    pub(crate) fn key(&self, at: usize, out: &mut Vec<u8>) {
        let parts = self.parts();
        out.clear();
        out.extend_from_slice(self.prefix(parts));
        self.suffix(parts, at, out);
    }

    fn suffix(&self, parts: Parts, at: usize, out: &mut Vec<u8>) {
        let (len, tail) = self.tail(parts, at);
        let head = u64::from_le_bytes(self.heads(parts)[at]).to_be_bytes();
        out.extend_from_slice(&head[..len.min(HEAD)]);
        out.extend_from_slice(tail);
    }

    /// Shows the keys at `places`, each with what comes with its place, until `visit` breaks.
    pub(crate) fn keys<T, B>(
        &self,
        places: impl Iterator<Item = (usize, T)>,
        buffer: &mut Vec<u8>,
        mut visit: impl FnMut(&[u8], T) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        let parts = self.parts();
        buffer.clear();
        buffer.extend_from_slice(self.prefix(parts));
        for (at, with) in places {
            buffer.truncate(parts.prefix);
            self.suffix(parts, at, buffer);
            visit(buffer, with)?;
        }
        ControlFlow::Continue(())
    }

    /// The packed revisions of the keys at `places`.
    pub(crate) fn all_packed(&self, places: Range<usize>) -> impl Iterator<Item = u64> + '_ {
        let first = self.parts().revisions().min(self.bytes.len());
        let bytes = &self.bytes[first + 8 * places.start..first + 8 * places.end];
        bytes.as_chunks::<8>().0.iter().map(|packed| u64::from_le_bytes(*packed))
    }

    /// The newest state of the `at`th key.
    pub(crate) fn state(&self, at: usize) -> State {
        let parts = self.parts();
        let packed = u64_at(&self.bytes, parts.revisions() + 8 * at);
        if packed == WIDE {
            return State::Wide;
        }
        let (revision, live) = unpack(packed);
        if !parts.lives {
            return State::Here(Newest::first(revision));
        }
        let life = parts.lives() + 16 * at;
        let newest = unpack_life(revision, [u64_at(&self.bytes, life), u64_at(&self.bytes, life + 8)]);
        debug_assert_eq!(newest.is_live(), live);
        State::Here(newest)
    }

    /// Sets the state of the `at`th key; false if it has to be `Wide`, which it is then.
    pub(crate) fn set(&mut self, at: usize, newest: &Newest) -> bool {
        let packed = Packed::of(newest);
        if packed.life.is_some() && !self.parts().lives {
            self.build(&self.entries(), true);
        }
        let parts = self.parts();
        self.bytes[parts.revisions() + 8 * at..][..8].copy_from_slice(&packed.revision.to_le_bytes());
        if parts.lives {
            self.bytes[parts.lives() + 16 * at..][..16].copy_from_slice(&packed.life_bytes(newest));
        }
        packed.revision != WIDE
    }

    /// Adds a key at the place where it belongs; false if its state has to be `Wide`, which it is then.
    pub(crate) fn insert(&mut self, at: usize, key: &[u8], newest: &Newest) -> bool {
        let packed = Packed::of(newest);
        let parts = self.parts();
        if parts.keys == 0 || !key.starts_with(self.prefix(parts)) || packed.life.is_some() && !parts.lives {
            let lives = parts.lives || packed.life.is_some();
            let mut entries = self.entries();
            entries.insert(at, key, packed, *newest);
            self.build(&entries, lives);
            return packed.revision != WIDE;
        }
        let suffix = &key[parts.prefix..];
        let offset = self.bytes.len() - parts.tails();
        let mut tail = Vec::with_capacity(suffix.len() + 2);
        push_varint(&mut tail, suffix.len());
        tail.extend_from_slice(suffix.get(HEAD..).unwrap_or(&[]));
        let life_bytes = packed.life_bytes(newest);
        // The parts, last first, make room for one more in each of those before them.
        let mut inserts: [(usize, &[u8]); 4] = [
            if parts.lives { (parts.lives() + 16 * at, &life_bytes) } else { (parts.tails(), &[]) },
            (parts.offsets() + 4 * at, &u32::try_from(offset).expect("a leaf is split long before").to_le_bytes()),
            (parts.revisions() + 8 * at, &packed.revision.to_le_bytes()),
            (parts.heads() + 8 * at, &head_of(suffix).to_le_bytes()),
        ];
        inserts.reverse();
        let gap: usize = inserts.iter().map(|(_, bytes)| bytes.len()).sum();
        let mut end = self.bytes.len();
        self.grow(gap + tail.len());
        self.bytes.resize(end + gap, 0);
        let mut to = end + gap;
        for (place, bytes) in inserts.iter().rev() {
            let moved = end - place;
            to -= moved;
            self.bytes.copy_within(*place..end, to);
            to -= bytes.len();
            self.bytes[to..to + bytes.len()].copy_from_slice(bytes);
            end = *place;
        }
        self.bytes.extend_from_slice(&tail);
        self.bytes[..2].copy_from_slice(&(parts.keys as u16 + 1).to_le_bytes());
        packed.revision != WIDE
    }

    /// Makes room for `more` bytes: an eighth more than that at most, so that little is wasted.
    fn grow(&mut self, more: usize) {
        let needed = self.bytes.len() + more;
        if needed > self.bytes.capacity() {
            self.bytes.reserve_exact(more.max(needed / 8));
        }
    }

    /// Takes the `at`th key out.
    pub(crate) fn remove(&mut self, at: usize) {
        let mut entries = self.entries();
        entries.list.remove(at);
        self.build(&entries, false);
    }

    /// Where to split it: in the middle, or not far from it where neighbours have the least in common, so that
    /// what stays together begins alike. Requires: two keys or more.
    pub(crate) fn middle(&self) -> usize {
        let entries = self.entries();
        let keys: Vec<&[u8]> = entries.list.iter().map(|entry| entries.key(entry)).collect();
        let middle = keys.len().div_ceil(2);
        let about = keys.len().div_ceil(4)..=(keys.len() * 3 / 4).max(middle);
        let alike = |at: &usize| (common(keys[at - 1], keys[*at]), at.abs_diff(middle));
        about.min_by_key(alike).unwrap_or(middle)
    }

    /// Moves the keys from `at` on to a leaf of their own.
    pub(crate) fn split_off(&mut self, at: usize) -> Leaf {
        let mut entries = self.entries();
        let list = entries.list.split_off(at);
        self.build(&entries, false);
        entries.list = list;
        let mut right = Leaf::default();
        right.build(&entries, false);
        right
    }

    /// Takes all keys of the leaf behind it.
    pub(crate) fn append(&mut self, right: &Leaf) {
        let mut entries = self.entries();
        let more = right.entries();
        for entry in &more.list {
            entries.insert(entries.list.len(), more.key(entry), entry.packed, entry.newest);
        }
        self.build(&entries, false);
    }

    /// Takes in changes of different keys, ascending; returns what no longer fits, in leaves of their own behind it.
    /// No leaf has more than `keys_max` keys, nor, unless it is of one key, many more bytes than `bytes_max`.
    pub(crate) fn merge(&mut self, changes: &[Change<'_>], keys_max: usize, bytes_max: usize) -> Vec<Leaf> {
        let (Some(first), Some(last)) = (changes.first(), changes.last()) else { return Vec::new() };
        let parts = self.parts();
        let fresh = changes.iter().filter(|change| change.place.is_err());
        let (keys, bytes) = fresh.fold((0, 0), |(keys, bytes), change| (keys + 1, bytes + change.key.len() + 48));
        let lives = parts.lives || changes.iter().all(|change| Packed::of(&change.newest).life.is_none());
        let prefix = self.prefix(parts);
        let alike = first.key.starts_with(prefix) && last.key.starts_with(prefix);
        if parts.keys > 0 && alike && lives && parts.keys + keys <= keys_max && self.bytes.len() + bytes <= bytes_max {
            self.weave(changes, keys);
            return Vec::new();
        }
        let mut entries = self.entries();
        let old = std::mem::take(&mut entries.list);
        let mut all = Vec::with_capacity(old.len() + keys);
        let mut old = old.into_iter();
        let mut taken = 0;
        for change in changes {
            let (Ok(place) | Err(place)) = change.place;
            all.extend(old.by_ref().take(place - taken));
            taken = place;
            let packed = Packed::of(&change.newest);
            if change.place.is_ok() {
                all.extend(old.next().map(|entry| Entry { packed, newest: change.newest, ..entry }));
                taken += 1;
            } else {
                let from = entries.arena.len();
                entries.arena.extend_from_slice(change.key);
                all.push(Entry { key: from..entries.arena.len(), packed, newest: change.newest });
            }
        }
        all.extend(old);
        self.build_parts(entries, all, keys_max, bytes_max)
    }

    /// Writes entries into this leaf and, if they are too many or too large, as evenly into more behind it.
    fn build_parts(
        &mut self,
        mut entries: Entries,
        mut all: Vec<Entry>,
        keys_max: usize,
        bytes_max: usize,
    ) -> Vec<Leaf> {
        let parts = all.len().div_ceil(keys_max);
        let mut bytes = 0;
        let mut starts: Vec<usize> = Vec::with_capacity(parts);
        for (at, entry) in all.iter().enumerate() {
            bytes += entry.key.len() + 40;
            let even = (starts.len() + 1) * all.len() / parts.max(1);
            let first = starts.last().copied().unwrap_or(0);
            if at > 0 && (at == even && even < all.len() || at - first == keys_max || bytes > bytes_max) {
                starts.push(at);
                bytes = entry.key.len() + 40;
            }
        }
        let mut behind: Vec<Leaf> = Vec::with_capacity(starts.len());
        for start in starts.into_iter().rev() {
            entries.list = all.split_off(start);
            let mut leaf = Leaf::default();
            leaf.build(&entries, false);
            behind.push(leaf);
        }
        entries.list = all;
        self.build(&entries, false);
        behind.reverse();
        behind
    }

    /// Writes the block anew with changes among what it has. Each part but the tails keeps its order, so it is
    /// copied in runs; new tails come last.
    fn weave(&mut self, changes: &[Change<'_>], fresh: usize) {
        let parts = self.parts();
        if fresh == 0 {
            for change in changes {
                let (Ok(place) | Err(place)) = change.place;
                self.set(place, &change.newest);
            }
            return;
        }
        let (old, tails) = (&self.bytes, parts.tails());
        let after = Parts { keys: parts.keys + fresh, ..parts };
        let suffix = |change: &Change<'_>| change.key.len() - parts.prefix;
        let new_tails = changes.iter().filter(|change| change.place.is_err());
        let new_tails: usize = new_tails.map(|change| suffix(change).saturating_sub(HEAD) + 2).sum();
        let mut bytes = Vec::with_capacity(after.tails() + old.len() - tails + new_tails);
        bytes.extend_from_slice(&u16::try_from(after.keys).expect("a leaf has few keys").to_le_bytes());
        bytes.extend_from_slice(&old[2..parts.heads()]);
        weave(&old[parts.heads()..parts.revisions()], changes, &mut bytes, |change, here| {
            here.unwrap_or_else(|| head_of(&change.key[parts.prefix..]).to_le_bytes())
        });
        weave(&old[parts.revisions()..parts.offsets()], changes, &mut bytes, |change, _| {
            Packed::of(&change.newest).revision.to_le_bytes()
        });
        let mut end = old.len() - tails;
        weave(&old[parts.offsets()..parts.lives()], changes, &mut bytes, |change, here| {
            here.unwrap_or_else(|| {
                let offset = u32::try_from(end).expect("a leaf is split long before").to_le_bytes();
                end += varint_len(suffix(change)) + suffix(change).saturating_sub(HEAD);
                offset
            })
        });
        if parts.lives {
            weave(&old[parts.lives()..tails], changes, &mut bytes, |change, _| {
                Packed::of(&change.newest).life_bytes(&change.newest)
            });
        }
        bytes.extend_from_slice(&old[tails..]);
        for change in changes.iter().filter(|change| change.place.is_err()) {
            push_varint(&mut bytes, suffix(change));
            bytes.extend_from_slice(change.key[parts.prefix..].get(HEAD..).unwrap_or(&[]));
        }
        bytes.shrink_to_fit();
        self.bytes = bytes;
    }

    fn entries(&self) -> Entries {
        let parts = self.parts();
        let mut entries = Entries::default();
        for at in 0..parts.keys {
            let from = entries.arena.len();
            entries.arena.extend_from_slice(self.prefix(parts));
            self.suffix(parts, at, &mut entries.arena);
            let (packed, newest) = match self.state(at) {
                State::Here(newest) => (Packed::of(&newest), newest),
                State::Wide => (Packed::WIDE, Newest::default()),
            };
            entries.list.push(Entry { key: from..entries.arena.len(), packed, newest });
        }
        entries
    }

    /// Writes the block anew; with lives if they are needed or asked for.
    fn build(&mut self, entries: &Entries, lives: bool) {
        let list = &entries.list;
        let (Some(first), Some(last)) = (list.first(), list.last()) else {
            self.bytes = Vec::new();
            return;
        };
        let first = entries.key(first);
        let prefix = common(first, entries.key(last));
        let lives = lives || list.iter().any(|entry| entry.packed.life.is_some());
        let parts = Parts { keys: list.len(), prefix, lives };
        let tail_bytes: usize = list.iter().map(|entry| (entry.key.len() - prefix).saturating_sub(HEAD) + 1).sum();
        let mut bytes = Vec::with_capacity(parts.tails() + tail_bytes);
        bytes.extend_from_slice(&u16::try_from(list.len()).expect("a leaf has few keys").to_le_bytes());
        bytes.extend_from_slice(&if lives { LIVES } else { 0 }.to_le_bytes());
        bytes.extend_from_slice(&u32::try_from(prefix).expect("keys are below 4 GiB").to_le_bytes());
        bytes.extend_from_slice(&first[..prefix]);
        list.iter().for_each(|entry| bytes.extend_from_slice(&head_of(&entries.key(entry)[prefix..]).to_le_bytes()));
        list.iter().for_each(|entry| bytes.extend_from_slice(&entry.packed.revision.to_le_bytes()));
        let mut tails = Vec::with_capacity(tail_bytes);
        for entry in list {
            let offset = u32::try_from(tails.len()).expect("a leaf is split long before");
            bytes.extend_from_slice(&offset.to_le_bytes());
            let suffix = &entries.key(entry)[prefix..];
            push_varint(&mut tails, suffix.len());
            tails.extend_from_slice(suffix.get(HEAD..).unwrap_or(&[]));
        }
        if lives {
            list.iter().for_each(|entry| bytes.extend_from_slice(&entry.packed.life_bytes(&entry.newest)));
        }
        bytes.extend_from_slice(&tails);
        self.bytes = bytes;
    }
}

/// What becomes of a key of a leaf.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Change<'a> {
    pub(crate) key: &'a [u8],
    /// Where it is, or where it belongs.
    pub(crate) place: Result<usize, usize>,
    pub(crate) newest: Newest,
}

impl Change<'_> {
    /// False if the leaf cannot hold its state.
    pub(crate) fn fits(&self) -> bool {
        Packed::of(&self.newest).revision != WIDE
    }
}

/// Copies an array of a leaf with what `new` says, given what was there, at the places of changes.
fn weave<const W: usize>(
    old: &[u8],
    changes: &[Change<'_>],
    out: &mut Vec<u8>,
    mut new: impl FnMut(&Change<'_>, Option<[u8; W]>) -> [u8; W],
) {
    let (old, mut from) = (old.as_chunks::<W>().0, 0);
    for change in changes {
        let (Ok(place) | Err(place)) = change.place;
        out.extend_from_slice(old[from..place].as_flattened());
        out.extend_from_slice(&new(change, change.place.ok().map(|at| old[at])));
        from = place + usize::from(change.place.is_ok());
    }
    out.extend_from_slice(old[from..].as_flattened());
}

/// A state as a leaf has it.
#[derive(Debug, Clone, Copy)]
struct Packed {
    revision: u64,
    /// None if the revision says it all.
    life: Option<[u64; 2]>,
}

impl Packed {
    const WIDE: Packed = Packed { revision: WIDE, life: None };

    fn of(newest: &Newest) -> Packed {
        match (pack(newest.at, newest.is_live()), pack_life(newest)) {
            (Some(revision), Some(life)) => Packed { revision, life: (!newest.is_plain()).then_some(life) },
            _ => Packed::WIDE,
        }
    }

    fn life_bytes(&self, newest: &Newest) -> [u8; 16] {
        let [first, second] = self.life.or_else(|| pack_life(newest)).unwrap_or([0; 2]);
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&first.to_le_bytes());
        bytes[8..].copy_from_slice(&second.to_le_bytes());
        bytes
    }
}

/// The keys of a leaf while it is written anew.
#[derive(Debug, Default)]
struct Entries {
    arena: Vec<u8>,
    list: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    key: Range<usize>,
    packed: Packed,
    newest: Newest,
}

impl Entries {
    fn key(&self, entry: &Entry) -> &[u8] {
        &self.arena[entry.key.clone()]
    }

    fn insert(&mut self, at: usize, key: &[u8], packed: Packed, newest: Newest) {
        let from = self.arena.len();
        self.arena.extend_from_slice(key);
        self.list.insert(at, Entry { key: from..self.arena.len(), packed, newest });
    }
}
