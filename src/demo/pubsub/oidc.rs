//! The tokens that pushes carry: signed by a key pair of this process, whose public half is served as Google's is.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::HeaderValue;
use serde_json::{Value, json};
use tokio::time::Instant;

/// Where the public key is served, as a path: the same as Google's.
pub(super) const KEYS_PATH: &str = "/oauth2/v3/certs";

/// How long clients may keep the keys.
pub(super) const KEYS_CACHE_CONTROL: &str = "public, max-age=3600, must-revalidate, no-transform";

/// How long a token is valid, and for how long it is sent: production's too are used for a while, then replaced early.
const VALID: Duration = Duration::from_secs(3_600);
const SENT: Duration = Duration::from_secs(1_800);

/// Signs tokens.
#[derive(Debug)]
pub(super) struct Signer {
    key: KeyPair,
    kid: String,
}

impl Signer {
    /// With a new key of 2048 bits, which takes a moment.
    pub(super) fn generate() -> Self {
        let key = KeyPair::generate(KeySize::Rsa2048).expect("an RSA key can be made wherever this runs");
        Self { key, kid: format!("{:016x}", fastrand::u64(..)) }
    }

    /// The key set with the public key, as JSON.
    pub(super) fn keys(&self) -> Value {
        let public = self.key.public_key();
        let encoded = |number: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(number);
        let (n, e) = (public.modulus(), public.exponent());
        json!({ "keys": [{
            "kty": "RSA", "alg": "RS256", "use": "sig", "kid": self.kid,
            "n": encoded(n.big_endian_without_leading_zero()),
            "e": encoded(e.big_endian_without_leading_zero()),
        }] })
    }

    /// A token with the claims that production gives.
    fn token(&self, service_account_email: &str, audience: &str, now: SystemTime) -> String {
        let issued = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let header = json!({ "alg": "RS256", "kid": self.kid, "typ": "JWT" });
        // Production's azp and sub are the account's number.
        let number = "100000000000000000001";
        let claims = json!({
            "aud": audience, "azp": number, "email": service_account_email, "email_verified": true,
            "exp": (issued + VALID).as_secs(), "iat": issued.as_secs(), "iss": "https://accounts.google.com", "sub": number,
        });
        let part = |json: Value| BASE64_URL_SAFE_NO_PAD.encode(json.to_string());
        let signed = format!("{}.{}", part(header), part(claims));
        let mut signature = vec![0; self.key.public_modulus_len()];
        self.key
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature)
            .expect("a 2048-bit key signs a SHA-256 digest");
        format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
    }
}

/// The `Authorization` of one subscription's pushes.
pub(super) struct Bearer {
    signer: Arc<Signer>,
    service_account_email: String,
    audience: String,
    current: Option<(HeaderValue, Instant)>,
}

impl Bearer {
    pub(super) fn new(signer: Arc<Signer>, service_account_email: &str, audience: &str) -> Self {
        Self {
            signer,
            service_account_email: service_account_email.to_owned(),
            audience: audience.to_owned(),
            current: None,
        }
    }

    /// The header's value, with a new token every now and then.
    pub(super) fn value(&mut self) -> HeaderValue {
        let now = Instant::now();
        match &self.current {
            Some((value, made)) if now < *made + SENT => value.clone(),
            _ => {
                let token = self.signer.token(&self.service_account_email, &self.audience, SystemTime::now());
                let mut value = HeaderValue::try_from(format!("Bearer {token}"))
                    .expect("base64url and dots fit a header");
                value.set_sensitive(true);
                self.current = Some((value.clone(), now));
                value
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_token_is_used_again_and_replaced_long_before_it_expires() {
        let mut bearer = Bearer::new(Arc::new(Signer::generate()), "push@p.iam.gserviceaccount.com", "a");
        let first = bearer.value();
        tokio::time::advance(SENT - Duration::from_secs(1)).await;
        assert!(bearer.value() == first);
        let made = bearer.current.as_ref().unwrap().1;
        tokio::time::advance(Duration::from_secs(1)).await;
        bearer.value();
        assert!(bearer.current.as_ref().unwrap().1 > made);
    }
}
