//! A CA elsewhere: the client of Istio's certificate service, which istiod and `culvert ca` serve.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Request, StatusCode, header};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::super::{Compliance, SpiffeId, crypto};
use super::wire::{self, CertificateRequest, CertificateResponse, Code};
use super::{CaError, SignedChain, answer};

/// For one request, from the connection to the answer.
const LIMIT: Duration = Duration::from_secs(10);
/// Requests at once, as ztunnel has it.
const AT_ONCE: usize = 8;

/// Where the CA is, and what it is shown.
#[derive(Clone, Debug)]
pub struct RemoteConfig {
    /// `host:port`.
    pub address: String,
    /// The roots that its own certificate is checked against, PEM; read anew for every request.
    pub root: PathBuf,
    /// The token that it knows this node by; read anew for every request.
    pub token: PathBuf,
    /// `clusterid` header.
    pub cluster: String,
    /// The lifetime that is asked for.
    pub ttl: Duration,
    /// What TLS leaves out.
    pub compliance: Compliance,
}

/// The client.
#[derive(Debug)]
pub struct RemoteCa {
    config: RemoteConfig,
    name: ServerName<'static>,
    places: Semaphore,
}

impl RemoteCa {
    /// Nothing is asked yet; a CA that cannot be reached may be there later.
    ///
    /// # Errors
    ///
    /// The address is none, or a file that is needed is not there.
    pub fn new(config: RemoteConfig) -> Result<Self, CaError> {
        let error = |problem: String| CaError::Remote { address: config.address.clone(), problem };
        let host = config.address.rsplit_once(':').map(|(host, port)| (host, port.parse::<u16>()));
        let Some((host, Ok(_))) = host else {
            return Err(error("this is not HOST:PORT".to_owned()));
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned()).map_err(|e| error(format!("{host:?}: {e}")))?;
        let this = Self { name, places: Semaphore::new(AT_ONCE), config: config.clone() };
        this.settings().and_then(|_| this.token()).map_err(error)?;
        Ok(this)
    }

    pub(super) async fn sign(&self, identity: &SpiffeId, key: &KeyPair) -> Result<SignedChain, CaError> {
        // Closed is never: the permit only queues.
        let _place = self.places.acquire().await;
        let late = || Err(format!("no answer within {LIMIT:?}: is it up?"));
        let answer = timeout(LIMIT, self.ask(identity, key)).await.unwrap_or_else(|_| late());
        answer.map_err(|problem| CaError::Remote { address: self.config.address.clone(), problem })
    }

    async fn ask(&self, identity: &SpiffeId, key: &KeyPair) -> Result<SignedChain, String> {
        let request = self.request()?;
        let seconds = i64::try_from(self.config.ttl.as_secs()).unwrap_or(i64::MAX);
        let message = CertificateRequest::for_identity(&identity.to_string(), csr(identity, key)?, seconds);
        let connector = TlsConnector::from(self.settings()?);
        let tcp = TcpStream::connect(&self.config.address)
            .await
            .map_err(|error| format!("it cannot be reached: {error}"))?;
        let tls = connector.connect(self.name.clone(), tcp).await.map_err(|error| {
            format!(
                "TLS: {error}: is {} (--ca-root) its root, and {} a name in its certificate?",
                self.config.root.display(),
                self.name.to_str()
            )
        })?;
        let (send, connection) =
            h2::client::handshake(tls).await.map_err(|error| format!("HTTP/2: {error}"))?;
        let call = call(send, request, &message);
        // The connection is for this request, and ends with it.
        let answer = tokio::select! {
            answer = call => answer?,
            end = connection => return Err(end.map_or_else(|e| format!("HTTP/2: {e}"), |()| "it hung up".to_owned())),
        };
        answer::check(&answer, identity, key).map_err(|problem| format!("its answer is not used: {problem}"))
    }

    fn request(&self) -> Result<Request<()>, String> {
        let mut token = HeaderValue::from_str(&format!("Bearer {}", self.token()?))
            .map_err(|_| format!("{} (--ca-token) holds no token", self.config.token.display()))?;
        token.set_sensitive(true);
        Request::post(format!("https://{}{}", self.config.address, wire::PATH))
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
            .header("clusterid", &self.config.cluster)
            .header(header::AUTHORIZATION, token)
            .body(())
            .map_err(|error| error.to_string())
    }

    fn token(&self) -> Result<String, String> {
        let path = &self.config.token;
        let text = fs::read_to_string(path)
            .map_err(|error| format!("{} (--ca-token) cannot be read: {error}", path.display()))?;
        match text.trim() {
            "" => Err(format!("{} (--ca-token) is empty", path.display())),
            token => Ok(token.to_owned()),
        }
    }

    fn settings(&self) -> Result<Arc<ClientConfig>, String> {
        let roots = read_roots(&self.config.root)?;
        let mut config = ClientConfig::builder_with_provider(crypto::provider(self.config.compliance))
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }
}

fn read_roots(path: &Path) -> Result<RootCertStore, String> {
    let pem =
        fs::read(path).map_err(|error| format!("{} (--ca-root) cannot be read: {error}", path.display()))?;
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(&pem) {
        root.map_err(|error| error.to_string())
            .and_then(|root| roots.add(root).map_err(|error| error.to_string()))
            .map_err(|error| format!("{} (--ca-root): {error}", path.display()))?;
    }
    if roots.is_empty() {
        return Err(format!("{} (--ca-root) holds no PEM certificate", path.display()));
    }
    Ok(roots)
}

fn csr(identity: &SpiffeId, key: &KeyPair) -> Result<String, String> {
    let error = |error: rcgen::Error| error.to_string();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into().map_err(error)?)];
    params.serialize_request(key).and_then(|request| request.pem()).map_err(error)
}

async fn call(
    send: h2::client::SendRequest<bytes::Bytes>,
    request: Request<()>,
    message: &CertificateRequest,
) -> Result<CertificateResponse, String> {
    let http = |error: h2::Error| format!("HTTP/2: {error}");
    let (response, mut body) =
        send.ready().await.map_err(http)?.send_request(request, false).map_err(http)?;
    body.send_data(wire::frame(message), true).map_err(http)?;
    let response = response.await.map_err(http)?;
    if response.status() != StatusCode::OK {
        return Err(format!("it answered {}: is it a CA?", response.status()));
    }
    if let Some((code, text)) = wire::status(response.headers()) {
        return Err(refused(code, &text));
    }
    let mut body = response.into_body();
    let answer = wire::read(&mut body).await;
    let trailers = body.trailers().await.map_err(http)?.unwrap_or_default();
    match wire::status(&trailers) {
        Some((0, _)) => answer.map_err(|error| format!("its answer: {error}")),
        Some((code, text)) => Err(refused(code, &text)),
        None => Err("its answer has no gRPC status".to_owned()),
    }
}

fn refused(code: u32, text: &str) -> String {
    let hint = match code {
        c if c == Code::Unauthenticated as u32 => ": does --ca-token hold the token that it knows?",
        c if c == Code::PermissionDenied as u32 => ": it does not sign for this identity",
        _ => "",
    };
    format!("it refused (gRPC status {code}): {text}{hint}")
}
