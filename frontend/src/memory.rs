//! How much memory the server may take, by its options and by who is connected (B1).
//!
//! Files are read through mappings, whose pages the system takes back as it likes: they are not counted.

use polybolt::Options;

const MIB: u64 = 1 << 20;
/// Program, threads, metrics, and what the allocator keeps.
const BASE_BYTES: u64 = 48 * MIB;
/// Write buffers are charged for their bytes. Besides these there are the places of their entries, which grow
/// by doubling, and a sorted copy of those while a checkpoint runs; a group of the journal is a copy too.
const BUFFER_COPIES: u64 = 3;
/// What is kept for a connection, and for a stream, by HTTP/2.
const CONNECTION_BYTES: u64 = MIB;
const STREAM_BYTES: u64 = MIB;
/// What a call under way takes besides its message: its task, its buffers, its place in HTTP/2.
const CALL_BYTES: u64 = 16 << 10;

/// Who is connected.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Clients {
    pub(crate) connections: u64,
    pub(crate) calls: u64,
    pub(crate) watch_streams: u64,
    pub(crate) watchers: u64,
    pub(crate) snapshots: u64,
    pub(crate) range_streams: u64,
    pub(crate) resharding: u64,
}

/// The bound: fixed by the options, by clients that may stall, and the index, which grows with keys and with
/// the history that compaction has left.
pub(crate) fn bound(options: &Options, unread_bytes_max: u64, clients: Clients, index_bytes: u64) -> u64 {
    let ahead = crate::outbox::AHEAD_BYTES as u64 + STREAM_BYTES;
    let watch_buffer = options.watch_buffer_bytes as u64;
    // A stream takes from one watcher at a time, what is queued for it.
    let watching = clients.watch_streams * (ahead + watch_buffer) + clients.watchers * watch_buffer;
    // A chunk is made while the one before it waits.
    let reading = (clients.snapshots + clients.range_streams) * (ahead + STREAM_BYTES);
    let line = options.buffer_bytes.max(4 * MIB);
    BASE_BYTES
        + BUFFER_COPIES * options.buffer_bytes
        + line
        + unread_bytes_max
        + watching
        + reading
        + clients.connections * CONNECTION_BYTES
        + clients.calls * CALL_BYTES
        + index_bytes
        // The new index beside the old one, and rows on their way into it.
        + clients.resharding.min(1) * (index_bytes + options.buffer_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_client_that_stalls_adds_a_fixed_amount() {
        let options = Options::default();
        let alone = bound(&options, 0, Clients::default(), 0);
        assert_eq!(alone, BASE_BYTES + 4 * options.buffer_bytes);
        let one = Clients { connections: 1, watch_streams: 1, watchers: 1, ..Clients::default() };
        assert_eq!(bound(&options, 0, one, 0) - alone, 5 * MIB);
        assert_eq!(bound(&options, 0, Clients { calls: 64, ..Clients::default() }, 0) - alone, MIB);
        let resharding = Clients { resharding: 1, ..Clients::default() };
        assert_eq!(bound(&options, 0, resharding, 9), alone + 2 * 9 + options.buffer_bytes);
        let slow = Clients { snapshots: 2, range_streams: 3, ..Clients::default() };
        assert_eq!(bound(&options, 7, slow, 11) - alone, 5 * 3 * MIB + 18);
    }
}
