//! https: certificates, clients that have to show one, replacement without a restart, and bad files.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod common;
#[path = "common/http.rs"]
mod web;

use common::{free_port, has_program, polybolt, succeed, text};
use polybolt_frontend::proto::etcdserverpb as pb;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity};

/// A root, which signs.
struct Root {
    issuer: Issuer<'static, KeyPair>,
    file: PathBuf,
}

impl Root {
    fn new(dir: &Path, name: &str) -> Root {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let file = dir.join(format!("{name}.pem"));
        fs::write(&file, params.self_signed(&key).unwrap().pem()).unwrap();
        Root { issuer: Issuer::new(params, key), file }
    }

    /// A certificate for this machine, and its key, under a name.
    fn sign(&self, dir: &Path, name: &str) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let (cert, key_file) = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
        fs::write(&cert, params.signed_by(&key, &self.issuer).unwrap().pem()).unwrap();
        fs::write(&key_file, key.serialize_pem()).unwrap();
        (cert, key_file)
    }
}

/// A server on https.
struct Secure {
    child: Child,
    port: u16,
}

impl Secure {
    fn start(dir: &Path, flags: &[&str]) -> Secure {
        let port = free_port();
        let mut command = polybolt();
        command.arg("serve").arg("--data-dir").arg(dir);
        command.args(["--listen-client-urls", &format!("https://127.0.0.1:{port}")]).args(flags);
        let child = command.stderr(Stdio::null()).spawn().unwrap();
        let limit = Instant::now() + Duration::from_secs(60);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < limit, "the server does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        Secure { child, port }
    }

    async fn channel(&self, root: &Path, identity: Option<&(PathBuf, PathBuf)>) -> Result<Channel, String> {
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(fs::read(root).unwrap()));
        if let Some((cert, key)) = identity {
            tls = tls.identity(Identity::from_pem(fs::read(cert).unwrap(), fs::read(key).unwrap()));
        }
        let endpoint = Channel::from_shared(format!("https://127.0.0.1:{}", self.port)).unwrap();
        endpoint.tls_config(tls).unwrap().connect().await.map_err(|error| format!("{error:?}"))
    }

    /// The certificate that the server shows, to whoever trusts `root`.
    async fn shown(&self, root: &Path) -> Result<Vec<u8>, String> {
        let stream = self.stream(root).await?;
        let (_, session) = stream.get_ref();
        assert_eq!(session.alpn_protocol(), Some(&b"http/1.1"[..]));
        Ok(session.peer_certificates().unwrap()[0].to_vec())
    }

    /// An HTTP/1 connection.
    async fn stream(&self, root: &Path) -> Result<tokio_rustls::client::TlsStream<TcpStream>, String> {
        let mut roots = RootCertStore::empty();
        for cert in CertificateDer::pem_slice_iter(&fs::read(root).unwrap()) {
            roots.add(cert.unwrap()).unwrap();
        }
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|error| error.to_string())
    }
}

impl Drop for Secure {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn flags(pair: &(PathBuf, PathBuf)) -> [&str; 4] {
    ["--cert-file", pair.0.to_str().unwrap(), "--key-file", pair.1.to_str().unwrap()]
}

async fn put(channel: Channel) -> Result<(), String> {
    let put = pb::PutRequest { key: "a".into(), value: "1".into(), ..Default::default() };
    let done = pb::kv_client::KvClient::new(channel).put(put).await;
    done.map(drop).map_err(|status| status.to_string())
}

#[tokio::test]
async fn grpc_and_http_share_an_encrypted_port_srv_11() {
    let dir = tempfile::tempdir().unwrap();
    let root = Root::new(dir.path(), "root");
    let pair = root.sign(dir.path(), "server");
    let served = Secure::start(&dir.path().join("data"), &flags(&pair));
    put(served.channel(&root.file, None).await.unwrap()).await.unwrap();
    // HTTP/1, whose Host header does not matter under TLS.
    let stream = served.stream(&root.file).await.unwrap();
    let request = web::request("POST", "/v3/kv/range", &[("Host", "any")], r#"{"key":"YQ=="}"#);
    let answer = web::whole(web::open(stream, request).await).await;
    assert_eq!((answer.status, &answer.json()["kvs"][0]["value"]), (200, &"MQ==".into()));
    // Plain text is not answered.
    assert!(
        Channel::from_shared(format!("http://127.0.0.1:{}", served.port)).unwrap().connect().await.is_err()
            || put(Channel::from_shared(format!("http://127.0.0.1:{}", served.port)).unwrap().connect_lazy())
                .await
                .is_err()
    );
    // Nor does a client trust another root.
    let other = Root::new(dir.path(), "other");
    assert!(served.channel(&other.file, None).await.is_err());
}

#[tokio::test]
async fn clients_have_to_show_a_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let (root, clients) = (Root::new(dir.path(), "root"), Root::new(dir.path(), "clients"));
    let pair = root.sign(dir.path(), "server");
    let (client, stranger) = (clients.sign(dir.path(), "client"), root.sign(dir.path(), "stranger"));
    let mut with = flags(&pair).to_vec();
    with.extend(["--client-cert-auth", "--trusted-ca-file", clients.file.to_str().unwrap()]);
    let served = Secure::start(&dir.path().join("data"), &with);
    put(served.channel(&root.file, Some(&client)).await.unwrap()).await.unwrap();
    for identity in [None, Some(&stranger)] {
        let refused = match served.channel(&root.file, identity).await {
            Ok(channel) => put(channel).await,
            Err(error) => Err(error),
        };
        assert!(refused.is_err(), "{identity:?}");
    }
    if has_program("etcdctl") {
        let etcdctl = |identity: Option<&(PathBuf, PathBuf)>| {
            let mut command = Command::new("etcdctl");
            command.env("ETCDCTL_API", "3").arg("--endpoints").arg(format!("https://127.0.0.1:{}", served.port));
            command.arg("--cacert").arg(&root.file).args(["--dial-timeout", "3s", "--command-timeout", "3s"]);
            if let Some((cert, key)) = identity {
                command.arg("--cert").arg(cert).arg("--key").arg(key);
            }
            command
        };
        assert_eq!(succeed(etcdctl(Some(&client)).args(["put", "b", "2"])).trim(), "OK");
        assert_eq!(succeed(etcdctl(Some(&client)).args(["get", "b", "--print-value-only"])).trim(), "2");
        assert!(!etcdctl(None).args(["get", "b"]).output().unwrap().status.success());
    }
}

#[tokio::test]
async fn certificates_are_replaced_without_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let root = Root::new(dir.path(), "root");
    let (first, second) = (root.sign(dir.path(), "first"), root.sign(dir.path(), "second"));
    let used = (dir.path().join("used.crt"), dir.path().join("used.key"));
    let replace = |pair: &(PathBuf, PathBuf)| {
        fs::copy(&pair.0, &used.0).unwrap();
        fs::copy(&pair.1, &used.1).unwrap();
    };
    replace(&first);
    let served = Secure::start(&dir.path().join("data"), &flags(&used));
    let before = served.shown(&root.file).await.unwrap();
    let open = served.channel(&root.file, None).await.unwrap();
    replace(&second);
    let after = served.shown(&root.file).await.unwrap();
    assert_ne!(before, after);
    put(open).await.expect("connections that are open stay");
    // Files that cannot be used leave the pair that could.
    fs::write(&used.0, "no certificate").unwrap();
    assert_eq!(served.shown(&root.file).await.unwrap(), after);
    fs::remove_file(&used.1).unwrap();
    assert_eq!(served.shown(&root.file).await.unwrap(), after);
    replace(&first);
    assert_eq!(served.shown(&root.file).await.unwrap(), before);
}

#[tokio::test]
async fn a_certificate_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let served = Secure::start(&dir.path().join("data"), &["--auto-tls"]);
    // Nobody signed it.
    let root = Root::new(dir.path(), "root");
    assert!(served.shown(&root.file).await.is_err());
    if has_program("etcdctl") {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").arg("--endpoints").arg(format!("https://127.0.0.1:{}", served.port));
        command.args(["--insecure-transport=false", "--insecure-skip-tls-verify", "put", "a", "1"]);
        assert_eq!(succeed(&mut command).trim(), "OK");
    }
}

#[test]
fn files_that_cannot_be_used_are_named_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let root = Root::new(dir.path(), "root");
    let (pair, other) = (root.sign(dir.path(), "server"), root.sign(dir.path(), "other"));
    let empty = dir.path().join("empty");
    fs::write(&empty, "").unwrap();
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let (cert, key, absent) = (path(&pair.0), path(&pair.1), path(&dir.path().join("absent")));
    let (empty, other) = (path(&empty), path(&other.1));
    for (flags, said) in [
        (vec![], "--cert-file and --key-file are needed, or --auto-tls"),
        (vec!["--cert-file", &cert], "--cert-file needs --key-file"),
        (vec!["--key-file", &key], "--key-file needs --cert-file"),
        (vec!["--cert-file", &absent, "--key-file", &key], "absent: "),
        (vec!["--cert-file", &cert, "--key-file", &absent], "absent: "),
        (vec!["--cert-file", &empty, "--key-file", &key], "empty: there is no certificate in it"),
        (vec!["--cert-file", &cert, "--key-file", &empty], "empty: there is no private key in it"),
        (vec!["--cert-file", &key, "--key-file", &key], "server.key: there is no certificate in it"),
        (vec!["--cert-file", &cert, "--key-file", &other], "server.crt and "),
        (vec!["--cert-file", &cert, "--key-file", &key, "--client-cert-auth"], "needs --trusted-ca-file"),
        (vec!["--cert-file", &cert, "--key-file", &key, "--trusted-ca-file", &empty], "empty: there is no certificate"),
        (vec!["--client-cert-auth"], "--cert-file and --key-file are needed"),
    ] {
        let mut command = polybolt();
        let url = format!("https://127.0.0.1:{}", free_port());
        command.arg("serve").arg("--data-dir").arg(dir.path().join("data")).args(["--listen-client-urls", &url]);
        let output = command.args(&flags).output().unwrap();
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{flags:?}: {stderr}");
        let lines: Vec<&str> = stderr.lines().collect();
        assert!(
            lines.len() == 1 && lines[0].starts_with("polybolt: ") && lines[0].contains(said),
            "{flags:?}: {stderr}"
        );
        assert!(!dir.path().join("data").exists());
    }
}
