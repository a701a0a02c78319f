//! Counts at older revisions, kept for who asks for a span page by page.
//!
//! Each page of a list answers how many keys there are from its first on. At the newest revision the index knows; at
//! an older one it looks at all that was born or died since, which for each page of a long list is most of it. But an
//! older revision does not change: what is left behind one page is what was left behind the one before less the keys
//! between, and these are few.

use crate::keys::Keys;
use crate::routes::Segment;
use bytes::Bytes;
use polybolt_engine::sync::Mutex;
use polybolt_index::KeyRange;
use std::collections::VecDeque;

/// Counts that are kept, newest first; each is of one list under way.
const KEPT: usize = 64;
/// Fewer keys than this are counted as fast as a count is found.
const MANY: u64 = 1000;
/// Keys that are looked at under one hold of an index lock.
const KEYS_PER_RUN: usize = 4096;

/// The counts that one keyspace keeps. At most `KEPT` keys, two each.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    kept: Mutex<VecDeque<Kept>>,
}

/// The live keys of a shard in `start..end` at a revision.
#[derive(Debug, Clone)]
struct Kept {
    shard: usize,
    at: u64,
    end: Option<Bytes>,
    start: Bytes,
    count: u64,
}

impl Kept {
    fn is_of(&self, segment: &Segment, at: u64) -> bool {
        (self.shard, self.at, &self.end) == (segment.shard, at, &segment.end) && self.start <= segment.start
    }
}

impl Counts {
    /// Live keys of a segment at `at`, which is visible, and which `keys`, its shard's, still know.
    pub(crate) fn count(&self, keys: &Keys, segment: &Segment, at: u64) -> u64 {
        if segment.end.as_ref().is_some_and(|end| *end <= segment.start) {
            return 0;
        }
        let nearest = {
            let kept = self.kept.lock();
            kept.iter().filter(|kept| kept.is_of(segment, at)).max_by(|a, b| a.start.cmp(&b.start)).cloned()
        };
        let end = segment.end.as_deref();
        let count = match &nearest {
            Some(nearest) => nearest.count - walked(keys, &nearest.start, Some(&segment.start), at),
            None => walked(keys, &segment.start, end, at),
        };
        if count < MANY {
            return count;
        }
        let mut kept = self.kept.lock();
        // The list that was there goes on from here.
        let before = nearest
            .and_then(|nearest| kept.iter().position(|kept| kept.is_of(segment, at) && kept.start == nearest.start));
        let (shard, end, start) = (segment.shard, segment.end.clone(), segment.start.clone());
        before.and_then(|before| kept.remove(before));
        kept.push_front(Kept { shard, at, end, start, count });
        kept.truncate(KEPT);
        count
    }
}

/// Counts in runs, so that the lock is never held for long.
fn walked(keys: &Keys, start: &[u8], end: Option<&[u8]>, at: u64) -> u64 {
    let (mut count, mut resume) = keys.read().count_some(KeyRange { start, end }, at, KEYS_PER_RUN);
    while let Some(start) = resume {
        let (more, next) = keys.read().count_some(KeyRange { start: &start, end }, at, KEYS_PER_RUN);
        (count, resume) = (count + more, next);
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use polybolt_index::{Index, Revision};

    fn key(n: u64) -> Bytes {
        format!("k{n:06}").into()
    }

    fn segment(start: u64, end: Option<u64>) -> Segment {
        Segment { shard: 0, start: key(start), end: end.map(key) }
    }

    #[test]
    fn pages_of_several_lists_count_what_is_left_as_it_was() {
        let mut index = Index::default();
        for n in 0..6000 {
            index.put(&key(n), Revision { main: 2 + n, sub: 0 });
        }
        for n in (0..6000).step_by(3) {
            index.tombstone(&key(n), Revision { main: 7000 + n, sub: 0 });
        }
        let (index, counts) = (Keys::new(index, 0, u64::MAX), Counts::default());
        let plain = |segment: &Segment, at| {
            let range = KeyRange { start: &segment.start, end: segment.end.as_deref() };
            index.read().count(range, at)
        };
        let mut asked = 0;
        for first in (0..6000_u64).step_by(500) {
            for (at, end) in [(6500, None), (9000, None), (6500, Some(5500)), (9000, Some(4000))] {
                // One goes ahead, one comes after, one goes back.
                for start in [first, first / 2, first.saturating_sub(700)] {
                    let segment = segment(start, end);
                    assert_eq!(counts.count(&index, &segment, at), plain(&segment, at), "{segment:?} at {at}");
                    asked += 1;
                }
            }
        }
        let kept = counts.kept.lock().len();
        assert!(asked > 2 * KEPT && kept > 4 && kept <= KEPT, "{kept} kept of {asked}");
    }
}
