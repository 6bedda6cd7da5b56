//! Where the content of an HTTP/1.1 response ends (RFC 9112, sections 6 and 7), told from bytes as they come.

use http::response::Parts;
use http::{HeaderMap, HeaderName, Method, StatusCode, Version, header};

/// What chunk extensions, and what trailer fields, may take in all; nobody reads them.
const MAX_BESIDE_BYTES: u32 = 16 << 10;

/// How a content ends, and what of it is still to come.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// After so many bytes.
    Length(u64),
    Chunked(Chunked),
    /// With the connection.
    UntilClose,
}

/// Where in a chunked content the next byte is.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Chunked {
    at: At,
    /// The size that is being read, or what of the chunk is to come.
    left: u64,
    /// What extensions and trailers took.
    beside: u32,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum At {
    /// The first digit of a size.
    #[default]
    Size,
    MoreSize,
    /// White space behind a size, and then nothing but an extension.
    SizeEnd,
    Extension,
    /// The line feed behind a size.
    SizeLineFeed,
    Data,
    DataReturn,
    DataLineFeed,
    /// The first byte of a line behind the last chunk.
    Trailer,
    TrailerLine,
    /// The line feed behind the last, empty line.
    LastLineFeed,
    End,
}

/// Framing that two readers may take for different things, or that is none.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadFraming(pub(super) &'static str);

impl Framing {
    /// The framing of a response's content, and whether its connection may be used for another request after it.
    ///
    /// # Errors
    /// Lengths that differ or are none, and a transfer coding in HTTP/1.0.
    pub(super) fn of(method: &Method, response: &mut Parts) -> Result<(Self, bool), BadFraming> {
        let headers = &response.headers;
        let persists = match response.version {
            Version::HTTP_11 => !has_token(headers, header::CONNECTION, "close"),
            _ => has_token(headers, header::CONNECTION, "keep-alive"),
        };
        if response.status.is_informational() {
            // Behind a switch of protocols comes what is not HTTP.
            return Ok((Self::Length(0), false));
        }
        let has_none = matches!(response.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        if has_none || method == Method::HEAD {
            return Ok((Self::Length(0), persists));
        }
        if headers.contains_key(header::TRANSFER_ENCODING) {
            if response.version != Version::HTTP_11 {
                return Err(BadFraming("a transfer coding in HTTP/1.0"));
            }
            let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
            let last =
                codings.next_back().and_then(|line| line.as_bytes().rsplit(|byte| *byte == b',').next());
            let is_chunked = last.is_some_and(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"chunked"));
            // Whoever sends both may mean to be read in two ways: the length does not count, nor what follows.
            let is_plain = response.headers.remove(header::CONTENT_LENGTH).is_none();
            return Ok(match is_chunked {
                true => (Self::Chunked(Chunked::default()), persists && is_plain),
                false => (Self::UntilClose, false),
            });
        }
        Ok(match length(headers)? {
            Some(length) => (Self::Length(length), persists),
            None => (Self::UntilClose, false),
        })
    }

    /// Takes what belongs to the content off the front of `bytes`, and shows its data. Gives how many bytes of data it was.
    ///
    /// # Errors
    /// Chunks that make no sense.
    pub(super) fn take(&mut self, bytes: &mut &[u8], mut see: impl FnMut(&[u8])) -> Result<u64, BadFraming> {
        match self {
            Self::Length(left) => Ok(take_up_to(left, bytes, &mut see)),
            Self::UntilClose => {
                let mut all = u64::MAX;
                Ok(take_up_to(&mut all, bytes, &mut see))
            }
            Self::Chunked(chunked) => chunked.take(bytes, see),
        }
    }

    /// Whether all of it was taken.
    pub(super) fn is_at_end(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunked) => chunked.at == At::End,
            Self::UntilClose => false,
        }
    }
}

fn take_up_to(left: &mut u64, bytes: &mut &[u8], see: &mut impl FnMut(&[u8])) -> u64 {
    let count = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
    let (data, rest) = bytes.split_at(count);
    *bytes = rest;
    *left -= count as u64;
    if !data.is_empty() {
        see(data);
    }
    count as u64
}

impl Chunked {
    fn take(&mut self, bytes: &mut &[u8], mut see: impl FnMut(&[u8])) -> Result<u64, BadFraming> {
        let mut data = 0;
        while self.at != At::End {
            if self.at == At::Data {
                data += take_up_to(&mut self.left, bytes, &mut see);
                if self.left > 0 {
                    break;
                }
                self.at = At::DataReturn;
            }
            let Some((byte, rest)) = bytes.split_first() else { break };
            *bytes = rest;
            self.step(*byte)?;
        }
        Ok(data)
    }

    /// One byte that is no data.
    fn step(&mut self, byte: u8) -> Result<(), BadFraming> {
        self.at = match (self.at, byte) {
            (At::Size | At::MoreSize, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                let more = self.left.checked_mul(16).and_then(|left| left.checked_add(digit.into()));
                self.left = more.ok_or(BadFraming("a chunk size beyond counting"))?;
                At::MoreSize
            }
            (At::MoreSize | At::SizeEnd, b' ' | b'\t') => self.beside(At::SizeEnd)?,
            (At::MoreSize | At::SizeEnd, b';') => self.beside(At::Extension)?,
            (At::MoreSize | At::SizeEnd | At::Extension, b'\r') => At::SizeLineFeed,
            (At::Extension, b'\n') => return Err(BadFraming("a line feed in a chunk extension")),
            (At::Extension, _) => self.beside(At::Extension)?,
            (At::SizeLineFeed, b'\n') if self.left == 0 => At::Trailer,
            (At::SizeLineFeed, b'\n') => At::Data,
            (At::DataReturn, b'\r') => At::DataLineFeed,
            (At::DataLineFeed, b'\n') => At::Size,
            (At::Trailer, b'\r') => At::LastLineFeed,
            (At::TrailerLine, b'\n') => At::Trailer,
            (At::Trailer | At::TrailerLine, _) => self.beside(At::TrailerLine)?,
            (At::LastLineFeed, b'\n') => At::End,
            _ => return Err(BadFraming("a chunk that is none")),
        };
        Ok(())
    }

    fn beside(&mut self, next: At) -> Result<At, BadFraming> {
        self.beside += 1;
        if self.beside > MAX_BESIDE_BYTES {
            Err(BadFraming("more beside the chunks than is read"))
        } else {
            Ok(next)
        }
    }
}

/// The one length that all of `Content-Length` gives.
fn length(headers: &HeaderMap) -> Result<Option<u64>, BadFraming> {
    let mut length = None;
    for line in headers.get_all(header::CONTENT_LENGTH) {
        for text in line.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            // `parse` alone would take a sign.
            let digits = text.iter().all(u8::is_ascii_digit).then(|| str::from_utf8(text).ok()).flatten();
            let Some(one) = digits.and_then(|digits| digits.parse::<u64>().ok()) else {
                return Err(BadFraming("a length that is none"));
            };
            if length.is_some_and(|other| other != one) {
                return Err(BadFraming("two lengths"));
            }
            length = Some(one);
        }
    }
    Ok(length)
}

fn has_token(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    let lines = headers.get_all(name).iter();
    let mut tokens = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    tokens.any(|text| text.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

#[cfg(test)]
mod tests {
    use http::Response;
    use proptest::prelude::*;

    use super::*;

    fn of(version: Version, status: u16, headers: &[(&str, &str)]) -> Result<(Framing, bool), BadFraming> {
        let mut response = Response::builder().version(version).status(status);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        Framing::of(&Method::GET, &mut response.body(()).unwrap().into_parts().0)
    }

    #[test]
    fn it_is_told_by_the_head_as_rfc_9112_section_6_3_has_it() {
        let chunked = || Framing::Chunked(Chunked::default());
        let (te, cl, connection) = ("transfer-encoding", "content-length", "connection");
        for (headers, framing) in [
            (&[(cl, "5")][..], Some((Framing::Length(5), true))),
            (&[(cl, "5"), (connection, "Keep-Alive, Close")], Some((Framing::Length(5), false))),
            (&[(cl, "5, 5"), (cl, "5")], Some((Framing::Length(5), true))),
            (&[(cl, "5, 6")], None),
            (&[(cl, "5"), (cl, "6")], None),
            (&[(cl, "+5")], None),
            (&[(cl, "")], None),
            (&[(cl, "18446744073709551616")], None),
            (&[(te, "Chunked")], Some((chunked(), true))),
            (&[(te, "gzip , chunked")], Some((chunked(), true))),
            (&[(te, "gzip"), (te, "chunked")], Some((chunked(), true))),
            (&[(te, "chunked"), (cl, "5")], Some((chunked(), false))),
            (&[(te, "chunked, gzip")], Some((Framing::UntilClose, false))),
            (&[], Some((Framing::UntilClose, false))),
        ] {
            assert_eq!(of(Version::HTTP_11, 200, headers).ok(), framing, "{headers:?}");
        }
        let old = |headers: &[(&str, &str)]| of(Version::HTTP_10, 200, headers).ok();
        assert_eq!(old(&[(cl, "5")]), Some((Framing::Length(5), false)));
        assert_eq!(old(&[(cl, "5"), (connection, "keep-alive")]), Some((Framing::Length(5), true)));
        assert_eq!(old(&[(te, "chunked")]), None);
        for status in [204, 304] {
            assert_eq!(of(Version::HTTP_11, status, &[(cl, "5")]).unwrap().0, Framing::Length(0), "{status}");
        }
        let mut response = Response::builder().header(cl, "5").body(()).unwrap().into_parts().0;
        assert_eq!(Framing::of(&Method::HEAD, &mut response).unwrap().0, Framing::Length(0));
        assert!(response.headers.contains_key(cl), "it tells the object's length");
    }

    /// The data of a chunked content that comes in pieces of so many bytes, and what is behind it.
    fn decoded(content: &[u8], piece_bytes: usize) -> Result<(Vec<u8>, bool, usize), BadFraming> {
        let (mut framing, mut data, mut left) = (Framing::Chunked(Chunked::default()), Vec::new(), 0);
        for mut piece in content.chunks(piece_bytes) {
            let before = data.len();
            let told = framing.take(&mut piece, |bytes| data.extend_from_slice(bytes))?;
            assert_eq!(told, (data.len() - before) as u64);
            left += piece.len();
        }
        Ok((data, framing.is_at_end(), left))
    }

    #[test]
    fn chunks_are_put_together_and_nothing_behind_them_is_taken() {
        let content =
            b"3\r\nabc\r\n00A ; a=\"b\"\r\n0123456789\r\n1;x\r\n!\r\n0\r\nTrailer: 1\r\n\r\nHTTP/1.1";
        for piece_bytes in 1..=content.len() {
            let (data, is_at_end, left) = decoded(content, piece_bytes).unwrap();
            assert_eq!(
                (data.as_slice(), is_at_end, left),
                (&b"abc0123456789!"[..], true, 8),
                "{piece_bytes}"
            );
        }
        let whole = content.len() - 8;
        for end in 0..whole {
            assert!(!decoded(&content[..end], 7).unwrap().1, "cut at {end}");
        }
    }

    #[test]
    fn chunks_that_two_readers_may_take_for_different_things_are_none() {
        for content in [
            "\r\n",
            "x\r\n",
            "-1\r\n",
            "+1\r\n",
            "0x1\r\n",
            " 1\r\n",
            "1\n",
            "1 1\r\na\r\n",
            "1;a\nb\r\na\r\n",
            "1\rx",
            "1\r\nab\r\n",
            "1\r\na\n",
            "ffffffffffffffff0\r\n",
            "0\r\n\rx",
            ";\r\n",
        ] {
            assert!(decoded(content.as_bytes(), 64).is_err(), "{content:?}");
        }
        let long = format!("1;{}\r\na\r\n", "x".repeat(20_000));
        assert!(decoded(long.as_bytes(), 4_096).is_err());
        let long = format!("0\r\n{}", "a: b\r\n".repeat(4_000));
        assert!(decoded(long.as_bytes(), 4_096).is_err());
    }

    proptest! {
        #[test]
        fn whatever_comes_is_taken_the_same_in_whatever_pieces(
            content in proptest::collection::vec(prop_oneof![
                Just(b'0'), Just(b'1'), Just(b'\r'), Just(b'\n'), Just(b';'), Just(b'a'), any::<u8>(),
            ], 0..64),
            piece_bytes in 1..9usize,
        ) {
            prop_assert_eq!(decoded(&content, piece_bytes), decoded(&content, 64));
        }

        #[test]
        fn what_was_cut_into_chunks_is_put_together_again(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..8),
            piece_bytes in 1..50usize,
        ) {
            let mut content = Vec::new();
            for chunk in &chunks {
                content.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                content.extend_from_slice(chunk);
                content.extend_from_slice(b"\r\n");
            }
            content.extend_from_slice(b"0\r\n\r\n");
            prop_assert_eq!(decoded(&content, piece_bytes), Ok((chunks.concat(), true, 0)));
        }
    }
}
