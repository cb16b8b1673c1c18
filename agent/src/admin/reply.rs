//! What answers are made of.

use std::io::Write;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderValue, Method, Response, StatusCode, header};
use http_body_util::{Either, Full};

use super::stream::Records;

pub(super) type Answer = Response<Either<Full<Bytes>, Records>>;

/// The type of `/flows`: a JSON object a line.
pub(super) const RECORDS: &str = "application/x-ndjson";
/// A body below that is sent as it is: it fits a packet or two.
const WORTH_PACKING: usize = 4096;

pub(super) fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    reply(status, "text/plain; charset=utf-8", body)
}

pub(super) fn reply(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    of(status, kind, Either::Left(Full::new(body.into())))
}

pub(super) fn records(records: Records) -> Answer {
    of(StatusCode::OK, RECORDS, Either::Right(records))
}

fn of(status: StatusCode, kind: &'static str, body: Either<Full<Bytes>, Records>) -> Answer {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    // No browser takes an answer for something else than it says.
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// An error is the asker's.
pub(super) fn json(result: Result<String, String>) -> Answer {
    match result {
        Ok(body) => reply(StatusCode::OK, "application/json", body),
        Err(why) => text(StatusCode::BAD_REQUEST, format!("{why}\n")),
    }
}

pub(super) fn not_allowed(served: &[Method]) -> Answer {
    let names = served.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, format!("only {names} is served here\n"));
    if let Ok(names) = HeaderValue::from_str(&names) {
        response.headers_mut().insert(header::ALLOW, names);
    }
    response
}

/// A document that may be large, gzipped when the client takes that (`gzip`) and it is worth it.
pub(super) fn document(kind: &'static str, body: String, gzip: bool) -> Answer {
    let packed = (gzip && body.len() >= WORTH_PACKING).then(|| pack(body.as_bytes()));
    let mut response = match packed {
        Some(Ok(packed)) => {
            let mut response = reply(StatusCode::OK, kind, packed);
            response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            response
        }
        _ => reply(StatusCode::OK, kind, body),
    };
    let varies = HeaderValue::from_static("Accept, Accept-Encoding");
    response.headers_mut().insert(header::VARY, varies);
    response
}

fn pack(body: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut gzip = GzEncoder::new(Vec::with_capacity(body.len() / 8), Compression::fast());
    gzip.write_all(body)?;
    gzip.finish()
}
