//! Connections to the servers under load.

use super::error::{Error, chain};
use super::options::Options;
use crate::proto::etcdserverpb as pb;
use pb::auth_client::AuthClient;
use pb::kv_client::KvClient;
use pb::maintenance_client::MaintenanceClient;
use pb::watch_client::WatchClient;
use std::collections::BTreeMap;
use std::time::Duration;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// What a server may send ahead of a stream and of a connection: more than a list of a few thousand keys.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// Puts the token of a login on each request.
#[derive(Debug, Clone)]
pub(super) struct Login(Option<MetadataValue<Ascii>>);

impl Interceptor for Login {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("token", token.clone());
        }
        Ok(request)
    }
}

/// A connection.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    /// Whose, as it was given.
    pub(super) endpoint: String,
    channel: Channel,
    login: Login,
}

impl Connection {
    pub(super) fn kv(&self) -> KvClient<InterceptedService<Channel, Login>> {
        KvClient::with_interceptor(self.channel.clone(), self.login.clone()).max_decoding_message_size(usize::MAX)
    }

    pub(super) fn watch(&self) -> WatchClient<InterceptedService<Channel, Login>> {
        WatchClient::with_interceptor(self.channel.clone(), self.login.clone()).max_decoding_message_size(usize::MAX)
    }

    pub(super) fn refused(&self, doing: &'static str) -> impl Fn(Status) -> Error + Send + 'static + use<> {
        let endpoint = self.endpoint.clone();
        move |status| Error::Refused { endpoint: endpoint.clone(), doing, status: Box::new(status) }
    }

    /// What the server calls its version; empty if it does not say.
    pub(super) async fn version(&self) -> String {
        let mut client = MaintenanceClient::with_interceptor(self.channel.clone(), self.login.clone());
        let status = client.status(pb::StatusRequest {}).await;
        status.map(|status| status.into_inner().version).unwrap_or_default()
    }
}

/// As many connections as asked for, to the endpoints by turns.
pub(super) async fn connect(options: &Options) -> Result<Vec<Connection>, Error> {
    let mut logins: BTreeMap<&str, Login> = BTreeMap::new();
    let mut connections = Vec::new();
    for (_, endpoint) in (0..options.conns).zip(options.endpoints.iter().cycle()) {
        let channel = open(endpoint, options.timeout).await?;
        let login = match logins.get(endpoint.as_str()) {
            Some(login) => login.clone(),
            None => log_in(endpoint, &channel, options.user.as_deref()).await?,
        };
        logins.insert(endpoint, login.clone());
        connections.push(Connection { endpoint: endpoint.clone(), channel, login });
    }
    Ok(connections)
}

async fn open(endpoint: &str, timeout: Duration) -> Result<Channel, Error> {
    let wrong = |why: String| Error::Endpoint { endpoint: endpoint.to_owned(), why };
    if endpoint.starts_with("https:") {
        return Err(wrong("this command has no TLS: name a plain listener of the server".to_owned()));
    }
    let url = if endpoint.contains("://") { endpoint.to_owned() } else { format!("http://{endpoint}") };
    let address = Endpoint::from_shared(url).map_err(|error| wrong(chain(&error)))?;
    let address = address
        .connect_timeout(CONNECT_WITHIN)
        .timeout(timeout)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    let unreachable = |error| Error::Unreachable { endpoint: endpoint.to_owned(), why: chain(&error) };
    address.connect().await.map_err(unreachable)
}

async fn log_in(endpoint: &str, channel: &Channel, user: Option<&str>) -> Result<Login, Error> {
    let Some(user) = user else { return Ok(Login(None)) };
    let (name, password) = user.split_once(':').ok_or_else(|| Error::Options("--user is name:password".to_owned()))?;
    let refused =
        |status| Error::Refused { endpoint: endpoint.to_owned(), doing: "the login", status: Box::new(status) };
    let request = pb::AuthenticateRequest { name: name.to_owned(), password: password.to_owned() };
    let token = AuthClient::new(channel.clone()).authenticate(request).await.map_err(refused)?.into_inner().token;
    let token = token.parse().map_err(|_| refused(Status::internal("its token cannot be sent in a header")))?;
    Ok(Login(Some(token)))
}
