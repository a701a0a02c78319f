//! Protobuf as etcd has it: `mvccpb.KeyValue`, which HashKV reads too (REV-16), and `mvccpb.Event`.
//! Fields in order of their numbers; those that are zero or empty are left out.

use crate::request::{KeyValue, KeyValueRef};
use bytes::Bytes;

const LENGTH_DELIMITED: u8 = 2;
/// The longest number: of 64 bits, 7 to a byte.
const NUMBER_MAX: usize = 10;
/// What a `KeyValue` has besides key and value, at most: tags and numbers of six fields.
const FIELDS_MAX: usize = 6 * (1 + NUMBER_MAX);

impl KeyValueRef<'_> {
    /// Appends it as etcd's wire format has it: a protobuf `mvccpb.KeyValue`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.reserve(self.key.len() + self.value.len() + FIELDS_MAX);
        bytes_field(1, self.key, out);
        for (field, value) in [(2, self.create_revision), (3, self.mod_revision), (4, self.version)] {
            number_field(field, value, out);
        }
        bytes_field(5, self.value, out);
        number_field(6, self.lease, out);
    }
}

/// Appends the `KeyValue` in a tombstone's row: the key alone (REV-8).
pub(crate) fn tombstone(key: &[u8], out: &mut Vec<u8>) {
    bytes_field(1, key, out);
}

/// An `Event`: a delete or a put, and the version before.
pub(crate) fn event(delete: bool, kv: &KeyValue, prev_kv: Option<&KeyValue>) -> Bytes {
    let most = |kv: &KeyValue| kv.key.len() + kv.value.len() + FIELDS_MAX + NUMBER_MAX + 1;
    let mut out = Vec::with_capacity(2 + most(kv) + prev_kv.map_or(0, most));
    number_field(1, delete.into(), &mut out);
    message_field(2, kv, &mut out);
    if let Some(prev_kv) = prev_kv {
        message_field(3, prev_kv, &mut out);
    }
    // Kept for as long as the event is: no more of it than there is.
    out.shrink_to_fit();
    out.into()
}

fn message_field(field: u8, kv: &KeyValue, out: &mut Vec<u8>) {
    let mut message = Vec::with_capacity(kv.key.len() + kv.value.len() + FIELDS_MAX);
    kv.lent().encode(&mut message);
    out.push(field << 3 | LENGTH_DELIMITED);
    varint(message.len() as u64, out);
    out.extend_from_slice(&message);
}

fn bytes_field(field: u8, value: &[u8], out: &mut Vec<u8>) {
    if !value.is_empty() {
        out.push(field << 3 | LENGTH_DELIMITED);
        varint(value.len() as u64, out);
        out.extend_from_slice(value);
    }
}

fn number_field(field: u8, value: i64, out: &mut Vec<u8>) {
    if value != 0 {
        out.push(field << 3);
        varint(value.cast_unsigned(), out);
    }
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
