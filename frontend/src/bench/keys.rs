//! Which keys and values a load has: a function of numbers and a seed.

use super::error::Error;
use super::options::Options;
use bytes::Bytes;

/// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014): the same numbers on
/// every machine.
#[derive(Debug, Clone)]
pub(super) struct Numbers(u64);

impl Numbers {
    pub(super) fn new(seed: u64) -> Numbers {
        Numbers(seed)
    }

    /// Those of one of many clients, which differ from those of its neighbours.
    pub(super) fn of(seed: u64, client: u64) -> Numbers {
        Numbers(Numbers(seed).next().wrapping_add(Numbers(client).next()))
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One below `bound`, each as likely as every other.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        u64::try_from((u128::from(self.next()) * u128::from(bound)) >> 64).unwrap_or(0)
    }
}

/// A key space: `count` keys of `size` bytes, in order of their numbers. In groups, the keys of one have a
/// prefix of their own, as those of a Kubernetes namespace do.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    prefix: String,
    /// How many there are: a whole number of groups.
    pub(super) count: u64,
    /// How many are in a group; all if there are no groups.
    pub(super) group: u64,
    group_digits: usize,
    digits: usize,
}

/// Digits of all numbers below `count`.
fn digits(count: u64) -> usize {
    count.saturating_sub(1).max(1).ilog10() as usize + 1
}

impl Keys {
    pub(super) fn new(options: &Options) -> Result<Keys, Error> {
        let Options { key_space_size: count, key_size, prefix, .. } = options;
        if *count == 0 {
            return Err(Error::Options("--key-space-size is 0: a load needs at least one key".to_owned()));
        }
        let group = options.load.list_keys().unwrap_or(*count);
        if group == 0 || group > *count {
            return Err(Error::Options(format!(
                "--list-keys is {group}: it has to be 1 to --key-space-size, which is {count}"
            )));
        }
        let count = count - count % group;
        let group_digits = if group == count { 0 } else { digits(count / group) };
        let infix = if group_digits == 0 { 0 } else { group_digits + 1 };
        let least = prefix.len() + infix + digits(count);
        if *key_size < least {
            return Err(Error::Options(format!(
                "--key-size {key_size} has no room for --prefix {prefix} and the numbers of {count} keys: \
                 {least} bytes at least"
            )));
        }
        let digits = key_size - prefix.len() - infix;
        Ok(Keys { prefix: prefix.clone(), count, group, group_digits, digits })
    }

    pub(super) fn key(&self, n: u64) -> Bytes {
        let (prefix, digits) = (&self.prefix, self.digits);
        let key = match self.group_digits {
            0 => format!("{prefix}{n:0digits$}"),
            width => format!("{prefix}{:0width$}/{n:0digits$}", n / self.group),
        };
        key.into()
    }

    /// How many groups there are.
    pub(super) fn groups(&self) -> u64 {
        self.count / self.group
    }

    /// From where to where the keys of a group are.
    pub(super) fn group(&self, group: u64) -> (Bytes, Bytes) {
        match self.group_digits {
            0 => self.all(),
            // '0' follows '/'.
            width => {
                let prefix = format!("{}{group:0width$}", self.prefix);
                (format!("{prefix}/").into(), format!("{prefix}0").into())
            }
        }
    }

    /// From where to where all of them are, and none that the load creates.
    pub(super) fn all(&self) -> (Bytes, Bytes) {
        let mut end = self.key(self.count - 1).to_vec();
        end.push(0);
        (self.key(0), end.into())
    }

    /// From where to where they are, with those that the load creates.
    pub(super) fn watched(&self) -> (Bytes, Bytes) {
        let mut end = self.prefix.clone().into_bytes();
        while end.last() == Some(&u8::MAX) {
            end.pop();
        }
        match end.last_mut() {
            Some(last) => *last += 1,
            // No prefix: every key there is.
            None => end.push(0),
        }
        let start = if self.prefix.is_empty() { Bytes::from_static(&[0]) } else { self.prefix.clone().into() };
        (start, end.into())
    }

    /// A key behind all of them, different for every run, client and number.
    pub(super) fn created(&self, run: u64, client: u64, n: u64) -> Bytes {
        format!("{}~{run:016x}-{client:04}-{n:08}", self.prefix).into()
    }
}

/// Bytes of the pool that values are cut from.
const POOL_BYTES: usize = 1 << 20;
/// What a value begins with whose events are timed: the run, and when it was due.
pub(super) const STAMP_BYTES: usize = 16;
/// Set in the time of a stamp that counts.
const MEASURED: u64 = 1 << 63;

/// Values that do not compress.
#[derive(Debug, Clone)]
pub(super) struct Values {
    pool: Bytes,
    size: usize,
    /// What the stamps of this run begin with.
    run: u64,
}

impl Values {
    pub(super) fn new(seed: u64, size: usize, run: u64) -> Values {
        let mut numbers = Numbers::new(seed);
        let words = (POOL_BYTES + size).div_ceil(8);
        Values { pool: (0..words).flat_map(|_| numbers.next().to_le_bytes()).collect(), size, run }
    }

    /// A value that shares the pool.
    pub(super) fn any(&self, numbers: &mut Numbers) -> Bytes {
        let at = usize::try_from(numbers.below(POOL_BYTES as u64)).unwrap_or(0);
        self.pool.slice(at..at + self.size)
    }

    /// One that tells when its request was due, in nanoseconds of the run.
    pub(super) fn stamped(&self, numbers: &mut Numbers, due_nanos: u64, measured: bool) -> Bytes {
        let time = due_nanos & !MEASURED | if measured { MEASURED } else { 0 };
        let mut value = self.any(numbers).to_vec();
        if let Some((stamp, _)) = value.split_at_mut_checked(STAMP_BYTES) {
            let (run, at) = stamp.split_at_mut(8);
            run.copy_from_slice(&self.run.to_be_bytes());
            at.copy_from_slice(&time.to_be_bytes());
        }
        value.into()
    }

    /// When the request of a value was due and whether it counts; none if another run wrote it.
    pub(super) fn stamp(&self, value: &[u8]) -> Option<(u64, bool)> {
        let (run, rest) = value.split_first_chunk()?;
        let (time, _) = rest.split_first_chunk()?;
        let time = u64::from_be_bytes(*time);
        (u64::from_be_bytes(*run) == self.run).then_some((time & !MEASURED, time & MEASURED != 0))
    }
}

#[cfg(test)]
mod tests {
    use super::super::options::Load;
    use super::*;

    fn keys(load: Load, count: u64, key_size: usize) -> Result<Keys, Error> {
        let prefix = "/bench/".to_owned();
        Keys::new(&Options { load, key_space_size: count, key_size, prefix, ..Options::default() })
    }

    #[test]
    fn keys_have_their_size_and_are_in_order() {
        for load in [Load::Put, Load::List { list_keys: 30, limit: 0, serializable: false }] {
            let keys = keys(load, 1000, 20).unwrap();
            let all: Vec<_> = (0..keys.count).map(|n| keys.key(n)).collect();
            assert!(all.iter().all(|key| key.len() == 20), "{all:?}");
            assert!(all.is_sorted());
            let (start, end) = keys.all();
            assert!(all.first().unwrap() >= &start && all.last().unwrap() < &end);
            assert!(keys.created(1, 2, 3) >= end && keys.created(1, 2, 3) < keys.watched().1);
        }
    }

    #[test]
    fn a_group_is_a_prefix_and_groups_are_whole() {
        let keys = keys(Load::List { list_keys: 30, limit: 0, serializable: false }, 1000, 32).unwrap();
        assert_eq!((keys.count, keys.groups()), (990, 33));
        for group in 0..keys.groups() {
            let (start, end) = keys.group(group);
            let inside: Vec<_> =
                (0..keys.count).filter(|n| (start.clone()..end.clone()).contains(&keys.key(*n))).collect();
            assert_eq!(inside, (group * 30..group * 30 + 30).collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_has_no_room_is_refused_with_what_is_needed() {
        let error = keys(Load::Put, 10_000, 8).unwrap_err().to_string();
        assert_eq!(
            error,
            "--key-size 8 has no room for --prefix /bench/ and the numbers of 10000 keys: 11 bytes at least"
        );
        assert!(keys(Load::Put, 10_000, 11).is_ok());
        assert!(keys(Load::Put, 0, 32).is_err());
        assert!(keys(Load::List { list_keys: 2000, limit: 0, serializable: false }, 1000, 32).is_err());
    }

    #[test]
    fn a_stamp_is_read_by_its_own_run() {
        let (values, mut numbers) = (Values::new(7, 64, 9), Numbers::new(1));
        assert_eq!(values.stamp(&values.stamped(&mut numbers, 1234, true)), Some((1234, true)));
        assert_eq!(values.stamp(&values.stamped(&mut numbers, 1234, false)), Some((1234, false)));
        assert_eq!(Values::new(7, 64, 8).stamp(&values.stamped(&mut numbers, 1234, true)), None);
        assert_eq!(values.stamp(b"short"), None);
        assert_eq!(values.any(&mut numbers).len(), 64);
    }

    #[test]
    fn clients_draw_different_numbers_and_each_the_same_again() {
        let first = |client| Numbers::of(1, client).next();
        assert_eq!(first(3), first(3));
        assert_ne!(first(3), first(4));
        let mut numbers = Numbers::new(5);
        assert!((0..1000).all(|_| numbers.below(10) < 10));
    }
}
