//! JSON over HTTP, as etcd's gateway has it: proto3 JSON in and out of the gRPC services.
//!
//! A request becomes a gRPC call of the same services, through the same layer: its JSON is turned into the
//! method's message by the descriptors, the answer's messages into JSON. What a stream sends is a line each.
//! No method is named here but in the table of paths.

use crate::proto;
use axum::Router;
use axum::body::{Body, BodyDataStream, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use bytes::{Buf, BufMut, BytesMut};
use futures_util::stream::{self, Stream, StreamExt, TryStreamExt};
use http_body::Body as _;
use prost::Message;
use prost_reflect::{DeserializeOptions, DynamicMessage, MessageDescriptor, MethodDescriptor, SerializeOptions};
use std::pin::Pin;
use std::sync::Arc;
use tonic::{Code, Status};
use tower::ServiceExt;

/// Below `/v3/`: a path, and whose method it is (GW-1).
const PATHS: &[(&str, &str, &str)] = &[
    ("kv/range", "etcdserverpb.KV", "Range"),
    ("kv/put", "etcdserverpb.KV", "Put"),
    ("kv/deleterange", "etcdserverpb.KV", "DeleteRange"),
    ("kv/txn", "etcdserverpb.KV", "Txn"),
    ("kv/compaction", "etcdserverpb.KV", "Compact"),
    ("watch", "etcdserverpb.Watch", "Watch"),
    ("lease/grant", "etcdserverpb.Lease", "LeaseGrant"),
    ("lease/revoke", "etcdserverpb.Lease", "LeaseRevoke"),
    ("lease/keepalive", "etcdserverpb.Lease", "LeaseKeepAlive"),
    ("lease/timetolive", "etcdserverpb.Lease", "LeaseTimeToLive"),
    ("lease/leases", "etcdserverpb.Lease", "LeaseLeases"),
    ("kv/lease/revoke", "etcdserverpb.Lease", "LeaseRevoke"),
    ("kv/lease/timetolive", "etcdserverpb.Lease", "LeaseTimeToLive"),
    ("kv/lease/leases", "etcdserverpb.Lease", "LeaseLeases"),
    ("cluster/member/add", "etcdserverpb.Cluster", "MemberAdd"),
    ("cluster/member/remove", "etcdserverpb.Cluster", "MemberRemove"),
    ("cluster/member/update", "etcdserverpb.Cluster", "MemberUpdate"),
    ("cluster/member/list", "etcdserverpb.Cluster", "MemberList"),
    ("cluster/member/promote", "etcdserverpb.Cluster", "MemberPromote"),
    ("maintenance/alarm", "etcdserverpb.Maintenance", "Alarm"),
    ("maintenance/status", "etcdserverpb.Maintenance", "Status"),
    ("maintenance/defragment", "etcdserverpb.Maintenance", "Defragment"),
    ("maintenance/hash", "etcdserverpb.Maintenance", "Hash"),
    ("maintenance/hashkv", "etcdserverpb.Maintenance", "HashKV"),
    ("maintenance/snapshot", "etcdserverpb.Maintenance", "Snapshot"),
    ("maintenance/transfer-leadership", "etcdserverpb.Maintenance", "MoveLeader"),
    ("maintenance/downgrade", "etcdserverpb.Maintenance", "Downgrade"),
    ("auth/enable", "etcdserverpb.Auth", "AuthEnable"),
    ("auth/disable", "etcdserverpb.Auth", "AuthDisable"),
    ("auth/status", "etcdserverpb.Auth", "AuthStatus"),
    ("auth/authenticate", "etcdserverpb.Auth", "Authenticate"),
    ("auth/user/add", "etcdserverpb.Auth", "UserAdd"),
    ("auth/user/get", "etcdserverpb.Auth", "UserGet"),
    ("auth/user/list", "etcdserverpb.Auth", "UserList"),
    ("auth/user/delete", "etcdserverpb.Auth", "UserDelete"),
    ("auth/user/changepw", "etcdserverpb.Auth", "UserChangePassword"),
    ("auth/user/grant", "etcdserverpb.Auth", "UserGrantRole"),
    ("auth/user/revoke", "etcdserverpb.Auth", "UserRevokeRole"),
    ("auth/role/add", "etcdserverpb.Auth", "RoleAdd"),
    ("auth/role/get", "etcdserverpb.Auth", "RoleGet"),
    ("auth/role/list", "etcdserverpb.Auth", "RoleList"),
    ("auth/role/delete", "etcdserverpb.Auth", "RoleDelete"),
    ("auth/role/grant", "etcdserverpb.Auth", "RoleGrantPermission"),
    ("auth/role/revoke", "etcdserverpb.Auth", "RoleRevokePermission"),
    ("lock/lock", "v3lockpb.Lock", "Lock"),
    ("lock/unlock", "v3lockpb.Lock", "Unlock"),
    ("election/campaign", "v3electionpb.Election", "Campaign"),
    ("election/proclaim", "v3electionpb.Election", "Proclaim"),
    ("election/leader", "v3electionpb.Election", "Leader"),
    ("election/observe", "v3electionpb.Election", "Observe"),
    ("election/resign", "v3electionpb.Election", "Resign"),
];

/// The gateway's side of the services.
#[derive(Debug)]
struct Gateway {
    /// The gRPC services, with the layer that every call passes.
    grpc: Router,
    /// The largest message in JSON: base64 makes four bytes of three, and names and spaces come on top.
    json_max: usize,
}

/// The gateway to `grpc`, whose messages are at most so large.
pub(crate) fn router(grpc: Router, message_max: usize) -> Router {
    let gateway = Arc::new(Gateway { grpc, json_max: message_max.saturating_mul(2) });
    Router::new()
        .route("/v3/{*path}", any(call))
        .route("/v3beta/{*path}", any(call))
        .route("/v3/", any(not_found))
        .with_state(gateway)
}

async fn not_found() -> Response {
    error(&Status::not_found("Not Found")).into_response()
}

fn method(path: &str) -> Option<MethodDescriptor> {
    let (_, service, name) = PATHS.iter().find(|(known, _, _)| *known == path)?;
    proto::descriptors().get_service_by_name(service)?.methods().find(|method| method.name() == *name)
}

async fn call(State(gateway): State<Arc<Gateway>>, Path(path): Path<String>, request: Request) -> Response {
    let Some(method) = method(&path) else {
        return not_found().await;
    };
    if request.method() != Method::POST {
        return error(&Status::unimplemented("Method Not Allowed")).into_response();
    }
    gateway.call(&method, request).await.unwrap_or_else(|status| error(&status).into_response())
}

impl Gateway {
    async fn call(&self, method: &MethodDescriptor, request: Request) -> Result<Response, Status> {
        let (parts, body) = request.into_parts();
        let mut body = body.into_data_stream();
        let sent = if method.is_client_streaming() {
            Body::from_stream(messages(body, method.input(), self.json_max))
        } else {
            // Only the first object is looked at, as at etcd; none is an empty message.
            let object = next_object(&mut body, &mut Objects::default(), self.json_max).await?;
            let message = object.map(|object| from_json(&object, &method.input())).transpose()?;
            Body::from(framed(&message.unwrap_or_default()))
        };
        let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
        let mut call = Request::post(path).body(sent).map_err(|error| Status::internal(error.to_string()))?;
        *call.headers_mut() = metadata(&parts.headers);
        let Ok(response) = self.grpc.clone().oneshot(call).await;
        let (parts, body) = response.into_parts();
        if let Some(status) = Status::from_header_map(&parts.headers).filter(|status| status.code() != Code::Ok) {
            return Err(status);
        }
        let mut answers = Box::pin(answers(body, method.output()));
        // The first decides about the status line.
        let first = answers.next().await.transpose()?;
        if !method.is_server_streaming() {
            let message = first.ok_or_else(|| Status::internal("the call was answered by nothing"))?;
            let json = to_json(&message)?;
            // It may still have failed.
            answers.try_next().await?;
            return Ok(json_response(StatusCode::OK, json));
        }
        let rest = stream::iter(first.map(Ok)).chain(answers).map(|answer| line(answer.as_ref()));
        Ok(json_response(StatusCode::OK, Body::from_stream(rest.map(Ok::<_, std::convert::Infallible>))))
    }
}

fn json_response(code: StatusCode, body: impl Into<Body>) -> Response {
    (code, [(header::CONTENT_TYPE, "application/json")], body.into()).into_response()
}

/// What a call is told of the request: who asks (GW-5), and what is meant as metadata.
fn metadata(headers: &HeaderMap) -> HeaderMap {
    let mut metadata = HeaderMap::new();
    metadata.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    metadata.insert(header::TE, HeaderValue::from_static("trailers"));
    for (name, value) in headers {
        if name == header::AUTHORIZATION {
            metadata.append(name, value.clone());
        }
        let meant = name.as_str().strip_prefix("grpc-metadata-");
        if let Some(name) = meant.and_then(|name| HeaderName::from_bytes(name.as_bytes()).ok()) {
            metadata.append(name, value.clone());
        }
    }
    metadata
}

/// A message on the gRPC wire.
fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(FRAME_HEAD_BYTES + message.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put_slice(message);
    frame.freeze()
}

const FRAME_HEAD_BYTES: usize = 5;

fn from_json(json: &[u8], kind: &MessageDescriptor) -> Result<Vec<u8>, Status> {
    let options = DeserializeOptions::new().deny_unknown_fields(false);
    let mut json = serde_json::Deserializer::from_slice(json);
    let message = DynamicMessage::deserialize_with_options(kind.clone(), &mut json, &options);
    let message = message.map_err(|error| Status::invalid_argument(format!("proto: {error}")))?;
    Ok(message.encode_to_vec())
}

fn to_json(message: &DynamicMessage) -> Result<Vec<u8>, Status> {
    let options = SerializeOptions::new().use_proto_field_name(true);
    let mut json = Vec::new();
    let written = message.serialize_with_options(&mut serde_json::Serializer::new(&mut json), &options);
    written.map_err(|error| Status::internal(error.to_string()))?;
    Ok(json)
}

/// Cuts a stream of bytes into JSON objects, each looked at once.
#[derive(Debug, Default)]
struct Objects {
    bytes: BytesMut,
    /// Up to here it was looked at.
    seen: usize,
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Objects {
    /// The next whole object; None if there is none yet.
    fn take(&mut self) -> Result<Option<Bytes>, Status> {
        if self.depth == 0 {
            let spaces = self.bytes.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
            self.bytes.advance(spaces);
            if let Some(byte) = self.bytes.first().filter(|byte| **byte != b'{') {
                let token = char::from(*byte);
                return Err(Status::invalid_argument(format!(
                    "proto: syntax error: an object is needed, not {token:?}"
                )));
            }
        }
        while let Some(byte) = self.bytes.get(self.seen).copied() {
            self.seen += 1;
            if self.in_string {
                self.in_string = self.escaped || byte != b'"';
                self.escaped = !self.escaped && byte == b'\\';
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
            if self.depth == 0 {
                let object = self.bytes.split_to(self.seen).freeze();
                self.seen = 0;
                return Ok(Some(object));
            }
        }
        Ok(None)
    }

    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

/// The next JSON object of a body; None at its end.
async fn next_object(body: &mut BodyDataStream, objects: &mut Objects, max: usize) -> Result<Option<Bytes>, Status> {
    loop {
        if let Some(object) = objects.take()? {
            return Ok(Some(object));
        }
        if objects.bytes.len() > max {
            let message = format!("grpc: received message larger than max (JSON of more than {max} bytes)");
            return Err(Status::resource_exhausted(message));
        }
        match body.next().await {
            Some(Ok(bytes)) => objects.bytes.extend_from_slice(&bytes),
            None if objects.is_empty() => return Ok(None),
            None => return Err(Status::invalid_argument("unexpected EOF")),
            Some(Err(error)) => return Err(Status::cancelled(error.to_string())),
        }
    }
}

/// The messages of a request that streams, on the gRPC wire. They end at the first that cannot be.
fn messages(
    body: BodyDataStream,
    kind: MessageDescriptor,
    max: usize,
) -> impl Stream<Item = Result<Bytes, Status>> + Send {
    stream::try_unfold((body, Objects::default()), move |(mut body, mut objects)| {
        let kind = kind.clone();
        async move {
            let Some(object) = next_object(&mut body, &mut objects, max).await? else {
                return Ok(None);
            };
            Ok(Some((framed(&from_json(&object, &kind)?), (body, objects))))
        }
    })
}

/// The messages of an answer, and the error that ends it, if one does.
fn answers(body: Body, kind: MessageDescriptor) -> impl Stream<Item = Result<DynamicMessage, Status>> + Send {
    let state = (body, BytesMut::new(), false);
    stream::try_unfold(state, move |(mut body, mut bytes, mut ended)| {
        let kind = kind.clone();
        async move {
            loop {
                if bytes.len() >= FRAME_HEAD_BYTES {
                    let len = (&bytes[1..FRAME_HEAD_BYTES]).get_u32() as usize;
                    if bytes.len() - FRAME_HEAD_BYTES >= len {
                        bytes.advance(FRAME_HEAD_BYTES);
                        let message = DynamicMessage::decode(kind, bytes.split_to(len).freeze());
                        let message = message.map_err(|error| Status::internal(error.to_string()))?;
                        return Ok(Some((message, (body, bytes, ended))));
                    }
                }
                if ended {
                    return Ok(None);
                }
                match std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
                    None => ended = true,
                    Some(Err(error)) => return Err(Status::from_error(error.into())),
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(data) => bytes.extend_from_slice(&data),
                        Err(frame) => {
                            let status = frame.trailers_ref().and_then(Status::from_header_map);
                            if let Some(status) = status.filter(|status| status.code() != Code::Ok) {
                                return Err(status);
                            }
                        }
                    },
                }
            }
        }
    })
}

/// A line of a stream (GW-3).
fn line(answer: Result<&DynamicMessage, &Status>) -> Bytes {
    let mut line = BytesMut::new();
    match answer.map_err(Clone::clone).and_then(to_json) {
        Ok(json) => {
            line.put_slice(b"{\"result\":");
            line.put_slice(&json);
        }
        Err(status) => {
            line.put_slice(b"{\"error\":");
            line.put_slice(error_json(&status).as_bytes());
        }
    }
    line.put_slice(b"}\n");
    line.freeze()
}

fn error_json(status: &Status) -> String {
    serde_json::json!({ "code": status.code() as i32, "message": status.message() }).to_string()
}

/// A status as HTTP has it (GW-4).
fn error(status: &Status) -> Response {
    let code = match status.code() {
        Code::Ok => 200,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => 400,
        Code::Unauthenticated => 401,
        Code::PermissionDenied => 403,
        Code::NotFound => 404,
        Code::AlreadyExists | Code::Aborted => 409,
        Code::ResourceExhausted => 429,
        Code::Cancelled => 499,
        Code::Unknown | Code::Internal | Code::DataLoss => 500,
        Code::Unimplemented => 501,
        Code::Unavailable => 503,
        Code::DeadlineExceeded => 504,
    };
    let code = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    json_response(code, error_json(status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_has_a_method_and_every_method_but_one_a_path_gw_1() {
        for (path, _, _) in PATHS {
            assert!(method(path).is_some(), "{path}");
        }
        let reached: Vec<_> = PATHS.iter().map(|(_, service, method)| format!("{service}.{method}")).collect();
        let all = proto::descriptors().services().flat_map(|service| service.methods().collect::<Vec<_>>());
        let missing: Vec<_> = all
            .map(|method| method.full_name().to_owned())
            .filter(|name| !reached.contains(name) && !name.starts_with("polybolt."))
            .collect();
        assert_eq!(missing, ["etcdserverpb.KV.RangeStream"]);
    }

    #[test]
    fn objects_are_cut_however_the_bytes_come() {
        let text = r#" {"a":"}\"{\\"} {"b":[{"c":{}}, "]"]}{} "#;
        for cut in 1..=text.len() {
            let (mut objects, mut found) = (Objects::default(), Vec::new());
            for chunk in text.as_bytes().chunks(cut) {
                objects.bytes.extend_from_slice(chunk);
                while let Some(object) = objects.take().expect("objects") {
                    found.push(String::from_utf8(object.to_vec()).expect("text"));
                }
            }
            assert_eq!(found, [r#"{"a":"}\"{\\"}"#, r#"{"b":[{"c":{}}, "]"]}"#, "{}"]);
            assert!(objects.is_empty());
        }
        for bad in ["[]", "null", "\"x\"", "5", "}"] {
            assert!(Objects { bytes: BytesMut::from(bad), ..Objects::default() }.take().is_err(), "{bad}");
        }
    }
}
