//! Istio's certificate API, spoken by hand: messages, a client that may ask for anything, a server that may answer anything.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use culvert::identity::{EmbeddedCa, SpiffeId};
use http::{HeaderMap, Request, Response};
use prost::Message;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::HOUR;

#[derive(Clone, PartialEq, Message)]
pub(crate) struct CertificateRequest {
    #[prost(string, tag = "1")]
    pub(crate) csr: String,
    #[prost(int64, tag = "3")]
    pub(crate) seconds: i64,
    #[prost(message, optional, tag = "4")]
    pub(crate) metadata: Option<Struct>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Struct {
    #[prost(map = "string, message", tag = "1")]
    pub(crate) fields: HashMap<String, Text>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Text {
    #[prost(string, optional, tag = "3")]
    pub(crate) text: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct CertificateResponse {
    #[prost(string, repeated, tag = "1")]
    chain: Vec<String>,
}

fn frame(message: &impl Message) -> Bytes {
    let bytes = message.encode_to_vec();
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(bytes.len()).unwrap());
    frame.put_slice(&bytes);
    frame.freeze()
}

async fn read(mut body: h2::RecvStream) -> (Bytes, h2::RecvStream) {
    let mut bytes = BytesMut::new();
    while let Some(chunk) = body.data().await {
        bytes.extend_from_slice(&chunk.unwrap());
    }
    (bytes.freeze(), body)
}

/// What `address` (a CA with the root in `dir`) answers to `message`: gRPC's status.
pub(crate) async fn ask(
    address: &str,
    dir: &Path,
    token: Option<&str>,
    message: &CertificateRequest,
) -> (u32, String) {
    let mut roots = RootCertStore::empty();
    let root = fs::read(dir.join("ca.crt")).unwrap();
    roots.add(CertificateDer::from_pem_slice(&root).unwrap()).unwrap();
    let mut settings = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    settings.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let tls = TlsConnector::from(Arc::new(settings)).connect(name, tcp).await.unwrap();
    let (send, connection) = h2::client::handshake(tls).await.unwrap();
    tokio::spawn(connection);
    let path = format!("https://{address}/istio.v1.auth.IstioCertificateService/CreateCertificate");
    let mut request = Request::post(path).header("content-type", "application/grpc");
    if let Some(token) = token {
        request = request.header("authorization", token);
    }
    let (response, mut body) =
        send.ready().await.unwrap().send_request(request.body(()).unwrap(), false).unwrap();
    // Who is not known may be answered before the message is read.
    let _ = body.send_data(frame(message), true);
    let response = response.await.unwrap();
    let headers = response.headers().clone();
    let (_, mut body) = read(response.into_body()).await;
    let trailers = body.trailers().await.unwrap().unwrap_or_default();
    let field =
        |name: &str| headers.get(name).or_else(|| trailers.get(name)).map(|v| v.to_str().unwrap().to_owned());
    (field("grpc-status").unwrap().parse().unwrap(), field("grpc-message").unwrap_or_default())
}

/// A CA at 127.0.0.1 with the root in `dir` for its own TLS; `answer` makes the chain of its `n`th answer from a CSR.
pub(crate) async fn serve(
    dir: &Path,
    answer: impl Fn(usize, &str) -> Vec<String> + Send + Sync + 'static,
) -> String {
    let ca = EmbeddedCa::open(dir, HOUR).unwrap();
    let key = crate::key();
    let names = vec!["127.0.0.1".to_owned()];
    let mut params = rcgen::CertificateParams::new(names).unwrap();
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    let own = params.signed_by(&key, &crate::issuer_in(dir)).unwrap();
    drop(ca);
    let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
    let mut settings =
        ServerConfig::builder().with_no_client_auth().with_single_cert(vec![own.into()], key).unwrap();
    settings.alpn_protocols = vec![b"h2".to_vec()];
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (acceptor, answer) = (TlsAcceptor::from(Arc::new(settings)), Arc::new(answer));
    tokio::spawn(async move {
        for n in 0.. {
            let (tcp, _) = listener.accept().await.unwrap();
            let Ok(tls) = acceptor.accept(tcp).await else { continue };
            let mut connection = h2::server::handshake(tls).await.unwrap();
            let answer = answer.clone();
            tokio::spawn(async move {
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let answer = answer.clone();
                    tokio::spawn(async move {
                        let (bytes, _) = read(request.into_body()).await;
                        let message = CertificateRequest::decode(bytes.slice(5..)).unwrap();
                        let chain = answer(n, &message.csr);
                        let response = Response::builder().header("content-type", "application/grpc");
                        let mut body = respond.send_response(response.body(()).unwrap(), false).unwrap();
                        body.send_data(frame(&CertificateResponse { chain }), false).unwrap();
                        let mut trailers = HeaderMap::new();
                        trailers.insert("grpc-status", "0".parse().unwrap());
                        body.send_trailers(trailers).unwrap();
                    });
                }
            });
        }
    });
    address
}

/// Of a node agent, for `identity`, with the CSR of `key` for the names.
pub(crate) fn request(impersonated: Option<&SpiffeId>, csr: String) -> CertificateRequest {
    let metadata = impersonated.map(|id| {
        let text = Text { text: Some(id.to_string()) };
        Struct { fields: HashMap::from([("ImpersonatedIdentity".to_owned(), text)]) }
    });
    CertificateRequest { csr, seconds: 60, metadata }
}
