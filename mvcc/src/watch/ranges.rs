//! Who watches which keys: the key space cut at every bound of a watched range, with the watchers of each
//! piece. Looking up a key costs O(log pieces) and those found; adding a range costs the pieces it covers.

use crate::request::{Span, SpanEnd};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Bound;

/// Watched ranges.
#[derive(Debug)]
pub(crate) struct Ranges {
    /// Watchers of `[key, next key)`; the first piece begins at the empty key.
    pieces: BTreeMap<Bytes, Vec<u64>>,
}

impl Default for Ranges {
    fn default() -> Self {
        Ranges { pieces: BTreeMap::from([(Bytes::new(), Vec::new())]) }
    }
}

/// Where a span begins and ends; None is no end.
fn bounds(span: &Span) -> (Bytes, Option<Bytes>) {
    let end = match &span.end {
        SpanEnd::Single => {
            let mut next = span.key.to_vec();
            next.push(0);
            Some(next.into())
        }
        SpanEnd::Before(end) => Some(end.clone()),
        SpanEnd::Open => None,
    };
    (span.key.clone(), end)
}

impl Ranges {
    /// The watchers of a key.
    pub(crate) fn at(&self, key: &[u8]) -> &[u64] {
        let piece = self.pieces.range::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back();
        piece.map_or(&[], |(_, watchers)| watchers)
    }

    pub(crate) fn add(&mut self, id: u64, span: &Span) {
        let (start, end) = bounds(span);
        if end.as_ref().is_some_and(|end| *end <= start) {
            return;
        }
        self.cut(&start);
        if let Some(end) = &end {
            self.cut(end);
        }
        self.each(&start, end.as_ref(), |watchers| watchers.push(id));
    }

    pub(crate) fn remove(&mut self, id: u64, span: &Span) {
        let (start, end) = bounds(span);
        if end.as_ref().is_some_and(|end| *end <= start) {
            return;
        }
        self.each(&start, end.as_ref(), |watchers| watchers.retain(|have| *have != id));
        // Pieces that nothing tells apart any more are one. Order in a piece is that of adding.
        let last = end.map_or(Bound::Unbounded, Bound::Included);
        let cuts: Vec<Bytes> = self.pieces.range((Bound::Included(start), last)).map(|(key, _)| key.clone()).collect();
        for key in cuts {
            let before = self.pieces.range::<Bytes, _>(..&key).next_back();
            if before.is_some_and(|(_, watchers)| *watchers == self.pieces[&key]) {
                self.pieces.remove(&key);
            }
        }
    }

    fn cut(&mut self, at: &Bytes) {
        if !self.pieces.contains_key(at) {
            let watchers = self.at(at).to_vec();
            self.pieces.insert(at.clone(), watchers);
        }
    }

    fn each(&mut self, start: &Bytes, end: Option<&Bytes>, mut change: impl FnMut(&mut Vec<u64>)) {
        let end = end.map_or(Bound::Unbounded, |end| Bound::Excluded(end.clone()));
        self.pieces.range_mut((Bound::Included(start.clone()), end)).for_each(|(_, watchers)| change(watchers));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn span() -> impl Strategy<Value = Span> {
        ("[ab]{0,3}", prop_oneof![Just(None), "[ab]{0,3}".prop_map(Some)], any::<bool>()).prop_map(
            |(key, end, single)| match end {
                Some(end) => Span::range(key, end),
                None if single => Span::key(key),
                None => Span::from_key(key),
            },
        )
    }

    proptest! {
        #[test]
        fn a_key_finds_whoever_watches_it(spans in prop::collection::vec(span(), 1..12), gone in prop::collection::vec(any::<bool>(), 12), probes in prop::collection::vec("[abc]{0,4}", 8)) {
            let mut ranges = Ranges::default();
            for (id, span) in spans.iter().enumerate() {
                ranges.add(id as u64, span);
            }
            let stays = |id: usize| !gone[id];
            for (id, span) in spans.iter().enumerate().filter(|(id, _)| !stays(*id)) {
                ranges.remove(id as u64, span);
            }
            for probe in &probes {
                let mut found = ranges.at(probe.as_bytes()).to_vec();
                found.sort_unstable();
                let wanted: Vec<u64> = (0..spans.len()).filter(|id| stays(*id) && spans[*id].contains(probe.as_bytes())).map(|id| id as u64).collect();
                prop_assert_eq!(found, wanted);
            }
            for (id, span) in spans.iter().enumerate().filter(|(id, _)| stays(*id)) {
                ranges.remove(id as u64, span);
            }
            prop_assert_eq!(ranges.pieces.len(), 1, "nothing is left behind");
        }
    }
}
