//! Answers to ranges: each key and value is encoded once, from where it lies.

use crate::convert::Header;
use crate::proto::encoded::RangeResponse;
use bytes::Bytes;
use polybolt::{Error, KeyValueRef, Keyspace, RangeRequest, RangeStream, Refusal, Result, SortTarget};

/// Bytes of rows that share their memory, about.
const SHARED_BYTES: usize = 256 << 10;

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
        let (mut rows, mut encoded) = (Rows::default(), Vec::with_capacity(kvs.len()));
        // One after the other, so that not all of them are there twice.
        for kv in kvs {
            rows.push(kv.lent());
            if rows.bytes.len() >= SHARED_BYTES {
                rows.take_into(&mut encoded);
            }
        }
        rows.take_into(&mut encoded);
        Answer { revision, kvs: encoded, more, count }
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
    // Without an order of its own it is sorted all the same if not by key (RNG-20).
    if request.sort_target != SortTarget::Key {
        return keyspace.range(request).map(Answer::from);
    }
    let mut stream = match keyspace.range_stream(request) {
        // In an order that needs all of it first.
        Err(Error::Refused(Refusal::Unsupported { .. })) => return keyspace.range(request).map(Answer::from),
        stream => stream?,
    };
    let (mut rows, mut kvs) = (Rows::default(), Vec::new());
    while let Some(shown) = rows.chunk(&mut stream, &mut kvs) {
        shown?;
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

    /// Hands them out. They share their memory, and no more than they take.
    fn take_into(&mut self, out: &mut Vec<Bytes>) {
        self.bytes.shrink_to_fit();
        let bytes = Bytes::from(std::mem::take(&mut self.bytes));
        let mut from = 0;
        out.extend(self.ends.drain(..).map(|to| bytes.slice(std::mem::replace(&mut from, to)..to)));
    }

    /// Appends the next chunk of a stream; None once there is none.
    pub(crate) fn chunk(&mut self, stream: &mut RangeStream, out: &mut Vec<Bytes>) -> Option<Result<()>> {
        let shown = stream.lend(&mut |kv| self.push(kv))?;
        self.take_into(out);
        Some(shown.map(drop))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server;
    use polybolt::{PutRequest, SortOrder, Span};

    /// One that was sorted by value without an order came in the order of keys.
    #[test]
    fn answers_are_those_of_ranges() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let _in_runtime = runtime.enter();
        let dir = tempfile::tempdir().unwrap();
        let keyspace = &server::tests::start(dir.path()).keyspace;
        for n in 0..300 {
            let value = format!("{:03}", 7 * n % 300).repeat(if n % 40 == 0 { 40_000 } else { n });
            keyspace.put(PutRequest::new(format!("k{:03}", 11 * n % 300), value)).wait().unwrap();
        }
        let all = RangeRequest::new(Span::prefix("k"));
        let mut requests = vec![
            RangeRequest { keys_only: true, ..all.clone() },
            RangeRequest { count_only: true, ..all.clone() },
            RangeRequest { min_mod_revision: 100, ..all.clone() },
            RangeRequest { revision: 200, limit: 100, ..all.clone() },
            RangeRequest::new(Span::key("k007")),
            RangeRequest::new(Span::key("none")),
            RangeRequest::new(Span::key("")),
            RangeRequest { revision: 999, ..all.clone() },
        ];
        for sort_target in
            [SortTarget::Key, SortTarget::Version, SortTarget::Create, SortTarget::Mod, SortTarget::Value]
        {
            for sort_order in [SortOrder::None, SortOrder::Ascend, SortOrder::Descend] {
                for limit in [0, 100] {
                    requests.push(RangeRequest { sort_target, sort_order, limit, ..all.clone() });
                }
            }
        }
        for request in requests {
            let (answer, range) = (answer(keyspace, &request), keyspace.range(&request));
            let (answer, range) = match (answer, range) {
                (Ok(answer), Ok(range)) => (answer, Answer::from(range)),
                (answer, range) => {
                    assert_eq!(format!("{:?}", answer.unwrap_err()), format!("{:?}", range.unwrap_err()));
                    continue;
                }
            };
            assert!(answer.kvs == range.kvs, "{request:?}");
            assert_eq!((answer.revision, answer.more, answer.count), (range.revision, range.more, range.count));
        }
    }
}
