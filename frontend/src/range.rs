//! Answers to ranges: each key and value is encoded once, from where it lies.

use crate::convert::Header;
use crate::proto::encoded::RangeResponse;
use bytes::Bytes;
use polybolt::{Error, KeyValueRef, Keyspace, RangeRequest, RangeStream, Refusal, Result};

/// What answers a range.
#[derive(Debug)]
pub(crate) struct Answer {
    revision: i64,
    /// Each an `mvccpb.KeyValue`.
    pub(crate) kvs: Vec<Bytes>,
    more: bool,
    count: i64,
}

impl From<polybolt::RangeResponse> for Answer {
    fn from(response: polybolt::RangeResponse) -> Self {
        let polybolt::RangeResponse { revision, more, count, kvs } = response;
        let mut rows = Rows::default();
        kvs.iter().for_each(|kv| rows.push(kv.lent()));
        Answer { revision, kvs: rows.take(), more, count }
    }
}

impl Answer {
    pub(crate) fn into_response(self, header: Header<'_>) -> RangeResponse {
        let Answer { revision, kvs, more, count } = self;
        RangeResponse { header: Some(header(revision)), kvs, more, count }
    }
}

/// Answers a range on a thread that may block.
pub(crate) fn answer(keyspace: &Keyspace, request: &RangeRequest) -> Result<Answer> {
    let mut stream = match keyspace.range_stream(request) {
        // In an order that needs all of it first.
        Err(Error::Refused(Refusal::Unsupported { .. })) => return keyspace.range(request).map(Answer::from),
        stream => stream?,
    };
    let (mut rows, mut kvs) = (Rows::default(), Vec::new());
    while let Some(chunk) = rows.chunk(&mut stream) {
        kvs.extend(chunk?);
    }
    Ok(Answer { revision: stream.revision(), kvs, more: stream.more(), count: stream.total() })
}

/// Keys and values that are encoded, behind each other.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Rows {
    fn push(&mut self, kv: KeyValueRef<'_>) {
        kv.encode(&mut self.bytes);
        self.ends.push(self.bytes.len());
    }

    /// Hands them out. They share their memory.
    fn take(&mut self) -> Vec<Bytes> {
        let bytes = Bytes::from(std::mem::take(&mut self.bytes));
        let mut from = 0;
        self.ends.drain(..).map(|to| bytes.slice(std::mem::replace(&mut from, to)..to)).collect()
    }

    /// The next chunk of a stream; None once there is none.
    pub(crate) fn chunk(&mut self, stream: &mut RangeStream) -> Option<Result<Vec<Bytes>>> {
        let shown = stream.lend(&mut |kv| self.push(kv))?;
        let kvs = self.take();
        // The next one is about as large.
        self.bytes.reserve(kvs.iter().map(Bytes::len).sum());
        Some(shown.map(|_| kvs))
    }
}
