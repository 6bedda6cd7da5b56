//! Writes request heads and parses response heads (RFC 9112, sections 2 to 5). httparse reads the lines, as it does for
//! hyper.

use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use http::response::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Version};
use httparse::{Header, ParserConfig, Status};
use memchr::{memchr, memmem};

use super::{HeadError, MAX_HEAD_BYTES};
use crate::warm::client::Asked;

/// Field lines of the longest head that is read.
pub(super) const MAX_FIELDS: usize = 100;

/// Appends the request as it is sent, with its target in origin form (RFC 9112, section 3.2.1).
pub(super) fn write(request: &Asked<'_>, head: &mut Vec<u8>) {
    let mut put = |parts: &[&[u8]]| parts.iter().for_each(|part| head.extend_from_slice(part));
    put(&[request.method.as_str().as_bytes(), b" ", request.target().as_bytes()]);
    put(&[b" HTTP/1.1\r\nhost: ", request.authority().as_bytes(), b"\r\n"]);
    for (name, value) in &*request.headers {
        put(&[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"]);
    }
    put(&[b"\r\n"]);
}

/// Whether these may be the first bytes of a response: anything else is refused without waiting for its end.
pub(super) fn may_begin(received: &[u8]) -> bool {
    const BEGINNING: &[u8] = b"HTTP/1.";
    let behind_empty_lines =
        received.iter().position(|byte| !b"\r\n".contains(byte)).unwrap_or(received.len());
    received[behind_empty_lines..].iter().zip(BEGINNING).all(|(byte, wanted)| byte == wanted)
}

/// Returns where the first empty line ends. `searched` counts the bytes that were searched before; it is 0 for a new head.
pub(super) fn end(received: &[u8], searched: &mut usize) -> Option<usize> {
    let from = searched.saturating_sub(3);
    *searched = received.len();
    // Line feeds alone are taken for ends of lines (RFC 9112, section 2.2).
    let with_return = memmem::find(&received[from..], b"\n\r\n").map(|at| from + at + 3);
    let behind = with_return.map_or(received.len(), |end| end - 1);
    let without = memmem::find(&received[from..behind], b"\n\n").map(|at| from + at + 2);
    without.or(with_return)
}

/// Takes a head of `end` bytes off `received`. Each obs-fold in a field value becomes one space.
///
/// # Errors
/// [`HeadError::TooLarge`] and [`HeadError::NotHttp`].
pub(super) fn parse(received: &mut BytesMut, end: usize) -> Result<Parts, HeadError> {
    if end > MAX_HEAD_BYTES {
        return Err(HeadError::TooLarge);
    }
    let bytes = received.split_to(end).freeze();
    let mut lines = [const { MaybeUninit::<Header<'_>>::uninit() }; MAX_FIELDS];
    let mut head = httparse::Response::new(&mut []);
    let parsed = ParserConfig::default()
        .allow_obsolete_multiline_headers_in_responses(true)
        .parse_response_with_uninit_headers(&mut head, &bytes, &mut lines);
    match parsed {
        Ok(Status::Complete(_)) => {}
        Ok(Status::Partial) => return Err(HeadError::NotHttp("empty lines before it")),
        Err(httparse::Error::TooManyHeaders) => return Err(HeadError::TooLarge),
        Err(_) => return Err(HeadError::NotHttp("not an HTTP/1 response")),
    }
    let mut headers = HeaderMap::with_capacity(head.headers.len());
    for line in &*head.headers {
        let name = HeaderName::from_bytes(line.name.as_bytes());
        let value = HeaderValue::from_maybe_shared(unfold(&bytes, line.value));
        let (Ok(name), Ok(value)) = (name, value) else {
            return Err(HeadError::NotHttp("a header that is none"));
        };
        headers.append(name, value);
    }
    let status = head.code.and_then(|code| StatusCode::from_u16(code).ok());
    let mut response = Response::new(()).into_parts().0;
    response.status = status.ok_or(HeadError::NotHttp("a status that is none"))?;
    response.version = if head.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 };
    response.headers = headers;
    Ok(response)
}

/// Returns a field value, which is part of `head`, with each obs-fold (OWS CRLF RWS) replaced by one space, as a user agent
/// must before it interprets the value (RFC 9112, section 5.2). Copies only a value that has one.
fn unfold(head: &Bytes, value: &[u8]) -> Bytes {
    if memchr(b'\n', value).is_none() {
        return head.slice_ref(value);
    }
    let lines: Vec<&[u8]> = value.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).collect();
    lines.join(&b' ').into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value of the field `a` in a head with these lines.
    fn value(lines: &str) -> Result<String, HeadError> {
        let mut received = BytesMut::from(format!("HTTP/1.1 200 OK\r\n{lines}\r\n").as_bytes());
        let end = end(&received, &mut 0).unwrap();
        let head = parse(&mut received, end)?;
        assert!(received.is_empty());
        Ok(head.headers["a"].to_str().unwrap().to_owned())
    }

    #[test]
    fn each_obs_fold_becomes_a_space() {
        for (lines, unfolded) in [
            ("a: b\r\n c\r\n", "b c"),
            ("a: b \t\r\n \t c; d\r\n\te\r\nf: g\r\n", "b c; d e"),
            ("a: b\n c\n", "b c"),
            ("a:\r\n b\r\n", "b"),
            ("a: b\r\n \r\n", "b"),
            ("a: b\r\n \r\n c\r\n", "b  c"),
            ("a:\r\n \r\nf: g\r\n", ""),
        ] {
            assert_eq!(value(lines).unwrap(), unfolded, "{lines:?}");
        }
    }

    #[test]
    fn white_space_before_the_first_field_is_refused() {
        for lines in [" a: b\r\n", "\ta: b\r\n", " \r\na: b\r\n"] {
            assert!(matches!(value(lines), Err(HeadError::NotHttp(_))), "{lines:?}");
        }
    }
}
