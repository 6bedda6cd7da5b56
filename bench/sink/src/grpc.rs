//! gRPC's frame around a message, and its statuses, as far as a server of unary calls needs them.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{HeaderMap, Response};

/// What Pub/Sub itself takes at most.
pub const MAX_REQUEST_BYTES: usize = 10 * 1024 * 1024;
/// One byte that says whether the message is compressed, four for its length.
pub const PREFIX_BYTES: usize = 5;

/// A gRPC status that is not OK.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// 1 to 16.
    pub code: u32,
    /// For a person to read.
    pub message: String,
}

impl Status {
    /// A status of that code.
    pub fn new(code: u32, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The answer that says only this.
    pub fn into_response(self) -> Response<Body> {
        let mut response = Response::new(Full::default().map_err(|never| match never {}).boxed());
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", HeaderValue::from(self.code));
        headers.insert("grpc-message", percent_encoded(&self.message));
        response
    }
}

/// The body of every answer.
pub type Body = BoxBody<Bytes, hyper::Error>;

/// Begins a framed message of that size, to be [finished](respond) once it is written.
pub fn begin(message_bytes: usize) -> BytesMut {
    let mut frame = BytesMut::with_capacity(PREFIX_BYTES + message_bytes);
    frame.put_u8(0);
    frame.put_u32(0);
    frame
}

/// Answers OK with the message that was written behind the prefix.
pub fn respond(mut frame: BytesMut) -> Response<Body> {
    let length = u32::try_from(frame.len() - PREFIX_BYTES).expect("answers are far smaller than 4 GiB");
    frame[1..PREFIX_BYTES].copy_from_slice(&length.to_be_bytes());
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let body = Full::new(frame.freeze())
        .with_trailers(std::future::ready(Some(Ok(trailers))))
        .map_err(|never: std::convert::Infallible| match never {})
        .boxed();
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// Reads the one message of a unary call.
///
/// # Errors
/// The client broke off, or sent what a server of unary, uncompressed calls cannot take.
pub async fn read_message(mut body: Incoming) -> Result<Bytes, Status> {
    let mut whole = Bytes::new();
    let mut parts = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Status::new(1, format!("the client broke off: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if whole.is_empty() && parts.is_empty() {
            // A request in one frame is never copied.
            whole = data;
            continue;
        }
        if parts.is_empty() {
            parts.reserve(framed_bytes(&whole).unwrap_or_default().max(whole.len() + data.len()));
            parts.extend_from_slice(&whole);
            whole = Bytes::new();
        }
        parts.extend_from_slice(&data);
        if parts.len() > PREFIX_BYTES + MAX_REQUEST_BYTES {
            return Err(too_large());
        }
    }
    if !parts.is_empty() {
        whole = parts.freeze();
    }
    match framed_bytes(&whole) {
        Some(length) if length > PREFIX_BYTES + MAX_REQUEST_BYTES => Err(too_large()),
        Some(length) if length == whole.len() && whole[0] == 0 => {
            whole.advance(PREFIX_BYTES);
            Ok(whole)
        }
        Some(length) if length == whole.len() => Err(Status::new(12, "compressed requests are not taken")),
        _ => Err(Status::new(13, "not one whole gRPC message")),
    }
}

/// How long the framed message that begins here is, its prefix included; at most a little over what is allowed.
fn framed_bytes(frame: &[u8]) -> Option<usize> {
    let length: [u8; 4] = frame.get(1..PREFIX_BYTES)?.try_into().ok()?;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    Some(PREFIX_BYTES + length.min(MAX_REQUEST_BYTES + 1))
}

fn too_large() -> Status {
    Status::new(3, format!("Request payload size exceeds the limit: {MAX_REQUEST_BYTES} bytes."))
}

/// Encodes a message as gRPC wants it in a header.
fn percent_encoded(message: &str) -> HeaderValue {
    use std::fmt::Write as _;

    let mut encoded = String::with_capacity(message.len());
    for byte in message.bytes() {
        if (b' '..=b'~').contains(&byte) && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            write!(encoded, "%{byte:02X}").expect("a string takes all that is written");
        }
    }
    HeaderValue::from_str(&encoded).expect("printable ASCII is a header value")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_message_may_hold_anything() {
        let response = Status::new(3, "100 % no\nway é").into_response();
        assert_eq!(response.headers()["grpc-status"], "3");
        assert_eq!(response.headers()["grpc-message"], "100 %25 no%0Away %C3%A9");
    }
}
