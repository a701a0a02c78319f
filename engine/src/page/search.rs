//! Finding a key among sorted ones by where it should be.
//!
//! Tree keys are mostly revisions, which lie evenly: a guess by interpolation is right or off by a few, and then
//! steps that double close in on the key. So a lookup touches one or two entries of a page instead of four to
//! eight, each of which would be a cache miss. Uneven keys cost at most twice a binary search.

use std::cmp::Ordering;
use std::ops::Range;

/// The first eight bytes of a key as a number. Ordered as keys are, but equal for keys that begin alike.
#[inline]
pub fn ordinal(key: &[u8]) -> u64 {
    match key.first_chunk::<8>() {
        Some(first) => u64::from_be_bytes(*first),
        None => key.iter().enumerate().fold(0, |number, (at, byte)| number | u64::from(*byte) << (56 - 8 * at)),
    }
}

/// Where among `len` entries, whose ordinals lie in `bounds`, that of `wanted` should be; below `len`, which is not 0.
#[inline]
pub fn guess(len: usize, wanted: u64, bounds: &Range<u64>) -> usize {
    if wanted <= bounds.start || bounds.end <= bounds.start {
        return 0;
    }
    let (above, all) = (wanted - bounds.start, bounds.end - bounds.start);
    #[expect(clippy::cast_precision_loss, reason = "a guess")]
    let place = above as f64 / all as f64 * len as f64;
    (place as usize).min(len - 1)
}

/// The first twelve bytes of a key, ordered as keys are, but equal for keys that begin alike.
#[inline]
pub fn long_ordinal(key: &[u8]) -> (u64, u32) {
    let next = key.get(8..).unwrap_or(&[]);
    let next = next.first_chunk::<4>().map_or_else(|| (ordinal(next) >> 32) as u32, |next| u32::from_be_bytes(*next));
    (ordinal(key), next)
}

/// The last of `len` ascending ordinals that is not above `wanted`, or the first; looked for from place `first` on.
#[inline]
pub fn last_not_above<O: PartialOrd>(len: usize, first: usize, wanted: O, ordinal_at: impl Fn(usize) -> O) -> usize {
    // It is not before `low`, nor at `high` or behind.
    let (mut low, mut high) = (0, len);
    let (mut at, mut step) = (first, 1);
    while low + 1 < high {
        at = if (low + 1..high).contains(&at) { at } else { usize::midpoint(low + 1, high) };
        if ordinal_at(at) <= wanted {
            low = at;
            at = low.saturating_add(step);
        } else {
            high = at;
            at = high.wrapping_sub(step);
        }
        step *= 2;
    }
    low
}

/// The place of `key` among `len` ascending keys, or where it would be; looked for from place `first` on.
#[inline]
pub fn find<'a>(len: usize, first: usize, key: &[u8], key_at: impl Fn(usize) -> &'a [u8]) -> Result<usize, usize> {
    // It is not before `low`, nor at `high` or behind.
    let (mut low, mut high) = (0, len);
    let (mut at, mut step) = (first, 1);
    let wanted = ordinal(key);
    while low < high {
        // Steps double until one goes too far; what is left is halved.
        at = if (low..high).contains(&at) { at } else { usize::midpoint(low, high) };
        let found = key_at(at);
        match ordinal(found).cmp(&wanted).then_with(|| found.cmp(key)) {
            Ordering::Equal => return Ok(at),
            Ordering::Less => {
                low = at + 1;
                at = low.saturating_add(step - 1);
            }
            Ordering::Greater => {
                high = at;
                at = high.wrapping_sub(step);
            }
        }
        step *= 2;
    }
    Err(low)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ordinals_are_ordered_as_keys_are(a in prop::collection::vec(any::<u8>(), 0..12), b in prop::collection::vec(any::<u8>(), 0..12)) {
            if a <= b {
                prop_assert!(ordinal(&a) <= ordinal(&b));
            }
        }

        #[test]
        fn a_key_is_found_wherever_it_is_looked_for_first(
            keys in prop::collection::btree_set(prop::collection::vec(0u8..4, 0..5), 1..40),
            probe in prop::collection::vec(0u8..4, 0..5),
            low in any::<u64>(),
            high in any::<u64>(),
        ) {
            let keys: Vec<Vec<u8>> = keys.into_iter().collect();
            let wanted = keys.binary_search(&probe);
            for first in (0..keys.len()).chain([guess(keys.len(), ordinal(&probe), &(low..high))]) {
                prop_assert_eq!(find(keys.len(), first, &probe, |at| &keys[at]), wanted);
            }
        }
    }

    proptest! {
        #[test]
        fn the_last_that_is_not_above_is_found_from_wherever(
            ordinals in prop::collection::vec(0u64..30, 1..40),
            wanted in 0u64..30,
        ) {
            let mut ordinals = ordinals;
            ordinals.sort_unstable();
            let last = ordinals.partition_point(|ordinal| *ordinal <= wanted).saturating_sub(1);
            for first in 0..=ordinals.len() {
                prop_assert_eq!(last_not_above(ordinals.len(), first, wanted, |at| ordinals[at]), last);
            }
        }
    }

    #[test]
    fn even_keys_take_one_look() {
        let keys: Vec<[u8; 12]> = (0..100u64)
            .map(|n| {
                let mut key = [0; 12];
                key[..8].copy_from_slice(&(1000 + 7 * n).to_be_bytes());
                key
            })
            .collect();
        for (place, key) in keys.iter().enumerate() {
            let looks = std::cell::Cell::new(0);
            let first = guess(keys.len(), ordinal(key), &(1000..1000 + 700));
            let found = find(keys.len(), first, key, |at| {
                looks.set(looks.get() + 1);
                &keys[at]
            });
            assert_eq!(found, Ok(place));
            assert!(looks.get() <= 2, "{place}: {} looks", looks.get());
        }
    }
}
