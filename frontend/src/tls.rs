//! TLS for `https` URLs.
//!
//! Certificate and key are looked at again at every handshake, so that they can be replaced without a
//! restart. A pair that cannot be used leaves the one before in use; at the start it is an error.

use parking_lot::Mutex;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;
use tokio_rustls::rustls::RootCertStore;
pub use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use tokio_rustls::rustls::sign::CertifiedKey;

/// Where certificates are, by etcd's flags.
#[derive(Debug, Clone, Default)]
pub struct Tls {
    /// `--cert-file`: this server's certificate and those between it and its root.
    pub cert_file: Option<PathBuf>,
    /// `--key-file`: its key.
    pub key_file: Option<PathBuf>,
    /// `--trusted-ca-file`: roots of clients' certificates. If it is given, clients have to show one.
    pub trusted_ca_file: Option<PathBuf>,
    /// `--client-cert-auth`: clients have to show a certificate.
    pub client_cert_auth: bool,
    /// `--auto-tls`: a certificate of its own, made at the start, where no files are given.
    pub auto: bool,
}

impl Tls {
    /// What https is served with; none if nothing is set. `hosts` are the names of a certificate of its own.
    ///
    /// # Errors
    /// In words, which file cannot be used and why.
    pub fn config(&self, hosts: Vec<String>) -> Result<Option<Arc<ServerConfig>>, String> {
        let provider = Arc::new(ring::default_provider());
        let certificate: Arc<dyn ResolvesServerCert> = match (&self.cert_file, &self.key_file) {
            (Some(cert), Some(key)) => Arc::new(Files::open(cert.clone(), key.clone(), Arc::clone(&provider))?),
            (None, None) if self.auto => Arc::new(Made(own(hosts, &provider)?)),
            (None, None) if self.trusted_ca_file.is_none() && !self.client_cert_auth => return Ok(None),
            (Some(_), None) => return Err("--cert-file needs --key-file".to_owned()),
            (None, Some(_)) => return Err("--key-file needs --cert-file".to_owned()),
            (None, None) => {
                return Err("to look at clients' certificates, --cert-file and --key-file are needed".to_owned());
            }
        };
        let config = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
        let config = config.map_err(|error| error.to_string())?;
        let config = match &self.trusted_ca_file {
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for root in certificates(path)? {
                    roots.add(root).map_err(|error| format!("{}: {error}", path.display()))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                config.with_client_cert_verifier(verifier.map_err(|error| format!("{}: {error}", path.display()))?)
            }
            None if self.client_cert_auth => return Err("--client-cert-auth needs --trusted-ca-file".to_owned()),
            None => config.with_no_client_auth(),
        };
        let mut config = config.with_cert_resolver(certificate);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Some(Arc::new(config)))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let bytes = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found = found.map_err(|error| format!("{}: {error}", path.display()))?;
    if found.is_empty() {
        return Err(format!("{}: there is no certificate in it", path.display()));
    }
    Ok(found)
}

/// When a file was written last, and its size.
type Stamp = Option<(SystemTime, u64)>;

fn stamp(path: &Path) -> Stamp {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

/// A certificate and its key in files.
#[derive(Debug)]
struct Files {
    cert: PathBuf,
    key: PathBuf,
    provider: Arc<CryptoProvider>,
    used: Mutex<([Stamp; 2], Arc<CertifiedKey>)>,
}

impl Files {
    fn open(cert: PathBuf, key: PathBuf, provider: Arc<CryptoProvider>) -> Result<Self, String> {
        let stamps = [stamp(&cert), stamp(&key)];
        let loaded = Arc::new(load(&cert, &key, &provider)?);
        Ok(Files { cert, key, provider, used: Mutex::new((stamps, loaded)) })
    }
}

impl ResolvesServerCert for Files {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let mut used = self.used.lock();
        let stamps = [stamp(&self.cert), stamp(&self.key)];
        if stamps != used.0 {
            // Whatever comes of it, not again before they change again.
            used.0 = stamps;
            match load(&self.cert, &self.key, &self.provider) {
                Ok(loaded) => {
                    tracing::info!(path = %self.cert.display(), "the certificate was replaced");
                    used.1 = Arc::new(loaded);
                }
                Err(error) => tracing::warn!(%error, "the certificate was not replaced"),
            }
        }
        Some(Arc::clone(&used.1))
    }
}

fn load(cert: &Path, key: &Path, provider: &CryptoProvider) -> Result<CertifiedKey, String> {
    let chain = certificates(cert)?;
    let found = PrivateKeyDer::from_pem_slice(&read(key)?);
    let found = found.map_err(|_| format!("{}: there is no private key in it", key.display()))?;
    CertifiedKey::from_der(chain, found, provider)
        .map_err(|error| format!("{} and {}: {error}", cert.display(), key.display()))
}

/// A certificate that never changes.
#[derive(Debug)]
struct Made(Arc<CertifiedKey>);

impl ResolvesServerCert for Made {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// A certificate that signs itself; nothing of it is written down.
fn own(mut hosts: Vec<String>, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, String> {
    // Addresses that stand for all of them are nobody's name.
    hosts.retain(|host| {
        host.parse::<IpAddr>().is_ok_and(|address| !address.is_unspecified()) || host.contains(char::is_alphabetic)
    });
    hosts.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
    let failed = |error: rcgen::Error| format!("--auto-tls: {error}");
    let made = rcgen::generate_simple_self_signed(hosts).map_err(failed)?;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let key = CertifiedKey::from_der(vec![made.cert.der().clone()], key, provider);
    Ok(Arc::new(key.map_err(|error| format!("--auto-tls: {error}"))?))
}
