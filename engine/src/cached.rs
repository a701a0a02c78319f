//! A bounded cache of checked pages, for files that are read with `pread`.
//!
//! Second chance: a page that was used since the hand last passed stays for another round.

use crate::sync::Mutex;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Pages by their first unit.
#[derive(Debug)]
pub struct PageCache {
    bytes_max: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    pages: HashMap<u32, Cached>,
    queue: VecDeque<u32>,
    bytes: usize,
}

#[derive(Debug)]
struct Cached {
    epoch: u64,
    page: Arc<[u8]>,
    used: bool,
}

impl PageCache {
    /// A cache of at most `bytes_max` bytes of pages.
    pub fn new(bytes_max: usize) -> Self {
        PageCache { bytes_max, state: Mutex::default() }
    }

    /// The page at `unit` of this epoch.
    pub fn get(&self, unit: u32, epoch: u64) -> Option<Arc<[u8]>> {
        let mut state = self.state.lock();
        let cached = state.pages.get_mut(&unit).filter(|cached| cached.epoch == epoch)?;
        cached.used = true;
        Some(Arc::clone(&cached.page))
    }

    /// Keeps a page, and lets others go for it.
    pub fn put(&self, unit: u32, epoch: u64, page: &Arc<[u8]>) {
        if page.len() > self.bytes_max {
            return;
        }
        let mut state = self.state.lock();
        let fresh = Cached { epoch, page: Arc::clone(page), used: false };
        state.bytes += page.len();
        match state.pages.insert(unit, fresh) {
            Some(old) => state.bytes -= old.page.len(),
            None => state.queue.push_back(unit),
        }
        while state.bytes > self.bytes_max {
            let Some(victim) = state.queue.pop_front() else { return };
            let spared = state.pages.get_mut(&victim).is_some_and(|cached| std::mem::take(&mut cached.used));
            if spared {
                state.queue.push_back(victim);
            } else if let Some(old) = state.pages.remove(&victim) {
                state.bytes -= old.page.len();
            }
        }
    }

    /// Lets all pages go.
    pub fn clear(&self) {
        *self.state.lock() = State::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stays_within_its_bytes_and_keeps_what_is_used() {
        let cache = PageCache::new(4 * 100);
        let page: Arc<[u8]> = vec![0; 100].into();
        for unit in 0..4 {
            cache.put(unit, 1, &page);
        }
        assert!(cache.get(0, 1).is_some());
        assert!(cache.get(0, 2).is_none());
        for unit in 4..7 {
            cache.put(unit, 1, &page);
        }
        assert!(cache.get(0, 1).is_some());
        assert!(cache.get(1, 1).is_none());
        assert!(cache.state.lock().bytes <= 400);
    }
}
