//! Every maximum of the engine, each with its sum.

use crate::ids::UNIT_BYTES;

/// The smallest page: one unit.
pub const PAGE_BYTES_MIN: usize = UNIT_BYTES;
/// The largest page: a u16 can name every byte offset in it.
pub const PAGE_BYTES_MAX: usize = 65536;
/// The page size unless asked otherwise.
pub const PAGE_BYTES_DEFAULT: usize = 16384;

/// The longest key of a tree: four keys and their slots fit the smallest page.
pub const TREE_KEY_BYTES_MAX: usize = 512;
/// The longest head (the part of a value that always stays in the leaf): with its key it takes at
/// most a quarter of the smallest page, so that a leaf holds four entries.
pub const HEAD_BYTES_MAX: usize = 448;
/// The longest body (the part of a value that may overflow into an extent).
pub const BODY_BYTES_MAX: usize = 256 << 20;
/// The largest opaque state of a space: the manifest holds one per space, twice.
pub const STATE_BYTES_MAX: usize = 64 << 10;
/// The most spaces of a store; with 16 trees each and 200 bytes a tree a manifest slot stays under 256 MiB.
pub const SPACES_MAX: usize = 1 << 16;
/// The largest journal record: a txn of the largest body with room for its keys.
pub const RECORD_BYTES_MAX: usize = BODY_BYTES_MAX + (64 << 20);
/// What a store counts (commits, epochs, sessions, positions, bytes of its journal) stays below this: at a
/// million a second that is 73,000 years.
pub const COUNTER_MAX: u64 = 1 << 61;
/// Spaces and trees of a store's whole life.
pub const IDS_MAX: u32 = 1 << 31;

/// The longest name of a space or tree: it is a part of a file's name.
const NAME_BYTES_MAX: usize = 120;

/// True if a space or tree can have this name.
pub fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'+');
    !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.starts_with('.') && name.bytes().all(plain)
}

/// True if a page can have so many bytes.
pub fn is_page_bytes(bytes: usize) -> bool {
    (PAGE_BYTES_MIN..=PAGE_BYTES_MAX).contains(&bytes) && bytes.is_power_of_two()
}
