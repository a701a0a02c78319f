//! Row 1: what the indexes of polybolt take in memory, all in, as the allocator counts it: the ordered one, that of hashes,
//! and which key is attached to which lease.

use crate::dataset;
use crate::figure::{Figure, Unit};
use polybolt::hash_index::HashIndex;
use polybolt::leased::LeasedKeys;
use polybolt_index::{Index, Revision, Swept};

/// The figure that its bar is of.
pub const LEASED: &str = "... and a lease on every fifth";
/// As Kubernetes has them at the most.
const KEYS_PER_LEASE: usize = 1000;

/// Bytes that are allocated now, what the allocator keeps for itself with each piece included.
fn allocated() -> u64 {
    #[expect(unsafe_code, reason = "there is no other way to ask the allocator")]
    // SAFETY: it only reads counters.
    let info = unsafe { libc::mallinfo2() };
    (info.uordblks + info.hblkhd) as u64
}

/// The index as it is filled, and the most that it took.
struct Filling {
    index: Index,
    hashed: HashIndex,
    main: u64,
    base: u64,
    peak: u64,
}

impl Filling {
    fn bytes(&self) -> u64 {
        allocated() - self.base
    }

    fn note(&mut self) {
        self.peak = self.peak.max(self.bytes());
    }

    /// Puts each key once, in scattered order. What it takes a key, and the most over that.
    fn put(&mut self, keys: &[String]) -> (f64, f64) {
        self.peak = 0;
        for at in dataset::scattered(keys.len()) {
            self.main += 1;
            let (key, now) = (keys[at].as_bytes(), Revision::new(self.main, 0));
            let (_, before) = self.index.replace(key, now);
            self.hashed.change(key, before, Some(now));
            if self.main.is_multiple_of(1 << 13) {
                self.note();
            }
        }
        self.note();
        (self.bytes() as f64 / keys.len() as f64, self.peak as f64 / self.bytes() as f64)
    }

    fn sweep(&mut self) {
        self.peak = 0;
        let mut removed = Vec::with_capacity(1000);
        while self.index.sweep(self.main, 1000, &mut removed) != Swept::Done {
            removed.clear();
            self.note();
        }
        self.note();
    }
}

/// All of row 1.
pub fn index(keys: usize) -> Vec<Figure> {
    let keys = dataset::keys(keys);
    let base = allocated();
    let hashed = HashIndex::new(1);
    hashed.begin(0, |_| ());
    let mut filling = Filling { index: Index::new(), hashed, main: 1, base, peak: 0 };
    let (first, peak_loading) = filling.put(&keys);
    let (second, _) = filling.put(&keys);
    let (third, _) = filling.put(&keys);
    let full = filling.bytes();
    filling.sweep();
    let swept = filling.bytes();
    let mut leased = LeasedKeys::default();
    for (at, key) in keys.iter().step_by(5).enumerate() {
        leased.attach(key.as_bytes(), 1 + (at / KEYS_PER_LEASE) as i64);
    }
    let with_leases = filling.bytes();
    vec![
        Figure::new(1, "index, bytes a key with one revision", Unit::Count, first),
        Figure::new(1, "... at most while loading, over that", Unit::Times, peak_loading),
        Figure::new(1, "... each key overwritten once", Unit::Count, second),
        Figure::new(1, "... each further revision", Unit::Count, third - second),
        Figure::new(1, "... overwritten twice and compacted", Unit::Count, swept as f64 / keys.len() as f64),
        Figure::new(1, LEASED, Unit::Count, with_leases as f64 / keys.len() as f64),
        Figure::new(1, "... at most while sweeping, over what it was", Unit::Times, filling.peak as f64 / full as f64),
    ]
}
