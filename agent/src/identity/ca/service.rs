//! The server of Istio's certificate service: `culvert ca`.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use rcgen::CertificateSigningRequestParams;
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::version::TLS13;
use subtle::{Choice, ConstantTimeEq};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::super::{Compliance, SpiffeId, crypto};
use super::wire::{self, CertificateRequest, CertificateResponse, Code};
use super::{CaError, EmbeddedCa};

/// For TLS, HTTP/2 and each request.
const LIMIT: Duration = Duration::from_secs(10);
/// A connection is closed after this; clients open another.
const LONGEST_CONNECTION: Duration = Duration::from_secs(300);
const CONNECTIONS: usize = 256;
/// Of the service's own certificate, which is signed anew when half of it is over.
const OWN_TTL: Duration = Duration::from_secs(24 * 3600);

/// Whom the service signs for.
#[derive(Clone, Debug)]
pub struct ServiceConfig {
    /// Tokens of the nodes, one a line; read anew for every request.
    pub token: PathBuf,
    /// Trust domains that are signed for.
    pub trust_domains: Vec<String>,
    /// The longest lifetime that is signed.
    pub longest: Duration,
    /// DNS names and addresses under which the service is reached.
    pub names: Vec<String>,
    /// What TLS leaves out.
    pub compliance: Compliance,
}

/// The service.
pub struct CaService {
    ca: EmbeddedCa,
    config: ServiceConfig,
    own: Mutex<(Instant, Arc<ServerConfig>)>,
}

/// A request that is answered with an error.
type Refusal = (Code, String);

impl CaService {
    /// Signs with `ca`.
    ///
    /// # Errors
    ///
    /// There is no token, or no certificate can be made for the names.
    pub fn new(ca: EmbeddedCa, config: ServiceConfig) -> Result<Self, CaError> {
        let problem = |problem: String| CaError::Content { path: config.token.clone(), problem };
        if read_tokens(&config).map_err(problem)?.is_empty() {
            return Err(problem(
                "holds no token: write one, for example from `openssl rand -hex 32`".to_owned(),
            ));
        }
        let own = own_certificate(&ca, &config)?;
        Ok(Self { ca, own: Mutex::new((Instant::now(), own)), config })
    }

    /// Serves until the future is dropped.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let place = places.clone().acquire_owned().await;
            let (tcp, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let this = self.clone();
            tokio::spawn(async move {
                let _place = place;
                let connection = timeout(LONGEST_CONNECTION, this.connection(tcp, from));
                if let Ok(Err(problem)) = connection.await {
                    tracing::info!(%from, problem, "a connection failed");
                }
            });
        }
    }

    async fn connection(self: &Arc<Self>, tcp: TcpStream, from: SocketAddr) -> Result<(), String> {
        let late = |_| "no handshake in time".to_owned();
        let settings = self.settings();
        let accept = TlsAcceptor::from(settings).accept(tcp);
        let tls = timeout(LIMIT, accept).await.map_err(late)?.map_err(|error| format!("TLS: {error}"))?;
        let http = |error: h2::Error| format!("HTTP/2: {error}");
        let mut builder = h2::server::Builder::new();
        let handshake = builder.max_concurrent_streams(32).max_header_list_size(32 << 10).handshake(tls);
        let mut connection = timeout(LIMIT, handshake).await.map_err(late)?.map_err(http)?;
        while let Some(request) = connection.accept().await {
            let (request, mut respond) = request.map_err(http)?;
            let this = self.clone();
            tokio::spawn(async move {
                let late = || Err((Code::InvalidArgument, "the request did not come in time".to_owned()));
                let result = timeout(LIMIT, this.answer(request, from)).await.unwrap_or_else(|_| late());
                if let Err((code, text)) = &result {
                    tracing::warn!(%from, ?code, text, "refused");
                }
                if let Err(error) = respond_with(&mut respond, result) {
                    tracing::debug!(%from, %error, "the client went away before its answer");
                }
            });
        }
        Ok(())
    }

    /// The service's own certificate, a new one when the files or half of its life have gone by.
    fn settings(&self) -> Arc<ServerConfig> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if self.ca.refresh() || own.0.elapsed() > OWN_TTL / 2 {
            match own_certificate(&self.ca, &self.config) {
                Ok(settings) => *own = (Instant::now(), settings),
                Err(error) => tracing::error!(%error, "the service's own certificate is not renewed"),
            }
        }
        own.1.clone()
    }

    async fn answer(
        &self,
        request: Request<RecvStream>,
        from: SocketAddr,
    ) -> Result<CertificateResponse, Refusal> {
        if request.uri().path() != wire::PATH {
            let text = format!("only {} is served", wire::PATH);
            return Err((Code::Unimplemented, text));
        }
        // Before anything of the message is read.
        self.authenticate(request.headers())?;
        let text = |name: &str| request.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or("-");
        let cluster = text("clusterid").to_owned();
        let message: CertificateRequest = wire::read(&mut request.into_body())
            .await
            .map_err(|error| (Code::InvalidArgument, format!("the request: {error}")))?;
        let identity = self.wanted(&message)?;
        let asked = u64::try_from(message.validity_duration).unwrap_or(0);
        let ttl = match asked {
            0 => self.config.longest,
            seconds => Duration::from_secs(seconds).min(self.config.longest),
        };
        let signed = self.sign(&identity, &message.csr, ttl)?;
        tracing::info!(%identity, %from, cluster, ?ttl, "signed");
        Ok(signed)
    }

    /// All tokens are compared with what was sent, each in a time that does not tell how much of it is right.
    fn authenticate(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let unknown = || (Code::Unauthenticated, "a bearer token that this CA knows is needed".to_owned());
        let shown = headers.get(header::AUTHORIZATION).ok_or_else(unknown)?;
        let shown = shown.as_bytes().strip_prefix(b"Bearer ").ok_or_else(unknown)?;
        let tokens = read_tokens(&self.config).map_err(|error| {
            tracing::error!(error, "the token file cannot be read: nobody is signed for");
            (Code::Unauthenticated, "this CA cannot check tokens now; its log says why".to_owned())
        })?;
        let known = tokens.iter().fold(Choice::from(0), |known, t| known | t.as_bytes().ct_eq(shown));
        if bool::from(known) { Ok(()) } else { Err(unknown()) }
    }

    /// For whom a certificate is wanted, when that is somebody whom this CA signs for.
    fn wanted(&self, message: &CertificateRequest) -> Result<SpiffeId, Refusal> {
        let invalid = |text: String| (Code::InvalidArgument, text);
        let text = message.impersonated().ok_or_else(|| {
            invalid(format!(
                "metadata.{} is missing: this CA signs for the pods of node agents",
                wire::IMPERSONATED
            ))
        })?;
        let identity: SpiffeId = text.parse().map_err(|error| invalid(format!("{error}")))?;
        if !is_name(identity.namespace()) || !is_name(identity.service_account()) {
            return Err(invalid(format!("{text:?}: namespace and service account must be Kubernetes names")));
        }
        if !self.config.trust_domains.iter().any(|domain| domain == identity.trust_domain()) {
            let own = self.config.trust_domains.join(", ");
            return Err((Code::PermissionDenied, format!("{text} is not of the trust domain {own}")));
        }
        Ok(identity)
    }

    fn sign(&self, identity: &SpiffeId, csr: &str, ttl: Duration) -> Result<CertificateResponse, Refusal> {
        let invalid = |text: String| (Code::InvalidArgument, text);
        // The request's own signature is checked here: who asks has the key.
        let request = CertificateSigningRequestParams::from_pem(csr)
            .map_err(|error| invalid(format!("the CSR: {error}")))?;
        let names: Vec<String> = request.params.subject_alt_names.iter().map(san).collect();
        if names != [identity.to_string()] {
            return Err(invalid(format!("the CSR must name {identity} and nothing else, not {names:?}")));
        }
        self.ca.refresh();
        let signed = self.ca.sign_for(identity, &request.public_key, ttl).map_err(|error| {
            tracing::error!(%error, "signing failed");
            (Code::Internal, error.to_string())
        })?;
        let pem = |der: &[u8]| {
            pem::encode_config(
                &pem::Pem::new("CERTIFICATE", der),
                pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF),
            )
        };
        let chain = signed.chain.iter().map(|cert| pem(cert));
        let roots: String = signed.roots.iter().map(|cert| pem(cert)).collect();
        Ok(CertificateResponse { cert_chain: chain.chain([roots]).collect() })
    }
}

fn san(name: &rcgen::SanType) -> String {
    match name {
        rcgen::SanType::URI(uri) => uri.as_str().to_owned(),
        other => format!("{other:?}"),
    }
}

/// RFC 1123 subdomain, as namespaces and service accounts are.
fn is_name(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.len() <= 253 && text.chars().all(plain) && text.starts_with(edge) && text.ends_with(edge)
}

fn read_tokens(config: &ServiceConfig) -> Result<Vec<String>, String> {
    let text = fs::read_to_string(&config.token).map_err(|error| format!("cannot be read: {error}"))?;
    Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

fn own_certificate(ca: &EmbeddedCa, config: &ServiceConfig) -> Result<Arc<ServerConfig>, CaError> {
    let problem = |error: String| CaError::Content {
        path: config.token.clone(),
        problem: format!("the service's own certificate cannot be used: {error}"),
    };
    let (signed, key) = ca.authority().sign_server(&config.names, OWN_TTL)?;
    let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes())
        .map_err(|error| problem(error.to_string()))?;
    let mut settings = ServerConfig::builder_with_provider(crypto::provider(config.compliance))
        .with_protocol_versions(&[&TLS13])
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(signed.chain, key))
        .map_err(|error| problem(error.to_string()))?;
    settings.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(settings))
}

fn respond_with(
    respond: &mut SendResponse<Bytes>,
    result: Result<CertificateResponse, Refusal>,
) -> Result<(), h2::Error> {
    let mut response = Response::new(());
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(header::CONTENT_TYPE, grpc);
    match result {
        Ok(message) => {
            let mut body = respond.send_response(response, false)?;
            body.send_data(wire::frame(&message), false)?;
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            body.send_trailers(trailers)
        }
        Err((code, text)) => {
            response.headers_mut().insert("grpc-status", HeaderValue::from(code as u32));
            if let Ok(text) = HeaderValue::from_str(&wire::percent_encoded(&text)) {
                response.headers_mut().insert("grpc-message", text);
            }
            respond.send_response(response, true).map(|_| ())
        }
    }
}
