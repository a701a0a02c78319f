//! As much of HPACK (RFC 7541) as it takes to replace one header of a request.
//!
//! The replacement is as long as what it replaces: headers refer to each other by their place in a table of limited
//! size, which both sides have to fill alike.

use axum::http::uri::Authority;
use bytes::Buf;

/// The place of `:authority` in the static table.
const AUTHORITY: usize = 1;

/// A block of headers with another authority, if that which it gives is none.
pub(crate) fn replace_authority(block: &[u8]) -> Option<Vec<u8>> {
    let mut rest = block;
    while let Some(&first) = rest.first() {
        let (bits, literal) = match first {
            0x80.. => (7, false),
            0x40.. => (6, true),
            0x20.. => (5, false),
            _ => (4, true),
        };
        let index = integer(&mut rest, bits)?;
        if !literal {
            continue;
        }
        if index == 0 {
            string(&mut rest)?;
        }
        let before = &block[..block.len() - rest.len()];
        let value = string(&mut rest)?;
        if index == AUTHORITY && !value.is_empty() && Authority::try_from(&value[..]).is_err() {
            let mut replaced = before.to_vec();
            put_length(&mut replaced, value.len());
            replaced.resize(replaced.len() + value.len(), b'x');
            replaced.extend_from_slice(rest);
            return Some(replaced);
        }
    }
    None
}

/// An integer that begins in the low `bits` of a byte.
fn integer(rest: &mut &[u8], bits: u32) -> Option<usize> {
    let low = (1u8 << bits) - 1;
    let mut value = usize::from(rest.try_get_u8().ok()? & low);
    if value < usize::from(low) {
        return Some(value);
    }
    // No length that fits a frame takes more.
    for shift in [0, 7, 14] {
        let byte = rest.try_get_u8().ok()?;
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// The length of a string that is not compressed.
pub(crate) fn put_length(block: &mut Vec<u8>, len: usize) {
    const LOW: usize = 0x7f;
    if len < LOW {
        block.push(len as u8);
        return;
    }
    block.push(LOW as u8);
    let mut left = len - LOW;
    while left >= 0x80 {
        block.push((left & 0x7f) as u8 | 0x80);
        left >>= 7;
    }
    block.push(left as u8);
}

/// A string, as text.
fn string(rest: &mut &[u8]) -> Option<Vec<u8>> {
    let compressed = rest.first()? & 0x80 != 0;
    let len = integer(rest, 7)?;
    let (string, after) = rest.split_at_checked(len)?;
    *rest = after;
    if compressed { decompress(string) } else { Some(string.to_vec()) }
}

/// The characters of the Huffman code of HPACK by the bits that they take, in order. Codes rise with both; those that
/// take more are of no text that a client sends here.
const CODES: [(u32, &[u8]); 10] = [
    (5, b"012aceiost"),
    (6, b" %-./3456789=A_bdfghlmnpru"),
    (7, b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz"),
    (8, b"&*,;XZ"),
    (10, b"!\"()?"),
    (11, b"'+|"),
    (12, b"#>"),
    (13, b"\0$@[]~"),
    (14, b"^}"),
    (15, b"<`{"),
];

fn decompress(string: &[u8]) -> Option<Vec<u8>> {
    let mut text = Vec::with_capacity(string.len() * 8 / 5);
    let mut bits: u64 = 0;
    let mut held = 0;
    let mut bytes = string.iter();
    loop {
        while held <= 32 {
            let Some(&byte) = bytes.next() else { break };
            bits = bits << 8 | u64::from(byte);
            held += 8;
        }
        let window = bits & ((1 << held) - 1);
        // What is left is filled with ones.
        if held < 8 && window == (1 << held) - 1 {
            return Some(text);
        }
        let (mut first, mut previous) = (0, CODES[0].0);
        let mut found = None;
        for (len, characters) in CODES {
            first <<= len - previous;
            previous = len;
            if len <= held {
                let at = (window >> (held - len)).checked_sub(first);
                if let Some(&character) = at.and_then(|at| characters.get(at as usize)) {
                    found = Some((len, character));
                    break;
                }
            }
            first += characters.len() as u64;
        }
        let (len, character) = found?;
        text.push(character);
        held -= len;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn compress(text: &[u8]) -> Vec<u8> {
        let mut bits = Vec::new();
        for character in text {
            let (mut first, mut previous) = (0usize, 5);
            for (len, characters) in CODES {
                first <<= len - previous;
                previous = len;
                if let Some(at) = characters.iter().position(|other| other == character) {
                    bits.extend((0..len).rev().map(|bit| (first + at) >> bit & 1));
                }
                first += characters.len();
            }
        }
        bits.resize(bits.len().next_multiple_of(8), 1);
        bits.chunks(8).map(|byte| byte.iter().fold(0, |byte, bit| byte << 1 | *bit as u8)).collect()
    }

    #[test]
    fn the_code_is_that_of_hpack() {
        // RFC 7541, C.4 and C.6.
        let host = [0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
        assert_eq!(decompress(&host).as_deref(), Some(&b"www.example.com"[..]));
        let location =
            [0x9d, 0x29, 0xad, 0x17, 0x18, 0x63, 0xc7, 0x8f, 0x0b, 0x97, 0xc8, 0xe9, 0xae, 0x82, 0xae, 0x43, 0xd3];
        assert_eq!(decompress(&location).as_deref(), Some(&b"https://www.example.com"[..]));
        assert_eq!(compress(b"#[~"), [0xff, 0xaf, 0xfd, 0xff, 0xf7]);
        for (_, characters) in CODES {
            assert_eq!(decompress(&compress(characters)).as_deref(), Some(characters));
        }
        assert_eq!(decompress(&[0xff; 4]), None, "more than a byte of filling");
        assert_eq!(decompress(b""), Some(Vec::new()));
    }

    #[test]
    fn whatever_is_no_block_is_left_as_it_is() {
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        for _ in 0..20_000 {
            let len = random() % 40;
            let mut block: Vec<u8> = (0..len).map(|_| random()).collect();
            // It may by chance be one; then all else stays.
            if let Some(replaced) = replace_authority(&block) {
                assert_eq!(replace_authority(&replaced), None);
            }
            block.insert(0, 0x41);
            drop(replace_authority(&block));
        }
    }
}
