//! Who may ask over HTTP: origins (CORS) and the names that this server goes by.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::collections::BTreeSet;
use std::sync::Arc;

/// What is let in. An empty set, or one with `*`, is everything.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// Origins whose pages may ask (`--cors`).
    pub origins: BTreeSet<String>,
    /// Names in the Host header (`--host-whitelist`): against DNS rebinding.
    pub hosts: BTreeSet<String>,
}

/// On a request whose connection is encrypted: its name was checked by TLS.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Secure;

fn is_in(set: &BTreeSet<String>, name: &str) -> bool {
    set.is_empty() || set.contains("*") || set.contains(name)
}

/// The asked host without its port.
fn host<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> &'a str {
    let header = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let host = uri.authority().map(|authority| authority.as_str()).or(header).unwrap_or_default();
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            name.trim_start_matches('[').trim_end_matches(']')
        }
        _ => host,
    }
}

/// Checks a request before anything else sees it, and adds the headers for browsers to its answer.
pub(crate) async fn check(State(access): State<Arc<Access>>, request: Request, next: Next) -> Response {
    let asked = host(request.uri(), request.headers());
    if request.extensions().get::<Secure>().is_none() && !is_in(&access.hosts, asked) {
        let body = format!(
            "polybolt does not go by the name of the Host header, {asked:?}: this keeps pages that rebind DNS out. \
             Use TLS, or add the name to --host-whitelist.\n"
        );
        return plain(StatusCode::MISDIRECTED_REQUEST, body);
    }
    let origin = request.headers().get(header::ORIGIN).cloned();
    let mut response =
        if request.method() == Method::OPTIONS { StatusCode::OK.into_response() } else { next.run(request).await };
    if let Some(origin) = allowed(&access.origins, origin) {
        let headers = response.headers_mut();
        let mut set = |name: HeaderName, value: &'static str| headers.insert(name, HeaderValue::from_static(value));
        set(header::ACCESS_CONTROL_ALLOW_METHODS, "POST, GET, OPTIONS, PUT, DELETE");
        set(header::ACCESS_CONTROL_ALLOW_HEADERS, "accept, content-type, authorization");
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    }
    response
}

/// What an answer says of who may read it.
fn allowed(origins: &BTreeSet<String>, origin: Option<HeaderValue>) -> Option<HeaderValue> {
    if is_in(origins, "*") {
        return Some(HeaderValue::from_static("*"));
    }
    origin.filter(|origin| origin.to_str().is_ok_and(|origin| origins.contains(origin)))
}

/// Text that no browser should take for anything else.
pub(crate) fn plain(code: StatusCode, body: impl Into<String>) -> Response {
    let headers = [(header::CONTENT_TYPE, "text/plain; charset=utf-8"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    (code, headers, body.into()).into_response()
}
