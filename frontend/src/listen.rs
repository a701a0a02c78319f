//! Serving it all: gRPC and HTTP on every client URL, probes and metrics on their own.

use crate::access::{self, Access, Secure};
use crate::admin::AdminService;
use crate::auth::AuthService;
use crate::authority::Tolerant;
use crate::calls;
use crate::cluster::ClusterService;
use crate::election::ElectionService;
use crate::gateway;
use crate::http;
use crate::inspect::InspectService;
use crate::kv::KvService;
use crate::lease::LeaseService;
use crate::lock::LockService;
use crate::maintenance::MaintenanceService;
use crate::metrics::Up;
use crate::proto::encoded::k_v_server::KVServer;
use crate::proto::encoded::watch_server::WatchServer;
use crate::proto::etcdserverpb as pb;
use crate::proto::v1::admin_server::AdminServer;
use crate::proto::v1::inspect_server::InspectServer;
use crate::proto::v3electionpb::election_server::ElectionServer;
use crate::proto::v3lockpb::lock_server::LockServer;
use crate::server::Server;
use crate::tls::ServerConfig;
use crate::watch::WatchService;
use axum::http::{Request, header};
use axum::{Router, middleware};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, lookup_host};
use tokio_rustls::TlsAcceptor;
use tonic::service::Routes;
use tower::ServiceExt;

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long open calls may go on after a stop.
const GRACE: Duration = Duration::from_secs(5);
/// Flow-control windows: a list of large values should not wait for the client's acknowledgements.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// Something to listen on.
#[derive(Debug)]
pub struct Listener {
    tcp: TcpListener,
    tls: Option<Arc<ServerConfig>>,
}

/// The host of a URL, without brackets.
pub fn host(url: &str) -> Option<&str> {
    let (_, address) = url.split_once("://")?;
    let (host, _) = address.trim_end_matches('/').rsplit_once(':')?;
    Some(host.trim_start_matches('[').trim_end_matches(']'))
}

/// Binds the address of a URL such as `http://127.0.0.1:2379`; one with https needs `tls`.
///
/// # Errors
/// In words, what cannot be used.
pub async fn bind(url: &str, tls: Option<&Arc<ServerConfig>>) -> Result<Listener, String> {
    let (address, tls) = match url.split_once("://") {
        Some(("http", address)) => (address, None),
        Some(("https", _)) if tls.is_none() => {
            return Err(format!("cannot listen on {url}: --cert-file and --key-file are needed, or --auto-tls"));
        }
        Some(("https", address)) => (address, tls.cloned()),
        Some((scheme, _)) => {
            return Err(format!("cannot listen on {url}: there is no scheme {scheme:?}, use http or https"));
        }
        None => {
            return Err(format!("cannot listen on {url:?}: a URL such as http://127.0.0.1:2379 is needed"));
        }
    };
    let bad = |error: std::io::Error| format!("cannot listen on {url}: {error}");
    let addresses: Vec<SocketAddr> = lookup_host(address.trim_end_matches('/')).await.map_err(bad)?.collect();
    Ok(Listener { tcp: TcpListener::bind(&addresses[..]).await.map_err(bad)?, tls })
}

/// What one URL serves, split by content type as etcd does (SRV-11).
#[derive(Debug, Clone)]
struct Served {
    grpc: Option<Router>,
    web: Router,
}

impl Served {
    /// Everything, as clients may ask for it.
    async fn clients(server: &Arc<Server>, access: &Access) -> Served {
        let access = middleware::from_fn_with_state(Arc::new(access.clone()), access::check);
        let grpc = services(server).await;
        let web = http::router(server).merge(gateway::router(grpc.clone(), server.settings.message_max()));
        Served { grpc: Some(grpc), web: web.layer(access) }
    }

    fn router<B>(&self, request: &Request<B>) -> Router {
        let kind = request.headers().get(header::CONTENT_TYPE);
        let is_grpc = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        self.grpc.as_ref().filter(|_| is_grpc).unwrap_or(&self.web).clone()
    }
}

/// The gRPC services.
async fn services(server: &Arc<Server>) -> Router {
    let max = server.settings.message_max();
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_service_status("", tonic_health::ServingStatus::Serving).await;
    let grpc = Routes::new(KVServer::new(KvService(Arc::clone(server))).max_decoding_message_size(max))
        .add_service(WatchServer::new(WatchService(Arc::clone(server))).max_decoding_message_size(max))
        .add_service(pb::lease_server::LeaseServer::new(LeaseService(Arc::clone(server))))
        .add_service(pb::cluster_server::ClusterServer::new(ClusterService(Arc::clone(server))))
        .add_service(pb::maintenance_server::MaintenanceServer::new(MaintenanceService(Arc::clone(server))))
        .add_service(pb::auth_server::AuthServer::new(AuthService(Arc::clone(server))))
        .add_service(LockServer::new(LockService(Arc::clone(server))))
        .add_service(ElectionServer::new(ElectionService(Arc::clone(server))))
        .add_service(InspectServer::new(InspectService(Arc::clone(server))))
        .add_service(AdminServer::new(AdminService(Arc::clone(server))))
        .add_service(health);
    let calls = Arc::clone(&server.metrics.calls);
    grpc.prepare().into_axum_router().layer(middleware::from_fn_with_state(calls, calls::pass))
}

/// Answers as a client URL does, without a connection: for fuzzers.
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub async fn without_connection(
    server: &Arc<Server>,
    access: &Access,
) -> impl AsyncFn(Request<axum::body::Body>) -> axum::response::Response {
    let served = Served::clients(server, access).await;
    async move |request: Request<axum::body::Body>| {
        let Ok(response) = served.router(&request).oneshot(request).await;
        response
    }
}

/// Serves until `server` is stopped, then lets open calls end.
pub async fn serve(server: Arc<Server>, clients: Vec<Listener>, metrics: Vec<Listener>, options: Options) {
    let client = Served::clients(&server, &options.access).await;
    let probes = Served { grpc: None, web: http::probes(&server) };
    let options = Arc::new(options);
    let mut accepting = Vec::new();
    let listeners = clients.into_iter().map(|listener| (listener, &client));
    for (listener, served) in listeners.chain(metrics.into_iter().map(|listener| (listener, &probes))) {
        accepting.push(tokio::spawn(accept(Arc::clone(&server), listener, served.clone(), Arc::clone(&options))));
    }
    for task in accepting {
        drop(task.await);
    }
}

/// How connections are served.
#[derive(Debug, Clone)]
pub struct Options {
    /// The most streams of one connection; none is no limit.
    pub streams_max: Option<u32>,
    /// A connection on which nothing comes for so long is asked whether anybody is there; 0 is never.
    pub keepalive_interval: Duration,
    /// How long it has to answer.
    pub keepalive_timeout: Duration,
    /// Who may ask over HTTP.
    pub access: Access,
}

/// Serves a connection to its end. `secure` says that it is encrypted.
async fn serve_connection<S>(
    builder: &Builder<TokioExecutor>,
    stream: S,
    served: Served,
    secure: bool,
    watcher: Watcher,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |mut request: Request<Incoming>| {
        if secure {
            request.extensions_mut().insert(Secure);
        }
        served.router(&request).oneshot(request)
    });
    let connection = builder.serve_connection(TokioIo::new(Tolerant::new(stream)), service).into_owned();
    if let Err(error) = watcher.watch(connection).await {
        tracing::debug!(%error, "connection ended");
    }
}

async fn accept(server: Arc<Server>, listener: Listener, served: Served, options: Arc<Options>) {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new());
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(options.streams_max)
        .keep_alive_interval((!options.keepalive_interval.is_zero()).then_some(options.keepalive_interval))
        .keep_alive_timeout(options.keepalive_timeout);
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            () = server.stop.cancelled() => break,
            accepted = listener.tcp.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, or the peer went: neither ends the server.
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "no TCP_NODELAY");
        }
        let (builder, served, watcher) = (builder.clone(), served.clone(), graceful.watcher());
        let tls = listener.tls.clone().map(TlsAcceptor::from);
        let up = Up::new(&server.metrics.connections);
        tokio::spawn(async move {
            let _up = up;
            match tls {
                None => serve_connection(&builder, stream, served, false, watcher).await,
                Some(tls) => match tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
                    Ok(Ok(stream)) => serve_connection(&builder, stream, served, true, watcher).await,
                    Ok(Err(error)) => tracing::debug!(%error, "no TLS"),
                    Err(_) => tracing::debug!("a TLS handshake took too long"),
                },
            }
        });
    }
    drop(listener);
    if tokio::time::timeout(GRACE, graceful.shutdown()).await.is_err() {
        tracing::warn!("some calls did not end in time and are cut off");
    }
}
