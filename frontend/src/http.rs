//! HTTP beside gRPC on the same port: probes, version, metrics and variables.

use crate::access::plain;
use crate::proto::etcdserverpb::AlarmType;
use crate::server::{CLUSTER_VERSION, ETCD_VERSION, Server, TERM};
use axum::Router;
use axum::extract::{Path, RawQuery, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use polybolt::{RangeRequest, Span};
use serde_json::json;
use std::borrow::Cow;
use std::fmt::Write;
use std::sync::Arc;

/// What a listener for metrics serves.
pub(crate) fn probes(server: &Arc<Server>) -> Router {
    Router::new()
        .route("/health", any(health))
        .route("/livez", any(livez))
        .route("/livez/{check}", any(livez_one))
        .route("/readyz", any(readyz))
        .route("/readyz/{check}", any(readyz_one))
        .route_layer(middleware::from_fn(only_get))
        // Asked in any way, as etcd's.
        .route("/metrics", any(metrics))
        .fallback(not_found)
        .with_state(Arc::clone(server))
}

/// Everything over HTTP but the gateway.
pub(crate) fn router(server: &Arc<Server>) -> Router {
    let more = Router::new()
        .route("/version", any(version))
        .route("/debug/vars", any(variables))
        .route_layer(middleware::from_fn(only_get))
        .with_state(Arc::clone(server));
    probes(server).merge(more)
}

async fn not_found() -> Response {
    plain(StatusCode::NOT_FOUND, "404 page not found\n")
}

async fn only_get(request: Request, next: Next) -> Response {
    // A path below a probe that there is not is not found, however it is asked for.
    let mut response = if request.method() == Method::GET { next.run(request).await } else { refused(&request) };
    if response.status() == StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
    }
    response
}

fn refused(request: &Request) -> Response {
    let below = |probe: &str, known: &[&str]| {
        request.uri().path().strip_prefix(probe).is_some_and(|name| !known.contains(&name))
    };
    if below("/livez/", &LIVE) || below("/readyz/", &READY) {
        return plain(StatusCode::NOT_FOUND, "404 page not found\n");
    }
    plain(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n")
}

type Shared = State<Arc<Server>>;

/// The values of a parameter; an empty one stands for being there at all.
fn parameters<'a>(query: Option<&'a str>, name: &'a str) -> impl Iterator<Item = Cow<'a, str>> {
    let pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    pairs.filter(move |(key, _)| key == name).map(|(_, value)| value)
}

/// A limited read, and whether writes are still taken.
fn read_check(server: &Server) -> Result<(), String> {
    let request = RangeRequest { limit: 1, ..RangeRequest::new(Span::key("health")) };
    server.keyspace.range(&request).map(drop).map_err(|error| error.to_string())
}

fn write_check(server: &Server) -> Result<(), String> {
    server.engine.failure().map_or(Ok(()), |failure| Err(failure.to_string()))
}

async fn health(State(server): Shared, RawQuery(query): RawQuery) -> Response {
    let query = query.as_deref();
    let excluded = |name: &str| parameters(query, "exclude").any(|value| value == name);
    let serializable = parameters(query, "serializable").next().is_some_and(|value| value == "true");
    let alarm = server.alarms().into_iter().find_map(|alarm| match AlarmType::try_from(alarm.alarm) {
        Ok(AlarmType::None) => None,
        Ok(kind) => (!excluded(kind.as_str_name())).then(|| format!("ALARM {}", kind.as_str_name())),
        Err(_) => Some("ALARM UNKNOWN".to_owned()),
    });
    // There is always a leader. One that takes no writes cannot say that it has read the newest.
    let reason = alarm.or_else(|| {
        let read = read_check(&server).and_then(|()| if serializable { Ok(()) } else { write_check(&server) });
        read.err().map(|error| format!("RANGE ERROR:{error}"))
    });
    server.metrics.health(reason.is_none());
    // Field order as etcd has it.
    let body = |health: bool, reason: &str| {
        format!("{{\"health\":\"{health}\",\"reason\":{}}}", serde_json::Value::from(reason))
    };
    match reason {
        None => ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body(true, "")).into_response(),
        Some(reason) => plain(StatusCode::SERVICE_UNAVAILABLE, body(false, &reason) + "\n"),
    }
}

async fn version() -> Response {
    let body = json!({ "etcdserver": ETCD_VERSION, "etcdcluster": CLUSTER_VERSION, "storage": CLUSTER_VERSION });
    ([(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

async fn metrics(State(server): Shared) -> Response {
    let text = server.metrics.text();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

/// etcd's, but for the statistics of Go's memory.
async fn variables(State(server): Shared) -> Response {
    let cmdline: Vec<String> = std::env::args_os().map(|part| part.to_string_lossy().into_owned()).collect();
    let (member, index) = (format!("{:x}", server.member_id), server.keyspace.revision());
    let body = json!({
        "cmdline": cmdline,
        "file_descriptor_limit": crate::metrics::descriptor_limit(),
        "raft.status": {
            "id": member, "term": TERM, "commit": index, "applied": index, "lead": member, "raftState": "StateLeader",
        },
    });
    ([(header::CONTENT_TYPE, "application/json; charset=utf-8")], body.to_string()).into_response()
}

const LIVE: [&str; 1] = ["serializable_read"];
const READY: [&str; 4] = ["data_corruption", "serializable_read", "linearizable_read", "non_learner"];

fn check(server: &Server, name: &str) -> Result<(), String> {
    match name {
        "data_corruption" if server.has_alarm(AlarmType::Corrupt) => Err("alarm activated: CORRUPT".to_owned()),
        "serializable_read" => read_check(server),
        // One that takes no writes cannot be ahead of anybody.
        "linearizable_read" => read_check(server).and_then(|()| write_check(server)),
        _ => Ok(()),
    }
}

fn probe(server: &Server, checks: &[&str], query: Option<&str>) -> Response {
    let excluded = |name: &&&str| !parameters(query, "exclude").any(|value| value == **name);
    let verbose = parameters(query, "verbose").next().is_some();
    let (mut lines, mut failed) = (String::new(), false);
    for name in checks.iter().filter(excluded) {
        let line = match check(server, name) {
            Ok(()) => format!("[+]{name} ok"),
            Err(error) => {
                failed = true;
                format!("[-]{name} failed: {error}")
            }
        };
        writeln!(lines, "{line}").expect("a string takes everything");
    }
    match (failed, verbose) {
        (true, _) => plain(StatusCode::SERVICE_UNAVAILABLE, lines + "\n"),
        (false, true) => plain(StatusCode::OK, lines + "ok\n"),
        (false, false) => plain(StatusCode::OK, "ok\n"),
    }
}

async fn livez(State(server): Shared, RawQuery(query): RawQuery) -> Response {
    probe(&server, &LIVE, query.as_deref())
}

async fn readyz(State(server): Shared, RawQuery(query): RawQuery) -> Response {
    probe(&server, &READY, query.as_deref())
}

async fn probe_one(server: &Server, known: &[&str], name: &str, query: Option<&str>) -> Response {
    match known.iter().find(|known| **known == name) {
        Some(name) => probe(server, &[name], query),
        None => not_found().await,
    }
}

async fn livez_one(State(server): Shared, Path(name): Path<String>, RawQuery(query): RawQuery) -> Response {
    probe_one(&server, &LIVE, &name, query.as_deref()).await
}

async fn readyz_one(State(server): Shared, Path(name): Path<String>, RawQuery(query): RawQuery) -> Response {
    probe_one(&server, &READY, &name, query.as_deref()).await
}
