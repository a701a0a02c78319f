//! What a row costs beside its time: memory held, bytes written, syncs.
//!
//! Bytes are counted by the kernel: those that the process gave to write calls. Syncs are counted where they are made:
//! this program's `fsync` and `fdatasync` are its own, which count and then ask the kernel. (LMDB's second wait of
//! a commit, a write through a descriptor opened with `O_DSYNC`, is none of them.) A peer that asks the kernel itself
//! says how many there were.

use crate::figure::{Figure, Unit};
use crate::measure::resident;
use crate::peer::MvccPeer;
use std::ffi::c_int;
use std::sync::atomic::{AtomicU64, Ordering};

static SYNCS: AtomicU64 = AtomicU64::new(0);

fn sync(call: std::ffi::c_long, file: c_int) -> c_int {
    SYNCS.fetch_add(1, Ordering::Relaxed);
    #[expect(unsafe_code, reason = "as libc has it, errno included")]
    // SAFETY: both calls take a descriptor and nothing else.
    let status = unsafe { libc::syscall(call, file) };
    if status == 0 { 0 } else { -1 }
}

/// Counts, and syncs as libc's does.
#[expect(unsafe_code, reason = "it stands for libc's")]
// SAFETY: it does what the function of this name has to do.
#[unsafe(no_mangle)]
pub extern "C" fn fsync(file: c_int) -> c_int {
    sync(libc::SYS_fsync, file)
}

/// Counts, and syncs as libc's does.
#[expect(unsafe_code, reason = "it stands for libc's")]
// SAFETY: it does what the function of this name has to do.
#[unsafe(no_mangle)]
pub extern "C" fn fdatasync(file: c_int) -> c_int {
    sync(libc::SYS_fdatasync, file)
}

/// Bytes that this process gave to write calls.
pub fn written() -> u64 {
    let text = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    let field = text.lines().find_map(|line| line.strip_prefix("wchar:"));
    field.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}

/// Syncs of a peer until now.
pub fn syncs(peer: &dyn MvccPeer) -> u64 {
    peer.syncs().unwrap_or_else(|| SYNCS.load(Ordering::Relaxed))
}

/// The moment before a row.
#[derive(Debug)]
pub struct Meter {
    written: u64,
    syncs: u64,
}

impl Meter {
    /// Begins.
    pub fn start(peer: &dyn MvccPeer) -> Self {
        Meter { written: written(), syncs: syncs(peer) }
    }

    /// Bytes written since, and syncs.
    pub fn since(&self, peer: &dyn MvccPeer) -> (u64, u64) {
        (written() - self.written, syncs(peer) - self.syncs)
    }

    /// What the row cost. `base` is what was resident before the store was opened.
    pub fn costs(&self, row: u32, base: u64, peer: &dyn MvccPeer) -> Vec<Figure> {
        let (written, syncs) = self.since(peer);
        vec![
            Figure::cost(row, "anonymous memory", Unit::Bytes, resident().anonymous.saturating_sub(base) as f64),
            Figure::cost(row, "mapped files", Unit::Bytes, resident().file as f64),
            Figure::cost(row, "bytes written", Unit::Bytes, written as f64),
            Figure::cost(row, "syncs", Unit::Count, syncs as f64),
        ]
    }
}
