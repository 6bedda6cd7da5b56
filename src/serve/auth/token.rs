//! What a token says before its signature is verified (RFC 6750, 7515, 7519, 8725), and what `jsonwebtoken` must verify.
//!
//! The checks here come in front of `jsonwebtoken::decode`, which reads the same text again and has the last word, for
//! three reasons. A token that would be rejected anyway must not start a fetch of the keys. A token whose signature Cloud
//! Run has removed cannot be decoded, because `jsonwebtoken` validates claims only behind a signature. And the crate is more
//! lenient: it accepts `iss` and `aud` lists that hold an expected value, `"crit": null`, claims in a JSON array and, where it
//! skips them, texts that are not UTF-8; and it knows no `email`, `email_verified` or `iat`.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, header};
use jsonwebtoken::{Algorithm, Validation};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::refusal::{Reason, Refusal, shown};

/// The most bytes of a header's value: a push's token has about 1,000.
const MAX_VALUE_BYTES: usize = 16 << 10;

/// How far clocks may be apart, in seconds.
const LEEWAY_S: u32 = 30;

/// The issuer of Google's tokens: its documents show both spellings.
const ISSUERS: [&str; 2] = ["https://accounts.google.com", "accounts.google.com"];

/// The values that a push token's claims must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Expected {
    pub(super) audience: String,
    pub(super) service_account: String,
}

impl Expected {
    /// Returns what `jsonwebtoken` must verify: RS256 and no other algorithm, issuer, audience and times.
    pub(super) fn validation(&self) -> Validation {
        let mut validation = Validation::new(Algorithm::RS256);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        validation.set_issuer(&ISSUERS);
        validation.set_audience(&[&self.audience]);
        validation.validate_nbf = true;
        validation.leeway = LEEWAY_S.into();
        validation
    }
}

/// The one token that the headers carry.
///
/// # Errors
/// No `Authorization` header or several, another scheme than `Bearer` and one space before one token, or more than 16 KiB.
pub(super) fn bearer(headers: &HeaderMap) -> Result<&str, Refusal> {
    let refused = |detail: &str| Err(Refusal::new(Reason::Header, detail));
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = values.next() else {
        return Err(Refusal::new(Reason::NoToken, "no Authorization header"));
    };
    // Which of two would count depends on who reads them.
    if values.next().is_some() {
        return refused("more than one Authorization header");
    }
    if value.len() > MAX_VALUE_BYTES {
        return refused("an Authorization header of more than 16 KiB");
    }
    let Ok(text) = value.to_str() else {
        return refused("an Authorization header that is not ASCII");
    };
    match text.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() => Ok(token),
        Some(_) | None => refused("an Authorization header that is not Bearer and a token"),
    }
}

/// A token whose header and claims are read; its signature is not verified.
#[derive(Debug)]
pub(super) struct Unverified<'a> {
    header: Header,
    pub(super) claims: Claims,
    /// The signature part as it came.
    pub(super) signature: &'a str,
}

/// The header parameters that are used. Others are ignored, above all those that would choose a key: `jwk`, `jku`,
/// `x5u`, `x5c`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Header {
    alg: Value,
    kid: Value,
    #[serde(deserialize_with = "present")]
    crit: Option<Value>,
}

/// The claims that are checked; one that is there twice makes the token malformed.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Claims {
    iss: Value,
    aud: Value,
    email: Value,
    email_verified: Value,
    exp: Value,
    #[serde(deserialize_with = "present")]
    nbf: Option<Value>,
    #[serde(deserialize_with = "present")]
    iat: Option<Value>,
}

/// A member that is there, be it null.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

impl<'a> Unverified<'a> {
    /// Reads a compact JWS (RFC 7515, section 7.1).
    ///
    /// # Errors
    /// Other than three non-empty parts, of which the first two are base64url without padding and hold one JSON object
    /// each, without a member that matters twice.
    pub(super) fn parse(text: &'a str) -> Result<Self, Refusal> {
        let malformed = |detail| Refusal::new(Reason::Malformed, detail);
        let [header, claims, signature] = text.splitn(4, '.').collect::<Vec<_>>()[..] else {
            return Err(malformed("a token that has not three parts"));
        };
        if header.is_empty() || claims.is_empty() || signature.is_empty() {
            return Err(malformed("a token with an empty part"));
        }
        Ok(Self {
            header: object(header).ok_or_else(|| malformed("a token whose header is no JSON object"))?,
            claims: object(claims).ok_or_else(|| malformed("a token whose claims are no JSON object"))?,
            signature,
        })
    }

    /// Checks that the header names RS256 and no extension that would have to be understood.
    ///
    /// # Errors
    /// Any other `alg`, or a `crit` (RFC 7515, section 4.1.11).
    pub(super) fn check_algorithm(&self) -> Result<(), Refusal> {
        if self.header.alg != "RS256" {
            return Err(Refusal::new(Reason::Algorithm, told("alg", &self.header.alg)));
        }
        match &self.header.crit {
            None => Ok(()),
            Some(crit) => Err(Refusal::new(Reason::Algorithm, told("crit", crit))),
        }
    }

    /// Returns the id of the key that the header names.
    ///
    /// # Errors
    /// A `kid` that is missing or no string.
    pub(super) fn key_id(&self) -> Result<&str, Refusal> {
        let kid = &self.header.kid;
        kid.as_str().ok_or_else(|| Refusal::new(Reason::UnknownKey, told("kid", kid)))
    }
}

impl Claims {
    /// Checks every claim; `now_s` is in seconds since 1970.
    ///
    /// # Errors
    /// The first claim that is missing, of another type, or not as expected.
    pub(super) fn check(&self, expected: &Expected, now_s: f64) -> Result<(), Refusal> {
        let refused = |reason, name, value| Err(Refusal::new(reason, told(name, value)));
        if !ISSUERS.iter().any(|issuer| self.iss == *issuer) {
            return refused(Reason::Issuer, "iss", &self.iss);
        }
        // RFC 7519 allows a list too, but Pub/Sub never sends one.
        if self.aud != expected.audience.as_str() {
            return refused(Reason::Audience, "aud", &self.aud);
        }
        if self.email != expected.service_account.as_str() {
            return refused(Reason::Account, "email", &self.email);
        }
        if self.email_verified != true {
            return refused(Reason::Account, "email_verified", &self.email_verified);
        }
        if self.expiry_s().is_none_or(|expiry_s| expiry_s + f64::from(LEEWAY_S) <= now_s) {
            return refused(Reason::Expired, "exp", &self.exp);
        }
        for (name, claim) in [("nbf", &self.nbf), ("iat", &self.iat)] {
            let Some(claim) = claim else { continue };
            if claim.as_f64().is_none_or(|from_s| from_s - f64::from(LEEWAY_S) > now_s) {
                return refused(Reason::Early, name, claim);
            }
        }
        Ok(())
    }

    /// Returns the expiry, in seconds since 1970.
    pub(super) fn expiry_s(&self) -> Option<f64> {
        self.exp.as_f64()
    }
}

/// A member as the log tells it.
fn told(name: &str, value: &Value) -> String {
    match value {
        Value::Null => format!("{name} is missing"),
        Value::String(text) => format!("{name} is \"{}\"", shown(text)),
        other => format!("{name} is {}", shown(&other.to_string())),
    }
}

/// Parses the JSON object in a part.
fn object<T: for<'de> Deserialize<'de>>(part: &str) -> Option<T> {
    let bytes = URL_SAFE_NO_PAD.decode(part).ok()?;
    // The parser looks neither into strings that it skips, nor minds a list where a struct is wanted.
    let text = std::str::from_utf8(&bytes).ok()?;
    let is_object = text.trim_start_matches([' ', '\t', '\n', '\r']).starts_with('{');
    if is_object { serde_json::from_str(text).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW_S: f64 = 1_800_000_000.0;

    fn headers(values: &[&[u8]]) -> HeaderMap {
        values
            .iter()
            .map(|value| (header::AUTHORIZATION, http::HeaderValue::from_bytes(value).unwrap()))
            .collect()
    }

    #[test]
    fn exactly_one_header_with_a_bearer_token_will_do() {
        for good in [&b"Bearer a.b.c"[..], b"bearer a.b.c", b"BEARER a.b.c", b"bEaReR a.b.c"] {
            assert_eq!(bearer(&headers(&[good])), Ok("a.b.c"));
        }
        // What follows the one space is the token's affair.
        assert_eq!(bearer(&headers(&[b"Bearer  a"])), Ok(" a"));
        assert_eq!(bearer(&HeaderMap::new()).unwrap_err().reason, Reason::NoToken);
        for bad in [&b""[..], b"Bearer", b"Bearer ", b"a.b.c", b"Basic YTpi", b"Bearer\ta", b"Bearer \xff"] {
            assert_eq!(bearer(&headers(&[bad])).unwrap_err().reason, Reason::Header, "{bad:?}");
        }
        assert_eq!(bearer(&headers(&[b"Bearer a", b"Bearer a"])).unwrap_err().reason, Reason::Header);
        let of_length = |bytes: usize| format!("Bearer {}", "a".repeat(bytes - 7));
        bearer(&headers(&[of_length(MAX_VALUE_BYTES).as_bytes()])).unwrap();
        bearer(&headers(&[of_length(MAX_VALUE_BYTES + 1).as_bytes()])).unwrap_err();
    }

    fn part(json: &str) -> String {
        URL_SAFE_NO_PAD.encode(json)
    }

    fn parse(header: &str, claims: &str) -> Result<(), Refusal> {
        let text = format!("{}.{}.c2ln", part(header), part(claims));
        let token = Unverified::parse(&text)?;
        assert_eq!(token.signature, "c2ln");
        token.check_algorithm()?;
        token.key_id().map(drop)
    }

    #[test]
    fn a_token_is_three_parts_and_two_json_objects() {
        let header = r#"{"alg":"RS256","kid":"k"}"#;
        assert_eq!(parse(header, "{}"), Ok(()));
        assert_eq!(parse(&format!(" \r\n\t{header} "), "{}"), Ok(()));
        assert_eq!(parse(r#"{"alg":"RS256","kid":"k","jwk":{"alg":1},"x":[[[]]]}"#, "{}"), Ok(()));
        for (header, claims) in [
            ("[\"RS256\",\"k\"]", "{}"),
            (header, "[]"),
            (header, "\"{}\""),
            (header, "null"),
            (header, "{} {}"),
            (header, ""),
            (r#"{"alg":"RS256","kid":"k","kid":"k"}"#, "{}"),
            (r#"{"alg":"none","alg":"RS256","kid":"k"}"#, "{}"),
            (r#"{"\u0061lg":"none","alg":"RS256","kid":"k"}"#, "{}"),
            (header, r#"{"aud":"a","aud":"b"}"#),
            (header, r#"{"exp":1e400}"#),
            (header, r#"{"exp":NaN}"#),
        ] {
            assert_eq!(parse(header, claims).unwrap_err().reason, Reason::Malformed, "{header} {claims}");
        }
        let (header, claims) = (part(header), part("{}"));
        for bad in [
            String::new(),
            "a".to_owned(),
            "..".to_owned(),
            format!("{header}.{claims}"),
            format!("{header}.{claims}."),
            format!("{header}..c2ln"),
            format!(".{claims}.c2ln"),
            format!("{header}.{claims}.c2ln."),
            format!("{header}.{claims}.c2ln.c2ln.c2ln"),
            // Padding, a bit in the last character that encodes nothing, and what is not UTF-8 in a value that is skipped.
            format!("{header}.{claims}=.c2ln"),
            format!("{header}.e31.c2ln"),
            format!("{header}.{}.c2ln", URL_SAFE_NO_PAD.encode(b"{\"x\":\"\xff\"}")),
        ] {
            assert_eq!(Unverified::parse(&bad).unwrap_err().reason, Reason::Malformed, "{bad}");
        }
    }

    #[test]
    fn only_rs256_without_extensions_and_with_a_key_id_is_taken() {
        for (header, reason) in [
            (r#"{"kid":"k"}"#, Reason::Algorithm),
            (r#"{"alg":null,"kid":"k"}"#, Reason::Algorithm),
            (r#"{"alg":["RS256"],"kid":"k"}"#, Reason::Algorithm),
            (r#"{"alg":"rs256","kid":"k"}"#, Reason::Algorithm),
            (r#"{"alg":"HS256","kid":"k"}"#, Reason::Algorithm),
            (r#"{"alg":"RS256","kid":"k","crit":["exp"]}"#, Reason::Algorithm),
            (r#"{"alg":"RS256","kid":"k","crit":null}"#, Reason::Algorithm),
            (r#"{"alg":"RS256"}"#, Reason::UnknownKey),
            (r#"{"alg":"RS256","kid":1}"#, Reason::UnknownKey),
        ] {
            assert_eq!(parse(header, "{}").unwrap_err().reason, reason, "{header}");
        }
    }

    /// The reason for which claims with this change are refused.
    fn refused(change: Value) -> Option<Reason> {
        let mut claims = json!({"iss": "https://accounts.google.com", "aud": "https://warm.example.com/",
            "email": "push@p.iam.gserviceaccount.com", "email_verified": true, "exp": NOW_S + 3600.0, "iat": NOW_S,
            "sub": "1", "azp": "1"});
        for (name, value) in change.as_object().unwrap() {
            match value.as_str() {
                Some("-") => drop(claims.as_object_mut().unwrap().remove(name)),
                _ => claims[name] = value.clone(),
            }
        }
        let expected = Expected {
            audience: "https://warm.example.com/".to_owned(),
            service_account: "push@p.iam.gserviceaccount.com".to_owned(),
        };
        let claims: Claims = object(&part(&claims.to_string())).unwrap();
        claims.check(&expected, NOW_S).err().map(|refusal| refusal.reason)
    }

    #[test]
    fn claims_are_as_pubsub_makes_them_for_this_service() {
        for good in [
            json!({}),
            json!({"iss": "accounts.google.com"}),
            json!({"exp": NOW_S - 29.0}),
            json!({"exp": 1_800_000_000.5}),
            json!({"exp": u64::MAX}),
            json!({"nbf": NOW_S + 30.0, "iat": NOW_S + 30.0}),
            json!({"iat": "-"}),
        ] {
            assert_eq!(refused(good.clone()), None, "{good}");
        }
        for (bad, reason) in [
            (json!({"iss": "http://accounts.google.com"}), Reason::Issuer),
            (json!({"iss": ["accounts.google.com"]}), Reason::Issuer),
            (json!({"iss": "-"}), Reason::Issuer),
            (json!({"aud": "https://warm.example.com"}), Reason::Audience),
            (json!({"aud": ["https://warm.example.com/"]}), Reason::Audience),
            (json!({"email": "PUSH@p.iam.gserviceaccount.com"}), Reason::Account),
            (json!({"email_verified": "true"}), Reason::Account),
            (json!({"email_verified": 1}), Reason::Account),
            (json!({"email_verified": "-"}), Reason::Account),
            (json!({"exp": NOW_S - 30.0}), Reason::Expired),
            (json!({"exp": (NOW_S + 3600.0).to_string()}), Reason::Expired),
            (json!({"exp": true}), Reason::Expired),
            (json!({"exp": -1}), Reason::Expired),
            (json!({"exp": "-"}), Reason::Expired),
            (json!({"nbf": NOW_S + 31.0}), Reason::Early),
            (json!({"nbf": null}), Reason::Early),
            (json!({"iat": NOW_S + 31.0}), Reason::Early),
            (json!({"iat": "now"}), Reason::Early),
        ] {
            assert_eq!(refused(bad.clone()), Some(reason), "{bad}");
        }
    }

    #[test]
    fn the_log_is_told_what_was_claimed_in_one_line() {
        let claims: Claims = object(&part(r#"{"iss":"accounts.google.com","aud":"x\r\ny"}"#)).unwrap();
        let expected = Expected { audience: "a".to_owned(), service_account: "b".to_owned() };
        let refusal = claims.check(&expected, NOW_S).unwrap_err();
        assert_eq!(refusal.detail, r#"aud is "x\r\ny""#);
    }
}
