//! What every gRPC call passes, whatever its service: the metadata that etcd looks at, the limit on a
//! message, and counting.
//!
//! A body is looked at as it streams by: a message is a byte, its length in four bytes, and so many bytes
//! (the gRPC wire format). One that is too large is refused at its length, before any of it is held.

use crate::outbox::Held;
use crate::proto;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::middleware::Next;
use axum::response::Response;
use http_body::{Frame, SizeHint};
use prometheus::{HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry};
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use tokio::time::Instant;
use tonic::{Code, Status};

/// The codes by number, as etcd's metrics name them.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// A gRPC method and its counters.
#[derive(Debug)]
struct Method {
    labels: [String; 3],
    is_stream: bool,
    started: IntCounter,
    received: IntCounter,
    sent: IntCounter,
    /// By code, made when first needed.
    handled: [OnceLock<IntCounter>; CODES.len()],
    seconds: prometheus::Histogram,
}

/// What all calls share.
#[derive(Debug)]
pub(crate) struct Calls {
    methods: HashMap<String, Arc<Method>>,
    /// How many are under way.
    open: IntGauge,
    handled: IntCounterVec,
    requests: IntCounterVec,
    received_bytes: IntCounter,
    sent_bytes: IntCounter,
    /// The largest message that is taken (SRV-2).
    message_max: usize,
}

impl Calls {
    /// Requires: called once for a registry.
    pub(crate) fn new(registry: &Registry, open: IntGauge, message_max: usize) -> Self {
        let labels = ["grpc_type", "grpc_service", "grpc_method"];
        let vec = |name: &str, help: &str, labels: &[&str]| {
            let vec = IntCounterVec::new(Opts::new(name, help), labels).expect("a valid name");
            registry.register(Box::new(vec.clone())).expect("registered once");
            vec
        };
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help).expect("a valid name");
            registry.register(Box::new(counter.clone())).expect("registered once");
            counter
        };
        let started = vec("grpc_server_started_total", "Calls begun.", &labels);
        let received = vec("grpc_server_msg_received_total", "Messages received.", &labels);
        let sent = vec("grpc_server_msg_sent_total", "Messages sent.", &labels);
        let handled = vec(
            "grpc_server_handled_total",
            "Calls ended, whether or not they succeeded.",
            &["grpc_type", "grpc_service", "grpc_method", "grpc_code"],
        );
        let seconds = HistogramOpts::new("grpc_server_handling_seconds", "Seconds from a call's begin to its end.");
        let seconds = HistogramVec::new(seconds, &labels).expect("a valid name");
        registry.register(Box::new(seconds.clone())).expect("registered once");
        let mut methods = HashMap::new();
        for (service, method, kind) in all_methods() {
            let path = format!("/{service}/{method}");
            let labels = [kind.to_owned(), service, method];
            let made = Method {
                is_stream: kind != "unary",
                started: started.with_label_values(&labels),
                received: received.with_label_values(&labels),
                sent: sent.with_label_values(&labels),
                handled: Default::default(),
                seconds: seconds.with_label_values(&labels),
                labels,
            };
            methods.insert(path, Arc::new(made));
        }
        Calls {
            methods,
            open,
            handled,
            requests: vec(
                "etcd_server_client_requests_total",
                "Calls by kind and by the client's version.",
                &["type", "client_api_version"],
            ),
            received_bytes: counter("etcd_network_client_grpc_received_bytes_total", "Bytes received from clients."),
            sent_bytes: counter("etcd_network_client_grpc_sent_bytes_total", "Bytes sent to clients."),
            message_max,
        }
    }

    /// The version in a call's metadata (SRV-6). That of an unknown client is not a label of its own.
    fn version(headers: &HeaderMap) -> Result<&str, Status> {
        let Some(version) = headers.get("client-api-version") else {
            return Ok("unknown");
        };
        let version = std::str::from_utf8(version.as_bytes())
            .map_err(|_| Status::invalid_argument("etcdserver: invalid client api version"))?;
        let minor = version.strip_prefix("3.").filter(|minor| minor.len() <= 2);
        let known = minor.is_some_and(|minor| minor.parse::<u8>().is_ok());
        Ok(if known { version } else { "unknown" })
    }

    fn count(&self, method: &Method, code: Code) {
        let counter = method.handled[code as usize].get_or_init(|| {
            let [kind, service, name] = &method.labels;
            self.handled.with_label_values(&[kind.as_str(), service, name, CODES[code as usize]])
        });
        counter.inc();
    }
}

/// Service, method and kind of everything that is served.
fn all_methods() -> Vec<(String, String, &'static str)> {
    let mut all = vec![
        ("grpc.health.v1.Health".to_owned(), "Check".to_owned(), "unary"),
        ("grpc.health.v1.Health".to_owned(), "Watch".to_owned(), "server_stream"),
    ];
    for service in proto::descriptors().services() {
        for method in service.methods() {
            let kind = match (method.is_client_streaming(), method.is_server_streaming()) {
                (false, false) => "unary",
                (false, true) => "server_stream",
                (true, false) => "client_stream",
                (true, true) => "bidi_stream",
            };
            all.push((service.full_name().to_owned(), method.name().to_owned(), kind));
        }
    }
    all
}

/// Lets a call pass.
pub(crate) async fn pass(State(calls): State<Arc<Calls>>, request: Request, next: Next) -> Response {
    let Some(method) = calls.methods.get(request.uri().path()).cloned() else {
        // Answered that it is not there; no label is made of what a client thinks up.
        return next.run(request).await;
    };
    method.started.inc();
    calls.open.inc();
    let mut call = Call { calls: Arc::clone(&calls), method, begun: Instant::now(), code: None };
    let mut response = match Calls::version(request.headers()) {
        Ok(version) => {
            // A single member always has its leader: `hasleader` asks for nothing more.
            let kind = if call.method.is_stream { "stream" } else { "unary" };
            calls.requests.with_label_values(&[kind, version]).inc();
            let (calls, method) = (Arc::clone(&calls), Arc::clone(&call.method));
            next.run(request.map(|body| Body::new(Received { body, frames: Frames::default(), calls, method }))).await
        }
        Err(status) => status.into_http(),
    };
    call.see(response.headers());
    let held = response.extensions_mut().remove::<Arc<Held>>();
    response.map(|body| Body::new(Sent { body, rest: Bytes::new(), frames: Frames::default(), call, _held: held }))
}

/// A call under way; counted when it ends, however it does.
#[derive(Debug)]
struct Call {
    calls: Arc<Calls>,
    method: Arc<Method>,
    begun: Instant,
    code: Option<Code>,
}

impl Call {
    /// Headers or trailers, which may hold the outcome.
    fn see(&mut self, headers: &HeaderMap) {
        if let Some(status) = headers.get(Status::GRPC_STATUS) {
            self.code = Some(Code::from_bytes(status.as_bytes()));
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.calls.open.dec();
        // Without an outcome the client went.
        self.calls.count(&self.method, self.code.unwrap_or(Code::Cancelled));
        self.method.seconds.observe(self.begun.elapsed().as_secs_f64());
    }
}

/// Where a stream of bytes is in its messages.
#[derive(Debug, Default)]
struct Frames {
    head: [u8; Frames::HEAD_BYTES],
    have: usize,
    /// Bytes of the message that are still to come.
    left: usize,
}

impl Frames {
    const HEAD_BYTES: usize = 5;

    /// Looks at the next bytes; how many messages began in them, or the length of one above `max`.
    fn see(&mut self, mut bytes: &[u8], max: usize) -> Result<u64, usize> {
        let mut messages = 0;
        while !bytes.is_empty() {
            if self.left > 0 {
                let taken = self.left.min(bytes.len());
                self.left -= taken;
                bytes = &bytes[taken..];
                continue;
            }
            let taken = (Self::HEAD_BYTES - self.have).min(bytes.len());
            self.head[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have == Self::HEAD_BYTES {
                let [_, len @ ..] = self.head;
                let len = u32::from_be_bytes(len) as usize;
                if len > max {
                    return Err(len);
                }
                (self.left, self.have) = (len, 0);
                messages += 1;
            }
        }
        Ok(messages)
    }
}

/// A request's body.
struct Received {
    body: Body,
    frames: Frames,
    calls: Arc<Calls>,
    method: Arc<Method>,
}

impl http_body::Body for Received {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        let Some(frame) = ready!(Pin::new(&mut this.body).poll_frame(cx)).transpose()? else {
            return Poll::Ready(None);
        };
        if let Some(data) = frame.data_ref() {
            this.calls.received_bytes.inc_by(data.len() as u64);
            let max = this.calls.message_max;
            match this.frames.see(data, max) {
                Ok(messages) => this.method.received.inc_by(messages),
                Err(len) => {
                    let message = format!("grpc: received message larger than max ({len} vs. {max})");
                    return Poll::Ready(Some(Err(Status::resource_exhausted(message).into())));
                }
            }
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A response's body; the call lives as long.
struct Sent {
    body: Body,
    /// Of the last piece of it. A client that does not read leaves it here, where it is counted, and not with
    /// the connection, which would take it whole.
    rest: Bytes,
    frames: Frames,
    call: Call,
    _held: Option<Arc<Held>>,
}

/// How much of a body is given to the connection at a time.
const PIECE_BYTES: usize = 64 << 10;

impl http_body::Body for Sent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        if !this.rest.is_empty() {
            let piece = this.rest.split_to(this.rest.len().min(PIECE_BYTES));
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame {
            if let Some(data) = frame.data_ref() {
                this.call.calls.sent_bytes.inc_by(data.len() as u64);
                let messages = this.frames.see(data, usize::MAX).unwrap_or_default();
                this.call.method.sent.inc_by(messages);
            }
            if let Some(trailers) = frame.trailers_ref() {
                this.call.see(trailers);
            }
        }
        let frame = frame.map(|frame| {
            frame.map(|frame| match frame.into_data() {
                Ok(mut data) if data.len() > PIECE_BYTES => {
                    let piece = data.split_to(PIECE_BYTES);
                    this.rest = data;
                    Frame::data(piece)
                }
                Ok(data) => Frame::data(data),
                Err(frame) => frame,
            })
        });
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.rest.is_empty() { self.body.size_hint() } else { SizeHint::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_however_the_bytes_are_cut() {
        let mut bytes = Vec::new();
        for len in [0usize, 1, 7, 300] {
            bytes.push(0);
            bytes.extend_from_slice(&u32::try_from(len).expect("small").to_be_bytes());
            bytes.resize(bytes.len() + len, 1);
        }
        for cut in 1..=bytes.len() {
            let mut frames = Frames::default();
            let seen: u64 = bytes.chunks(cut).map(|chunk| frames.see(chunk, 300).expect("small enough")).sum();
            assert_eq!(seen, 4, "cut by {cut}");
            let mut frames = Frames::default();
            let refused = bytes.chunks(cut).find_map(|chunk| frames.see(chunk, 299).err());
            assert_eq!(refused, Some(300), "cut by {cut}");
        }
    }
}
