//! A connection of any bytes, in pieces of any size: what is handed on does not depend on the pieces; only
//! headers are ever changed.
//!
//! Input: the size of a piece, whether the preface comes first, then what a client sends.
#![no_main]

#[path = "../../frontend/src/authority.rs"]
mod authority;
#[path = "../../frontend/src/hpack.rs"]
mod hpack;

use authority::Tolerant;
use libfuzzer_sys::{Corpus, fuzz_target};
use std::io::Result;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncRead, ReadBuf};

/// Bytes in pieces.
struct Pieces<'a> {
    rest: &'a [u8],
    piece: usize,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        let (piece, rest) = self.rest.split_at(self.piece.min(self.rest.len()).min(buf.remaining()));
        self.rest = rest;
        buf.put_slice(piece);
        Poll::Ready(Ok(()))
    }
}

fn through(bytes: &[u8], piece: usize) -> Vec<u8> {
    let mut connection = pin!(Tolerant::new(Pieces { rest: bytes, piece }));
    let mut output = Vec::new();
    loop {
        let mut space = [0; 700];
        let mut read = ReadBuf::new(&mut space);
        match connection.as_mut().poll_read(&mut Context::from_waker(Waker::noop()), &mut read) {
            Poll::Ready(Ok(())) if read.filled().is_empty() => return output,
            Poll::Ready(Ok(())) => output.extend_from_slice(read.filled()),
            other => panic!("{other:?} of bytes that are there"),
        }
    }
}

/// A frame: kind, flags and stream; payload.
type Frame<'a> = (&'a [u8], &'a [u8]);

/// Takes a whole frame off.
fn frame(bytes: &[u8]) -> Option<(Frame<'_>, &[u8])> {
    let (head, rest) = bytes.split_at_checked(9)?;
    let (payload, rest) = rest.split_at_checked(u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize)?;
    Some(((&head[3..], payload), rest))
}

const HEADERS: u8 = 1;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fuzz_target!(|input: &[u8]| -> Corpus {
    let [piece, preface, rest @ ..] = input else { return Corpus::Reject };
    let mut sent = if preface % 8 == 0 { Vec::new() } else { PREFACE.to_vec() };
    sent.extend_from_slice(rest);
    let output = through(&sent, 4096);
    assert_eq!(through(&sent, usize::from(*piece).max(1)), output);
    if !sent.starts_with(PREFACE) {
        assert_eq!(output, sent);
    }
    let (Some(mut sent), Some(mut output)) = (sent.strip_prefix(PREFACE), output.strip_prefix(PREFACE)) else {
        return Corpus::Keep;
    };
    while let Some((before, rest)) = frame(sent) {
        let (after, output_rest) = frame(output).expect("a frame for a frame");
        assert_eq!(before.0, after.0);
        assert!(before.0[0] == HEADERS || before.1 == after.1);
        (sent, output) = (rest, output_rest);
    }
    assert_eq!(sent, output);
    Corpus::Keep
});
