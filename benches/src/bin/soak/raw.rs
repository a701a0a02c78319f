//! HTTP/2 by hand, for a client that asks for one large answer and reads none of it: a client library would
//! read it into its own memory.

use crate::clients::key;
use polybolt_frontend::proto::etcdserverpb as pb;
use prost::Message;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

const SETTINGS: u8 = 4;
const HEADERS: u8 = 1;
const DATA: u8 = 0;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// A frame: length, type, flags, stream (RFC 9113, 4.1).
fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let len = u32::try_from(payload.len()).expect("a short frame");
    out.extend_from_slice(&len.to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// A header that is in no table (RFC 7541, 6.2.2).
fn header(out: &mut Vec<u8>, name: &str, value: &str) {
    out.push(0);
    for text in [name, value] {
        out.push(u8::try_from(text.len()).expect("a short header"));
        out.extend_from_slice(text.as_bytes());
    }
}

/// Asks for `keys` keys at once, on a connection that nobody reads.
pub(crate) async fn unread_range(port: u16, keys: i64) -> std::io::Result<TcpStream> {
    let mut headers = Vec::new();
    let authority = format!("127.0.0.1:{port}");
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/etcdserverpb.KV/Range"),
        (":authority", authority.as_str()),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        header(&mut headers, name, value);
    }
    let request = pb::RangeRequest { key: key(0).into(), range_end: "\0".into(), limit: keys, ..Default::default() };
    let message = request.encode_to_vec();
    let mut body = vec![0];
    body.extend_from_slice(&u32::try_from(message.len()).expect("a short message").to_be_bytes());
    body.extend_from_slice(&message);
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    frame(&mut bytes, SETTINGS, 0, 0, &[]);
    frame(&mut bytes, HEADERS, END_HEADERS, 1, &headers);
    frame(&mut bytes, DATA, END_STREAM, 1, &body);
    let mut connection = TcpStream::connect(("127.0.0.1", port)).await?;
    connection.write_all(&bytes).await?;
    Ok(connection)
}
