//! Sets of keys: merged intervals, so that one look-up answers for a whole interval.

use bytes::Bytes;
use polybolt::{Span, SpanEnd};

/// Keys from the first to before the end. The order of the ends is that of the keys.
type Interval = (Bytes, End);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Before(Bytes),
    Open,
}

/// A set of keys. Its intervals ascend and neither overlap nor touch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Ranges(Vec<Interval>);

impl Ranges {
    /// The union; spans without any key add nothing.
    pub(super) fn new<'a>(spans: impl IntoIterator<Item = &'a Span>) -> Ranges {
        let interval = |span: &Span| {
            let end = match &span.end {
                SpanEnd::Single => End::Before([&span.key[..], b"\0"].concat().into()),
                SpanEnd::Before(end) => End::Before(end.clone()),
                SpanEnd::Open => End::Open,
            };
            (span.key.clone(), end)
        };
        let mut parts: Vec<Interval> = spans.into_iter().map(interval).filter(|(key, end)| reaches(end, key)).collect();
        parts.sort();
        let mut merged: Vec<Interval> = Vec::with_capacity(parts.len());
        for (start, end) in parts {
            match merged.last_mut() {
                Some((_, last)) if *last >= End::Before(start.clone()) => {
                    if end > *last {
                        *last = end;
                    }
                }
                _ => merged.push((start, end)),
            }
        }
        Ranges(merged)
    }

    /// True if every key of `span` is in the set. A span without any key, whose end is not after its start,
    /// counts as its start; etcd answers by the shape of its tree.
    pub(super) fn covers(&self, span: &Span) -> bool {
        let after = self.0.partition_point(|(start, _)| *start <= span.key);
        let Some((_, end)) = after.checked_sub(1).map(|at| &self.0[at]) else {
            return false;
        };
        reaches(end, &span.key)
            && match &span.end {
                SpanEnd::Single => true,
                SpanEnd::Before(wanted) => reaches(end, wanted) || matches!(end, End::Before(end) if end == wanted),
                SpanEnd::Open => *end == End::Open,
            }
    }
}

/// True if the interval that ends so goes on at `key`.
fn reaches(end: &End, key: &[u8]) -> bool {
    match end {
        End::Before(end) => &end[..] > key,
        End::Open => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// Keys of two letters, few enough to list all that matter between them.
    fn key() -> impl Strategy<Value = Bytes> {
        vec(0..3u8, 1..3).prop_map(Bytes::from)
    }

    fn span() -> impl Strategy<Value = Span> {
        let end = prop_oneof![
            2 => Just(SpanEnd::Single),
            6 => key().prop_map(SpanEnd::Before),
            1 => Just(SpanEnd::Open)
        ];
        (key(), end).prop_map(|(key, end)| Span { key, end })
    }

    /// Every key that any interval of such keys can begin or end at, those right after them, and one beyond.
    fn all_keys() -> Vec<Vec<u8>> {
        let mut keys = vec![vec![]];
        for length in 0..3 {
            let longer: Vec<Vec<u8>> = keys
                .iter()
                .filter(|key| key.len() == length)
                .flat_map(|key| (0..4u8).map(move |letter| [&key[..], &[letter]].concat()))
                .collect();
            keys.extend(longer);
        }
        keys.retain(|key| !key.is_empty());
        keys
    }

    proptest! {
        #[test]
        fn a_set_covers_what_its_spans_cover_together(spans in vec(span(), 0..6), asked in span()) {
            let ranges = Ranges::new(&spans);
            let within = |key: &[u8]| spans.iter().any(|span| span.contains(key));
            let mut wanted: Vec<Vec<u8>> = all_keys().into_iter().filter(|key| asked.contains(key)).collect();
            if matches!(&asked.end, SpanEnd::Before(end) if *end <= asked.key) {
                wanted = vec![asked.key.to_vec()];
            }
            // Whoever may have all keys from one on may have the largest there is.
            if asked.end == SpanEnd::Open {
                wanted.push(vec![0xff; 9]);
            }
            prop_assert_eq!(ranges.covers(&asked), wanted.iter().all(|key| within(key)));
            for pair in ranges.0.windows(2) {
                prop_assert!(pair[0].1 < End::Before(pair[1].0.clone()), "{:?}", ranges);
            }
        }
    }

    #[test]
    fn an_interval_may_be_granted_in_parts() {
        let ranges = Ranges::new(&[Span::range("b", "d"), Span::range("a", "b"), Span::key("d"), Span::from_key("x")]);
        assert_eq!(ranges.0.len(), 2);
        assert!(ranges.covers(&Span::range("a", "d\0")) && !ranges.covers(&Span::range("a", "e")));
        assert!(ranges.covers(&Span::from_key("y")) && !ranges.covers(&Span::from_key("a")));
        assert!(!ranges.covers(&Span::key("")) && !ranges.covers(&Span::from_key("")));
        assert!(!Ranges::default().covers(&Span::key("a")));
    }
}
