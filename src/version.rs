//! Which version of an object must be in the cache, and whether what came is that version.

use std::fmt::Write;

/// The version that a request expects; what is none may be anything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Expected {
    /// The opaque part of an entity tag, without its quotes.
    etag: Option<String>,
    length_bytes: Option<u64>,
    sha256: Option<[u8; 32]>,
}

/// What is known of a response that came.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen<'a> {
    /// `ETag`, as sent.
    pub etag: Option<&'a str>,
    /// The whole object's length, as it was sent: encoded, where it is.
    pub length_bytes: Option<u64>,
    /// Of the body, as it was sent; none where it was not read.
    pub sha256: Option<[u8; 32]>,
    /// `Content-Encoding`, where there is one.
    pub encoding: Option<&'a str>,
}

impl Expected {
    /// Takes one of `etag`, `length` and `sha256` from an option of that name.
    ///
    /// An entity tag may be written with its quotes or without, strong or weak. A length is in bytes, a hash in hex digits.
    ///
    /// # Errors
    /// Why the value is none, or that there is no such option.
    pub fn set(&mut self, what: &str, value: &str) -> Result<(), &'static str> {
        let value = value.trim();
        match what {
            "etag" => {
                let is_tag = |byte: u8| byte.is_ascii_graphic() && byte != b'"';
                let tag = opaque(value);
                if tag.is_empty() || !tag.bytes().all(is_tag) {
                    return Err("not an entity tag");
                }
                self.etag = Some(tag.to_owned());
            }
            "length" => {
                let is_number = value.bytes().all(|byte| byte.is_ascii_digit());
                let length = value.parse().ok().filter(|_| is_number);
                self.length_bytes = Some(length.ok_or("not a number of bytes")?);
            }
            "sha256" => self.sha256 = Some(from_hex(value).ok_or("not 64 hex digits")?),
            _ => return Err("unknown"),
        }
        Ok(())
    }

    /// Whether the body's hash must be known.
    pub fn needs_hash(&self) -> bool {
        self.sha256.is_some()
    }

    /// What differs, if anything does; what is expected and not known differs as well.
    pub fn mismatch(&self, seen: &Seen<'_>) -> Option<String> {
        if let Some(etag) = &self.etag
            && seen.etag.is_none_or(|seen| opaque(seen) != etag)
        {
            let seen = seen.etag.map_or("no etag".to_owned(), |seen| format!("etag {seen}"));
            return Some(format!("{seen} instead of \"{etag}\""));
        }
        let encoded = seen.encoding.map_or(String::new(), |encoding| format!(", encoded {encoding}"));
        if let Some(length) = self.length_bytes
            && seen.length_bytes != Some(length)
        {
            let seen = seen.length_bytes.map_or("unknown".to_owned(), |seen| seen.to_string());
            return Some(format!("length {seen} instead of {length}{encoded}"));
        }
        if let Some(sha256) = &self.sha256
            && seen.sha256 != Some(*sha256)
        {
            let seen = seen.sha256.map_or("unknown".to_owned(), |seen| hex(&seen));
            return Some(format!("sha256 {seen} instead of {}{encoded}", hex(sha256)));
        }
        None
    }
}

/// An entity tag without what does not matter for weak comparison (RFC 9110, section 8.8.3.2).
pub fn opaque(etag: &str) -> &str {
    let tag = etag.strip_prefix("W/").unwrap_or(etag);
    tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"')).unwrap_or(tag)
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to memory cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected(what: &str, value: &str) -> Expected {
        let mut expected = Expected::default();
        expected.set(what, value).unwrap();
        expected
    }

    #[test]
    fn entity_tags_are_compared_weakly_and_a_missing_one_differs() {
        for written in ["\"v2\"", "v2", "W/\"v2\"", " \"v2\" "] {
            let expected = expected("etag", written);
            for (etag, differs) in [
                (Some("\"v2\""), false),
                (Some("W/\"v2\""), false),
                (Some("\"v1\""), true),
                (Some("\"v22\""), true),
                (None, true),
            ] {
                let seen = Seen { etag, ..Seen::default() };
                assert_eq!(expected.mismatch(&seen).is_some(), differs, "{written} {etag:?}");
            }
        }
        let seen = Seen { etag: Some("\"v1\""), ..Seen::default() };
        assert_eq!(expected("etag", "v2").mismatch(&seen).unwrap(), "etag \"v1\" instead of \"v2\"");
    }

    #[test]
    fn lengths_and_hashes_count_as_sent() {
        let length = expected("length", "10");
        let seen = |length_bytes| Seen { length_bytes, encoding: Some("gzip"), ..Seen::default() };
        assert_eq!(length.mismatch(&seen(Some(10))), None);
        assert_eq!(length.mismatch(&seen(Some(9))).unwrap(), "length 9 instead of 10, encoded gzip");
        assert_eq!(length.mismatch(&seen(None)).unwrap(), "length unknown instead of 10, encoded gzip");
        let hash = expected("sha256", &"Ab".repeat(32));
        assert!(hash.needs_hash() && !length.needs_hash());
        assert_eq!(hash.mismatch(&Seen { sha256: Some([0xab; 32]), ..Seen::default() }), None);
        for sha256 in [Some([0xac; 32]), None] {
            let why = hash.mismatch(&Seen { sha256, ..Seen::default() }).unwrap();
            assert!(why.ends_with(&"ab".repeat(32)), "{why}");
        }
    }

    #[test]
    fn what_is_no_version_is_not_taken() {
        for (what, value) in [
            ("etag", ""),
            ("etag", "\"\""),
            ("etag", "a\"b"),
            ("etag", "a b"),
            ("length", ""),
            ("length", "-1"),
            ("length", "+1"),
            ("length", "1.5"),
            ("length", "99999999999999999999"),
            ("sha256", "ab"),
            ("sha256", &"g".repeat(64)),
            ("sha256", &"é".repeat(32)),
            ("md5", "ab"),
        ] {
            assert!(Expected::default().set(what, value).is_err(), "{what}={value}");
        }
    }
}
