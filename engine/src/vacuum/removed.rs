//! Files of dropped spaces, given back to the file system a piece at a time.
//! At once it makes every sync beside that wait for a fifth of a second and longer.

use super::{PIECE_BYTES, PIECE_PAUSE};
use crate::core::Core;
use std::time::Duration;

/// How often a file that somebody reads is looked at again.
const LOOK: Duration = Duration::from_millis(500);

/// When to go on.
#[derive(Debug, Default)]
pub(super) struct Shortening {
    not_before: Duration,
}

impl Shortening {
    /// Makes a removed file that nobody reads shorter; when to go on, if there are any.
    pub(super) fn step(&mut self, core: &Core, now: Duration) -> Option<Duration> {
        let mut all = core.removed.lock();
        if now < self.not_before || all.is_empty() {
            return (!all.is_empty()).then_some(self.not_before);
        }
        let at = all.iter_mut().position(|removed| !removed.is_read());
        self.not_before = now + if at.is_some() { PIECE_PAUSE } else { LOOK };
        if let Some(at) = at {
            // What cannot be shortened is given back as a whole when it is closed.
            let failed = all[at].shorten(PIECE_BYTES).is_err();
            if failed || all[at].is_gone() {
                all.remove(at);
            }
        }
        (!all.is_empty()).then_some(self.not_before)
    }
}
