//! HTTP beside gRPC on the same port: probes, version and metrics.

use crate::proto::etcdserverpb::AlarmType;
use crate::server::{CLUSTER_VERSION, ETCD_VERSION, Server};
use axum::Router;
use axum::extract::{Path, RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use polybolt::{RangeRequest, Span};
use std::fmt::Write;
use std::sync::Arc;

/// Everything but gRPC.
pub(crate) fn router(server: &Arc<Server>) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/version", get(version))
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/livez/{check}", get(livez_one))
        .route("/readyz", get(readyz))
        .route("/readyz/{check}", get(readyz_one))
        .with_state(Arc::clone(server))
}

type Shared = State<Arc<Server>>;

/// The values of a parameter; an empty one stands for being there at all.
fn parameters<'a>(query: Option<&'a str>, name: &'a str) -> impl Iterator<Item = &'a str> {
    let pairs = query.unwrap_or_default().split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.filter(move |(key, _)| *key == name).map(|(_, value)| value)
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
    let alarm = server.alarms().into_iter().find_map(|alarm| match AlarmType::try_from(alarm.alarm) {
        Ok(AlarmType::None) => None,
        Ok(kind) => (!excluded(kind.as_str_name())).then(|| format!("ALARM {}", kind.as_str_name())),
        Err(_) => Some("ALARM UNKNOWN".to_owned()),
    });
    let reason = alarm.or_else(|| {
        read_check(&server).and_then(|()| write_check(&server)).err().map(|error| format!("RANGE ERROR:{error}"))
    });
    let (code, health) =
        if reason.is_some() { (StatusCode::SERVICE_UNAVAILABLE, "false") } else { (StatusCode::OK, "true") };
    let reason = reason.unwrap_or_default();
    // Field order as etcd has it.
    let body = format!("{{\"health\":\"{health}\",\"reason\":{}}}", serde_json::Value::from(reason));
    (code, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response()
}

async fn version() -> Response {
    let body =
        serde_json::json!({ "etcdserver": ETCD_VERSION, "etcdcluster": CLUSTER_VERSION, "storage": CLUSTER_VERSION });
    ([(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

async fn metrics(State(server): Shared) -> Response {
    let text = server.metrics.text();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
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
    let code = if failed { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    let body = match (failed, verbose) {
        (true, _) => lines,
        (false, true) => lines + "ok\n",
        (false, false) => "ok\n".to_owned(),
    };
    (code, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response()
}

async fn livez(State(server): Shared, RawQuery(query): RawQuery) -> Response {
    probe(&server, &LIVE, query.as_deref())
}

async fn readyz(State(server): Shared, RawQuery(query): RawQuery) -> Response {
    probe(&server, &READY, query.as_deref())
}

fn probe_one(server: &Server, known: &[&str], name: &str, query: Option<&str>) -> Response {
    match known.iter().find(|known| **known == name) {
        Some(name) => probe(server, &[name], query),
        None => (StatusCode::NOT_FOUND, "404 page not found\n").into_response(),
    }
}

async fn livez_one(State(server): Shared, Path(name): Path<String>, RawQuery(query): RawQuery) -> Response {
    probe_one(&server, &LIVE, &name, query.as_deref())
}

async fn readyz_one(State(server): Shared, Path(name): Path<String>, RawQuery(query): RawQuery) -> Response {
    probe_one(&server, &READY, &name, query.as_deref())
}
