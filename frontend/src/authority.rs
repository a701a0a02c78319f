//! HTTP/2 connections of clients that send what is no authority.
//!
//! Some commands of etcdctl 3.4 send the whole URL of an endpoint as `:authority`, etcd's Go client 3.5.0 sends
//! `#initially=[..]`; Go's servers do not look at it, ours refuses the request. Nobody here needs it, so where the
//! first request of a connection has a bad one, it is replaced, there and in the requests that follow.

use crate::hpack::replace_authority;
use bytes::{Buf, BufMut, BytesMut};
use std::io::{IoSlice, Result};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How an HTTP/2 connection begins.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Length, type, flags and stream of a frame.
const FRAME_HEADER_BYTES: usize = 9;
/// The largest payload of a frame, as nothing else is negotiated.
const PAYLOAD_BYTES_MAX: usize = 16 << 10;
const HEADERS: u8 = 1;
const FLAG_END_HEADERS: u8 = 0x4;
const FLAG_PADDED: u8 = 0x8;
const FLAG_PRIORITY: u8 = 0x20;
/// What is read at once while requests are looked at.
const READ_BYTES: usize = 4 << 10;

/// What of a connection is looked at next.
#[derive(Debug)]
enum State {
    Preface,
    Frame,
    /// So many bytes of a frame that are passed on as they are.
    Payload(usize),
    /// All of the rest is passed on as it is.
    Plain,
}

/// A connection whose requests have an authority.
#[derive(Debug)]
pub(crate) struct Tolerant<S> {
    stream: S,
    state: State,
    /// A request had a bad authority.
    rewriting: bool,
    /// Read, but not looked at.
    input: BytesMut,
    /// Looked at, but not handed out.
    output: BytesMut,
}

impl<S> Tolerant<S> {
    pub(crate) fn new(stream: S) -> Tolerant<S> {
        Tolerant { stream, state: State::Preface, rewriting: false, input: BytesMut::new(), output: BytesMut::new() }
    }

    /// Moves what can be moved from the input to the output.
    fn advance(&mut self) {
        loop {
            match self.state {
                State::Preface => {
                    let len = self.input.len().min(PREFACE.len());
                    if self.input[..len] != PREFACE[..len] {
                        self.state = State::Plain;
                    } else if len < PREFACE.len() {
                        return;
                    } else {
                        self.pass(len);
                        self.state = State::Frame;
                    }
                }
                State::Frame => {
                    let [a, b, c, kind, flags, ..] = self.input[..] else { return };
                    if self.input.len() < FRAME_HEADER_BYTES {
                        return;
                    }
                    let payload = u32::from_be_bytes([0, a, b, c]) as usize;
                    if kind != HEADERS {
                        self.pass(FRAME_HEADER_BYTES);
                        self.state = State::Payload(payload);
                    } else if payload > PAYLOAD_BYTES_MAX || flags & FLAG_END_HEADERS == 0 {
                        self.state = State::Plain;
                    } else if self.input.len() < FRAME_HEADER_BYTES + payload {
                        return;
                    } else {
                        self.request(flags, payload);
                    }
                }
                State::Payload(left) => {
                    let len = left.min(self.input.len());
                    self.pass(len);
                    self.state = if len == left { State::Frame } else { State::Payload(left - len) };
                    if len < left {
                        return;
                    }
                }
                State::Plain => {
                    self.pass(self.input.len());
                    return;
                }
            }
        }
    }

    fn pass(&mut self, len: usize) {
        self.output.extend_from_slice(&self.input[..len]);
        self.input.advance(len);
    }

    /// A whole frame of headers.
    fn request(&mut self, flags: u8, payload: usize) {
        let frame = self.input.split_to(FRAME_HEADER_BYTES + payload);
        let (header, payload) = frame.split_at(FRAME_HEADER_BYTES);
        let mut before = 0;
        let mut after = 0;
        if flags & FLAG_PADDED != 0 {
            after = payload.first().map_or(0, |&padding| padding.into());
            before += 1;
        }
        if flags & FLAG_PRIORITY != 0 {
            before += 5;
        }
        let end = payload.len().saturating_sub(after);
        let replaced = payload.get(before..end).and_then(replace_authority);
        let replaced = replaced.filter(|block| payload.len() - (end - before) + block.len() <= PAYLOAD_BYTES_MAX);
        let Some(block) = replaced else {
            self.output.extend_from_slice(&frame);
            // A connection that begins well is not looked at any more.
            self.state = if self.rewriting { State::Frame } else { State::Plain };
            return;
        };
        let len = before + block.len() + after;
        self.output.put_uint(len as u64, 3);
        self.output.extend_from_slice(&header[3..]);
        self.output.extend_from_slice(&payload[..before]);
        self.output.extend_from_slice(&block);
        self.output.extend_from_slice(&payload[end..]);
        self.rewriting = true;
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Tolerant<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        let this = &mut *self;
        while this.output.is_empty() {
            if matches!(this.state, State::Plain) {
                return Pin::new(&mut this.stream).poll_read(cx, buf);
            }
            let mut space = [0; READ_BYTES];
            let mut read = ReadBuf::new(&mut space);
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                // The end: what is left is no whole frame.
                this.state = State::Plain;
            }
            this.input.extend_from_slice(read.filled());
            this.advance();
        }
        let len = this.output.len().min(buf.remaining());
        buf.put_slice(&this.output.split_to(len));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Tolerant<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hpack::put_length;
    use crate::hpack::tests::compress;
    use tokio::io::AsyncReadExt;

    /// The headers of a request as Go's client sends them.
    fn block(authority: &[u8], compressed: bool) -> Vec<u8> {
        let mut block = vec![0x83, 0x86, 0x45, 0x03, b'/', b'a', b'b', 0x41];
        if compressed {
            let value = compress(authority);
            block.push(0x80 | value.len() as u8);
            block.extend_from_slice(&value);
        } else {
            put_length(&mut block, authority.len());
            block.extend_from_slice(authority);
        }
        block.extend_from_slice(&[0x5f, 0x02, b'o', b'k']);
        block
    }

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend_from_slice(&[kind, flags, 0, 0, 0, 1]);
        frame.extend_from_slice(payload);
        frame
    }

    /// What comes out of a connection which is read in small steps.
    async fn through(input: &[u8]) -> Vec<u8> {
        let (mut ours, theirs) = tokio::io::duplex(3);
        let input = input.to_vec();
        tokio::spawn(async move { drop(tokio::io::AsyncWriteExt::write_all(&mut ours, &input).await) });
        let mut output = Vec::new();
        Tolerant::new(theirs).read_to_end(&mut output).await.expect("it is read");
        output
    }

    #[tokio::test]
    async fn a_bad_authority_is_replaced_in_every_request_of_its_connection() {
        for bad in [&b"http://127.0.0.1:2379"[..], b"#initially=[127.0.0.1:2379;127.0.0.1:22379]", &[b'/'; 300]] {
            for compressed in [false, true] {
                if compressed && bad.len() > 100 {
                    continue;
                }
                let other: &[u8] = &[PREFACE, &frame(4, 0, &[0; 6])].concat();
                let data = frame(0, 1, &[7; 20_000]);
                let padded = |block: &[u8]| [&[2, 0, 0, 0, 0, 0], block, &[0, 0]].concat();
                let connection = |block: &[u8]| {
                    let padded = frame(HEADERS, FLAG_END_HEADERS | FLAG_PADDED | FLAG_PRIORITY, &padded(block));
                    [other, &frame(HEADERS, FLAG_END_HEADERS, block), &data, &padded].concat()
                };
                let expected = block(&vec![b'x'; bad.len()], false);
                assert_eq!(through(&connection(&block(bad, compressed))).await, connection(&expected));
            }
        }
    }

    #[tokio::test]
    async fn everything_else_is_passed_on_as_it_is() {
        let good = frame(HEADERS, FLAG_END_HEADERS, &block(b"127.0.0.1:2379", true));
        let bad = frame(HEADERS, FLAG_END_HEADERS, &block(b"http://a", true));
        let parted = frame(HEADERS, 0, &block(b"http://a", true));
        let torn = frame(HEADERS, FLAG_END_HEADERS, &[0x41, 0xff, 0xff, 0xff, 0xff, 0xff]);
        let padding = frame(HEADERS, FLAG_END_HEADERS | FLAG_PADDED, &[200, 1, 2]);
        for rest in [&good[..], &parted, &torn, &padding, &[0xff; 40], &bad[..12], b"abc"] {
            let connection = [PREFACE, rest].concat();
            assert_eq!(through(&connection).await, connection);
        }
        for plain in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"PRI * HTTP/1.1", b"PRI", b""] {
            assert_eq!(through(plain).await, plain);
        }
        // One that begins well is not looked at any more.
        let connection = [PREFACE, &good, &bad].concat();
        assert_eq!(through(&connection).await, connection);
    }
}
