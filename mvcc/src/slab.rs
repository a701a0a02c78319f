//! Memory of records: small ones share allocations, so that none is made for each.

use bytes::{Bytes, BytesMut};

/// Bytes of an allocation. An idle keyspace keeps one at most.
const SLAB_BYTES: usize = 16 << 10;
/// A longer record has memory of its own, so that little is wasted at the end of an allocation.
const SHARED_MAX: usize = SLAB_BYTES / 8;

/// Where records are kept.
#[derive(Debug, Default)]
pub(crate) struct Slab {
    rest: BytesMut,
}

impl Slab {
    /// A copy of a record. While any part of it is alive, so is all that shares its memory, unless it has its `own`.
    pub(crate) fn keep(&mut self, record: &[u8], own: bool) -> Bytes {
        if own || record.len() > SHARED_MAX {
            return Bytes::copy_from_slice(record);
        }
        if self.rest.capacity() < record.len() {
            self.rest = BytesMut::with_capacity(SLAB_BYTES);
        }
        self.rest.extend_from_slice(record);
        self.rest.split().freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_records_share_memory_and_others_do_not() {
        let mut slab = Slab::default();
        let records: Vec<Vec<u8>> = (0..200usize).map(|at| vec![at as u8; at * 37 % 3000]).collect();
        let kept: Vec<Bytes> = records.iter().map(|record| slab.keep(record, record.len() == 37)).collect();
        assert!(kept.iter().zip(&records).all(|(kept, record)| kept == record));
        let follows = |a: &Bytes, b: &Bytes| a.as_ptr_range().end == b.as_ptr();
        let [own, shared, also] = [&kept[1], &kept[2], &kept[3]];
        assert!(follows(shared, also) && !follows(own, shared));
        assert!(own.is_unique() && !shared.is_unique());
    }
}
