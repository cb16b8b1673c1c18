//! `istio.v1.auth.IstioCertificateService/CreateCertificate`: its messages, and gRPC's frames and statuses.
//!
//! Written by hand after Istio's `security/v1alpha1/ca.proto` and `google/protobuf/struct.proto`: two messages do not make up
//! for a protobuf compiler at build time.

use std::collections::HashMap;

use bytes::{BufMut, Bytes, BytesMut};
use h2::RecvStream;
use http::HeaderMap;
use prost::Message;

/// The method's path.
pub(super) const PATH: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";
/// The field of the metadata that names for whom a node agent asks.
pub(super) const IMPERSONATED: &str = "ImpersonatedIdentity";
/// Neither a request nor an answer is longer than this, in bytes.
const LONGEST: usize = 256 << 10;

/// Asks for a certificate.
#[derive(Clone, PartialEq, Message)]
pub(super) struct CertificateRequest {
    /// PEM.
    #[prost(string, tag = "1")]
    pub(super) csr: String,
    /// Seconds.
    #[prost(int64, tag = "3")]
    pub(super) validity_duration: i64,
    /// Free-form; see [`IMPERSONATED`].
    #[prost(message, optional, tag = "4")]
    pub(super) metadata: Option<Struct>,
}

/// A signed chain.
#[derive(Clone, PartialEq, Message)]
pub(super) struct CertificateResponse {
    /// PEM, the leaf first, the root (or several) last.
    #[prost(string, repeated, tag = "1")]
    pub(super) cert_chain: Vec<String>,
}

/// `google.protobuf.Struct`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Struct {
    #[prost(map = "string, message", tag = "1")]
    pub(super) fields: HashMap<String, Text>,
}

/// `google.protobuf.Value`, of which only texts are understood.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Text {
    #[prost(string, optional, tag = "3")]
    pub(super) string_value: Option<String>,
}

impl CertificateRequest {
    /// Of a node agent, for `identity`.
    pub(super) fn for_identity(identity: &str, csr: String, seconds: i64) -> Self {
        let text = Text { string_value: Some(identity.to_owned()) };
        let fields = HashMap::from([(IMPERSONATED.to_owned(), text)]);
        Self { csr, validity_duration: seconds, metadata: Some(Struct { fields }) }
    }

    /// For whom, when that is said.
    pub(super) fn impersonated(&self) -> Option<&str> {
        self.metadata.as_ref()?.fields.get(IMPERSONATED)?.string_value.as_deref()
    }
}

/// The codes that are used here, of <https://grpc.io/docs/guides/status-codes/>.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Code {
    InvalidArgument = 3,
    PermissionDenied = 7,
    Unimplemented = 12,
    Internal = 13,
    Unauthenticated = 16,
}

/// A message in its frame: not compressed, length, bytes.
pub(super) fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(5 + length);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    bytes.put_slice(&message.encode_to_vec());
    bytes.freeze()
}

/// The one message of `body`.
pub(super) async fn read<M: Message + Default>(body: &mut RecvStream) -> Result<M, String> {
    let mut bytes = BytesMut::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk.map_err(|error| error.to_string())?;
        if bytes.len() + chunk.len() > LONGEST {
            return Err(format!("longer than {LONGEST} bytes"));
        }
        body.flow_control().release_capacity(chunk.len()).map_err(|error| error.to_string())?;
        bytes.extend_from_slice(&chunk);
    }
    let bytes = bytes.freeze();
    let Some((head, message)) = bytes.split_first_chunk::<5>() else {
        return Err("no gRPC message".to_owned());
    };
    let [compressed, length @ ..] = *head;
    if compressed != 0 {
        return Err("a compressed gRPC message, which nobody asked for".to_owned());
    }
    if usize::try_from(u32::from_be_bytes(length)) != Ok(message.len()) {
        return Err("a gRPC frame of another length than it says".to_owned());
    }
    M::decode(message).map_err(|error| format!("not a message of this service: {error}"))
}

/// Status and text of a gRPC answer, in its trailers or (when it has no message) its headers.
pub(super) fn status(headers: &HeaderMap) -> Option<(u32, String)> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let code = text("grpc-status")?.parse().ok()?;
    Some((code, percent_decoded(text("grpc-message").unwrap_or_default())))
}

/// gRPC's form of a text in a header: what is not printable ASCII, and `%`, as `%XX`.
pub(super) fn percent_encoded(text: &str) -> String {
    let escape = |byte: u8| match byte {
        b'%' | 0..=0x1f | 0x7f.. => format!("%{byte:02X}"),
        _ => char::from(byte).to_string(),
    };
    text.bytes().map(escape).collect()
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let escaped = after.get(..2).filter(|_| *first == b'%');
        let byte = escaped.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { after.get(2..).unwrap_or_default() } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_what_protobuf_says_it_is() {
        let request = CertificateRequest::for_identity("a", "c".to_owned(), 5);
        let inner = [&[0x0a, 20][..], b"ImpersonatedIdentity", &[0x12, 3, 0x1a, 1, b'a']].concat();
        let fields = [&[0x0a, u8::try_from(inner.len()).unwrap()][..], &inner].concat();
        let metadata = [&[0x22, u8::try_from(fields.len()).unwrap()][..], &fields].concat();
        assert_eq!(request.encode_to_vec(), [&[0x0a, 1, b'c', 0x18, 5][..], &metadata].concat());
        assert_eq!(request.impersonated(), Some("a"));
    }

    #[test]
    fn texts_survive_a_header() {
        let text = "100 % of \u{fc}\n";
        assert_eq!(percent_encoded(text), "100 %25 of %C3%BC%0A");
        assert_eq!(percent_decoded(&percent_encoded(text)), text);
        assert_eq!(percent_decoded("50%"), "50%");
    }
}
