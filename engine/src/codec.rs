//! Reading and writing small structures: little-endian integers and length-prefixed bytes.
//!
//! A [`Reader`] never trusts a length: what does not fit is a [`Damage`], never a panic.

use crate::error::Damage;
use bytes::Bytes;

/// Reads fields from the front of a slice.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads from `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Reader { rest: bytes }
    }

    /// What is left.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next `len` bytes.
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], Damage> {
        let short = Damage::Truncated { needed: len as u64, found: self.rest.len() as u64 };
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(short)?;
        self.rest = rest;
        Ok(taken)
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Damage> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    /// A byte.
    pub fn u8(&mut self) -> Result<u8, Damage> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    /// A little-endian u16.
    pub fn u16(&mut self) -> Result<u16, Damage> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// A little-endian u32.
    pub fn u32(&mut self) -> Result<u32, Damage> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// A little-endian u64.
    pub fn u64(&mut self) -> Result<u64, Damage> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A little-endian u128.
    pub fn u128(&mut self) -> Result<u128, Damage> {
        Ok(u128::from_le_bytes(self.array()?))
    }

    /// Bytes after their u32 length.
    pub fn bytes(&mut self) -> Result<&'a [u8], Damage> {
        let len = self.u32()? as usize;
        self.take(len)
    }

    /// UTF-8 after its u32 length.
    pub fn string(&mut self) -> Result<String, Damage> {
        let bytes = self.bytes()?;
        String::from_utf8(bytes.to_vec()).map_err(|_| Damage::Malformed { what: "a name is not UTF-8" })
    }

    /// Reserved bytes, which must be zero.
    pub fn zeros(&mut self, len: usize) -> Result<(), Damage> {
        if self.take(len)?.iter().all(|&byte| byte == 0) {
            return Ok(());
        }
        Err(Damage::Malformed { what: "reserved bytes are not zero" })
    }

    /// Nothing may be left.
    pub fn finish(self) -> Result<(), Damage> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(Damage::Malformed { what: "bytes are left over after the last field" })
    }
}

/// Appends bytes after their u32 length.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    let len = u32::try_from(bytes.len()).expect("fields are far below 4 GiB (limits.rs)");
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(bytes);
}

/// A copy as `Bytes`.
pub fn owned(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}
