//! Push tokens, good ones and every bad one of the case list, signed by keys that are made at run time.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize, PublicKeyComponents};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256,
    RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RsaEncoding,
};
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use serde_json::{Value, json};

pub(crate) const AUDIENCE: &str = "https://warm-europe-west1.example.com/";
pub(crate) const ACCOUNT: &str = "push@project-1.iam.gserviceaccount.com";

/// The issuer's keys, of which `a` and `b` are published first, `b` and `c` later; and those of somebody else.
pub(crate) struct Keys {
    a: KeyPair,
    b: KeyPair,
    c: KeyPair,
    attacker: KeyPair,
}

impl Keys {
    pub(crate) fn new() -> Self {
        let key = || KeyPair::generate(KeySize::Rsa2048).unwrap();
        Self { a: key(), b: key(), c: key(), attacker: key() }
    }

    /// The key set at stage 1 or 2.
    pub(crate) fn published(&self, stage: u8) -> String {
        let keys = match stage {
            1 => [public(&self.a, "key-a"), public(&self.b, "key-b")],
            _ => [public(&self.b, "key-b"), public(&self.c, "key-c")],
        };
        json!({ "keys": keys }).to_string()
    }

    /// A good token, with a claim of its own so that it is never sent twice.
    pub(crate) fn good(&self, number: usize) -> String {
        let mut claims = claims();
        claims["number"] = json!(number);
        sign(&header("key-b"), &claims, &self.b)
    }

    /// A token that is good but for its key id.
    pub(crate) fn with_kid(&self, kid: &str) -> String {
        sign(&header(kid), &claims(), &self.attacker)
    }

    /// A token as Cloud Run's front end leaves it, with this change to its claims.
    pub(crate) fn without_signature(&self, change: &Value) -> String {
        let token = sign(&header("key-a"), &with(claims(), change), &self.a);
        let (signed, _) = token.rsplit_once('.').unwrap();
        format!("{signed}.SIGNATURE_REMOVED_BY_GOOGLE")
    }

    /// The header lines of a case; `canary` is the URL that no key may be fetched from.
    ///
    /// # Panics
    /// A name that is in no list.
    pub(crate) fn lines(&self, name: &str, canary: &str) -> Vec<Vec<u8>> {
        let good = || sign(&header("key-a"), &claims(), &self.a);
        let line = |value: String| vec![format!("Authorization: {value}").into_bytes()];
        match name {
            "no-header" => vec![],
            "empty-header" => line(String::new()),
            "scheme-only" => line("Bearer".to_owned()),
            "scheme-and-space" => line("Bearer ".to_owned()),
            "no-scheme" => line(good()),
            "basic" => line(format!("Basic {}", BASE64_STANDARD.encode("user:password"))),
            "negotiate" => line(format!("Negotiate {}", good())),
            "two-tokens" => line(format!("Bearer {} {}", good(), good())),
            "two-headers-bad-first" => {
                [line("Bearer a.b.c".to_owned()), line(format!("Bearer {}", good()))].concat()
            }
            "two-headers-bad-last" => {
                [line(format!("Bearer {}", good())), line("Bearer a.b.c".to_owned())].concat()
            }
            "comma-list" => line(format!("Bearer {}, Bearer {}", good(), good())),
            "quoted" => line(format!("Bearer \"{}\"", good())),
            "ok-scheme-lower-case" => line(format!("bearer {}", good())),
            "ok-scheme-upper-case" => line(format!("BEARER {}", good())),
            _ => line(format!("Bearer {}", self.token(name, canary))),
        }
    }

    fn token(&self, name: &str, canary: &str) -> String {
        let found = self
            .accepted(name, canary)
            .or_else(|| self.structure(name))
            .or_else(|| self.signature(name))
            .or_else(|| self.key_choice(name, canary))
            .or_else(|| self.algorithm(name))
            .or_else(|| changed_claims(name).map(|claims| sign(&header("key-a"), &claims, &self.a)));
        found.unwrap_or_else(|| panic!("no token is made for the case {name}"))
    }

    fn accepted(&self, name: &str, canary: &str) -> Option<String> {
        let now = now();
        let (header, claims) = match name {
            "ok-key-a" => (header("key-a"), claims()),
            "ok-key-b" | "ok-kept-over-rotation" => return Some(sign(&header("key-b"), &claims(), &self.b)),
            "ok-rotated-in" => return Some(sign(&header("key-c"), &claims(), &self.c)),
            "ok-iss-without-scheme" => {
                (header("key-a"), with(claims(), &json!({"iss": "accounts.google.com"})))
            }
            "ok-extra-claims" => (
                header("key-a"),
                with(claims(), &json!({"groups": ["x"], "google": {"aud": "other", "exp": 0}})),
            ),
            "ok-no-typ" => (json!({"alg": "RS256", "kid": "key-a"}), claims()),
            "ok-unknown-header" => (with(header("key-a"), &json!({"x-unknown": {"alg": "none"}})), claims()),
            "ok-issued-5s-ahead" => (header("key-a"), with(claims(), &json!({"iat": now + 5}))),
            "ok-nbf-now" => (header("key-a"), with(claims(), &json!({"nbf": now - 1}))),
            "ok-near-expiry" => {
                (header("key-a"), with(claims(), &json!({"iat": now - 3_540, "exp": now + 60})))
            }
            "ok-attacker-headers-ignored" => {
                let jwk = public(&self.attacker, "key-a");
                (with(header("key-a"), &json!({"jku": canary, "x5u": canary, "jwk": jwk})), claims())
            }
            _ => return None,
        };
        Some(sign(&header, &claims, &self.a))
    }

    fn structure(&self, name: &str) -> Option<String> {
        let good = sign(&header("key-a"), &claims(), &self.a);
        let [head, payload, signature] = three(&good);
        let raw = |header: &[u8], payload: &[u8]| signed_by(header, payload, &self.a, &RSA_PKCS1_SHA256);
        let header = header("key-a").to_string().into_bytes();
        let payload_of = |text: &[u8]| raw(&header, text);
        let header_of = |text: &[u8]| raw(text, claims().to_string().as_bytes());
        Some(match name {
            "oversize-60k" => sign(
                &self::header("key-a"),
                &with(claims(), &json!({"padding": "x".repeat(45_000)})),
                &self.a,
            ),
            "one-part" => head.to_owned(),
            "two-parts" => format!("{head}.{payload}"),
            "empty-signature" => format!("{head}.{payload}."),
            "empty-payload" => signed_text(&format!("{head}."), &self.a, &RSA_PKCS1_SHA256),
            "empty-header-part" => signed_text(&format!(".{payload}"), &self.a, &RSA_PKCS1_SHA256),
            "dots-only" => "..".to_owned(),
            "four-parts" => format!("{good}.{signature}"),
            "five-parts" => format!("{head}.{payload}.{payload}.{payload}.{signature}"),
            "not-base64" => format!("{head}.{payload}!.{signature}"),
            "standard-base64-sig" => self.with_standard_signature(),
            "signature-removed-by-platform" => self.without_signature(&json!({})),
            "json-serialization" => {
                json!({"payload": payload, "protected": head, "signature": signature}).to_string()
            }
            "header-array" => header_of(br#"["RS256","key-a",null]"#),
            "header-not-json" => header_of(b"alg=RS256;kid=key-a"),
            "header-not-utf8" => header_of(b"{\"alg\":\"RS256\",\"kid\":\"key-a\",\"x\":\"\xff\xfe\"}"),
            "payload-array" => payload_of(
                json!(["https://accounts.google.com", AUDIENCE, ACCOUNT, true, now() + 3_600, null, null])
                    .to_string()
                    .as_bytes(),
            ),
            "payload-string" => payload_of(b"\"claims\""),
            "payload-not-json" => payload_of(b"aud=everything"),
            "payload-empty-object" => payload_of(b"{}"),
            "payload-not-utf8" => {
                let text = claims().to_string();
                payload_of(&[text.trim_end_matches('}').as_bytes(), b",\"x\":\"\xff\xfe\"}"].concat())
            }
            "payload-deep" => payload_of(format!("{}{}", "[".repeat(5_000), "]".repeat(5_000)).as_bytes()),
            _ => return None,
        })
    }

    /// Signed well, but with a signature in the other alphabet; it has at least one character that only that one has.
    fn with_standard_signature(&self) -> String {
        (0..)
            .find_map(|number| {
                let token = sign(&header("key-a"), &with(claims(), &json!({"number": number})), &self.a);
                let [head, payload, signature] = three(&token);
                let standard = signature.replace('-', "+").replace('_', "/");
                (standard != signature).then(|| format!("{head}.{payload}.{standard}=="))
            })
            .unwrap()
    }

    fn signature(&self, name: &str) -> Option<String> {
        let good = sign(&header("key-a"), &claims(), &self.a);
        let [head, payload, signature] = three(&good);
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(signature).unwrap();
        let with_signature = |bytes: &[u8]| format!("{head}.{payload}.{}", part(bytes));
        let other_claims = with(claims(), &json!({"exp": now() + 3_601}));
        Some(match name {
            "signature-bit-flipped" => {
                let mut bytes = bytes;
                bytes[100] ^= 1;
                with_signature(&bytes)
            }
            "signature-truncated" => with_signature(&bytes[..255]),
            "signature-zero" => with_signature(&[0; 256]),
            "signature-one" => {
                let mut one = [0; 256];
                one[255] = 1;
                with_signature(&one)
            }
            "signature-longer" => with_signature(&[&bytes[..], b"\0\0"].concat()),
            "signature-of-other-token" => {
                let other = sign(&header("key-a"), &other_claims, &self.a);
                format!("{head}.{payload}.{}", three(&other)[2])
            }
            "payload-changed" => format!("{head}.{}.{signature}", part(other_claims.to_string().as_bytes())),
            "header-changed" => {
                let header = with(header("key-a"), &json!({"typ": "jwt"}));
                format!("{}.{payload}.{signature}", part(header.to_string().as_bytes()))
            }
            "attacker-key-known-kid" => sign(&header("key-a"), &claims(), &self.attacker),
            "key-b-under-kid-a" => sign(&header("key-a"), &claims(), &self.b),
            _ => return None,
        })
    }

    fn key_choice(&self, name: &str, canary: &str) -> Option<String> {
        let by_a = |kid: Value| sign(&with(header(""), &json!({"kid": kid})), &claims(), &self.a);
        let by_attacker = |kid: &str, more: &Value| sign(&with(header(kid), more), &claims(), &self.attacker);
        let without_kid = json!({"alg": "RS256", "typ": "JWT"});
        let jwk = json!({"jwk": public(&self.attacker, "attacker")});
        Some(match name {
            "kid-unknown" => by_a(json!("key-x")),
            "kid-missing" => sign(&without_kid, &claims(), &self.a),
            "kid-missing-attacker" => sign(&without_kid, &claims(), &self.attacker),
            "kid-empty" => by_a(json!("")),
            "kid-number" => by_a(json!(1)),
            "kid-null" => by_a(json!(null)),
            "kid-path" => by_a(json!("../../../../dev/null")),
            "kid-url" => by_a(json!(canary)),
            "kid-8k" => by_a(json!("k".repeat(8 << 10))),
            "kid-crlf" => by_a(json!("key-x\r\n{\"severity\":\"INFO\",\"message\":\"injected\"}")),
            "jwk-embedded" => by_attacker("attacker", &jwk),
            "jwk-embedded-known-kid" => by_attacker("key-a", &jwk),
            "jku" => by_attacker("attacker", &json!({"jku": canary})),
            "jku-known-kid" => by_attacker("key-a", &json!({"jku": canary})),
            "x5u" => by_attacker("attacker", &json!({"x5u": canary})),
            "x5c" => {
                let certificate = self.attacker.public_key().as_der().unwrap();
                by_attacker("key-a", &json!({"x5c": [BASE64_STANDARD.encode(certificate.as_ref())]}))
            }
            "rotated-out" => sign(&header("key-a"), &claims(), &self.a),
            "rotated-in-too-early" => sign(&header("key-c"), &claims(), &self.c),
            _ => return None,
        })
    }

    fn algorithm(&self, name: &str) -> Option<String> {
        let alg = |alg: &str| with(header("key-a"), &json!({"alg": alg}));
        let signed = |header: Value, with: &'static dyn RsaEncoding| {
            signed_by(header.to_string().as_bytes(), claims().to_string().as_bytes(), &self.a, with)
        };
        let unsigned = |header: Value| {
            format!("{}.{}", part(header.to_string().as_bytes()), part(claims().to_string().as_bytes()))
        };
        if let Some(spelling) = name.strip_prefix("alg-").and_then(|rest| rest.strip_suffix("-no-signature"))
        {
            return Some(format!("{}.", unsigned(alg(if spelling == "empty" { "" } else { spelling }))));
        }
        Some(match name {
            "alg-none-old-signature" => {
                let good = sign(&header("key-a"), &claims(), &self.a);
                format!("{}.{}", unsigned(alg("none")), three(&good)[2])
            }
            "alg-missing" => signed(json!({"kid": "key-a", "typ": "JWT"}), &RSA_PKCS1_SHA256),
            "alg-null" => signed(with(header("key-a"), &json!({"alg": null})), &RSA_PKCS1_SHA256),
            "alg-array" => signed(with(header("key-a"), &json!({"alg": ["RS256"]})), &RSA_PKCS1_SHA256),
            "alg-lower-case" => signed(alg("rs256"), &RSA_PKCS1_SHA256),
            "rs384" => signed(alg("RS384"), &RSA_PKCS1_SHA384),
            "rs512" => signed(alg("RS512"), &RSA_PKCS1_SHA512),
            "ps256" => signed(alg("PS256"), &RSA_PSS_SHA256),
            "rs256-signed-sha512" => signed(header("key-a"), &RSA_PKCS1_SHA512),
            "es256-attacker" => {
                let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
                let text = unsigned(alg("ES256"));
                let signature = key.sign(&SystemRandom::new(), text.as_bytes()).unwrap();
                format!("{text}.{}", part(signature.as_ref()))
            }
            "es256-zero" => format!("{}.{}", unsigned(alg("ES256")), part(&[0; 64])),
            "eddsa-attacker" => {
                let key = Ed25519KeyPair::generate().unwrap();
                let text = unsigned(alg("EdDSA"));
                format!("{text}.{}", part(key.sign(text.as_bytes()).as_ref()))
            }
            _ => return self.hmac(name, &unsigned),
        })
    }

    /// HMAC with what everybody knows for the secret.
    fn hmac(&self, name: &str, unsigned: &dyn Fn(Value) -> String) -> Option<String> {
        let (algorithm, secret) = name.split_once('-')?;
        let hmac_algorithm = match algorithm {
            "hs256" => hmac::HMAC_SHA256,
            "hs384" => hmac::HMAC_SHA384,
            "hs512" => hmac::HMAC_SHA512,
            _ => return None,
        };
        let key = self.a.public_key();
        let (spki, pkcs1) = (key.as_der().unwrap(), key.as_ref());
        let modulus = key.modulus().big_endian_without_leading_zero().to_vec();
        let secret = match secret {
            "pem" => pem("PUBLIC KEY", spki.as_ref()).into_bytes(),
            "pem-no-newline" => pem("PUBLIC KEY", spki.as_ref()).trim_end().as_bytes().to_vec(),
            "pkcs1-pem" => pem("RSA PUBLIC KEY", pkcs1).into_bytes(),
            "der" => spki.as_ref().to_vec(),
            "pkcs1-der" => pkcs1.to_vec(),
            "modulus" => modulus,
            "modulus-text" => part(&modulus).into_bytes(),
            "jwk-text" => public(&self.a, "key-a").to_string().into_bytes(),
            "empty" => Vec::new(),
            "kid" => b"key-a".to_vec(),
            "word" => b"secret".to_vec(),
            _ => return None,
        };
        let text = unsigned(with(header("key-a"), &json!({"alg": algorithm.to_uppercase()})));
        let tag = hmac::sign(&hmac::Key::new(hmac_algorithm, &secret), text.as_bytes());
        Some(format!("{text}.{}", part(tag.as_ref())))
    }
}

/// Good claims but for the one that the case names.
fn changed_claims(name: &str) -> Option<Value> {
    let now = now();
    let without = |claims: Value, names: &[&str]| {
        let mut claims = claims;
        names.iter().for_each(|name| drop(claims.as_object_mut().unwrap().remove(*name)));
        claims
    };
    let change = match name {
        "aud-wrong" => json!({"aud": "https://other.example.com/"}),
        "aud-empty" => json!({"aud": ""}),
        "aud-null" => json!({"aud": null}),
        "aud-number" => json!({"aud": 1}),
        "aud-object" => json!({"aud": {AUDIENCE: true}}),
        "aud-array-without" => json!({"aud": ["https://other.example.com/", ""]}),
        "aud-prefix" => json!({"aud": AUDIENCE.trim_end_matches('/')}),
        "aud-suffix" => json!({"aud": format!("{AUDIENCE}x")}),
        "aud-upper-case" => json!({"aud": AUDIENCE.to_uppercase()}),
        "aud-space" => json!({"aud": format!("{AUDIENCE} ")}),
        "iss-wrong" => json!({"iss": "https://issuer.example.com"}),
        "iss-null" => json!({"iss": null}),
        "iss-array" => json!({"iss": ["https://accounts.google.com"]}),
        "iss-http" => json!({"iss": "http://accounts.google.com"}),
        "iss-lookalike" => json!({"iss": "https://accounts.google.com.example.com"}),
        "iss-slash" => json!({"iss": "https://accounts.google.com/"}),
        "iss-securetoken" => json!({"iss": "https://securetoken.google.com/project-1"}),
        "email-other" => json!({"email": "push@project-2.iam.gserviceaccount.com"}),
        "email-null" => json!({"email": null}),
        "email-array" => json!({"email": [ACCOUNT]}),
        "email-suffix" => json!({"email": format!("{ACCOUNT}.example.com")}),
        "email-nul" => json!({"email": format!("{ACCOUNT}\0")}),
        "email-verified-false" => json!({"email_verified": false}),
        "email-verified-string" => json!({"email_verified": "true"}),
        "email-verified-one" => json!({"email_verified": 1}),
        "email-verified-null" => json!({"email_verified": null}),
        "expired-2min" => json!({"iat": now - 3_720, "exp": now - 120}),
        "expired-1day" => json!({"iat": now - 90_000, "exp": now - 86_400}),
        "exp-null" => json!({"exp": null}),
        "exp-string" => json!({"exp": "tomorrow"}),
        "exp-zero" => json!({"exp": 0}),
        "exp-negative" => json!({"exp": -1}),
        "exp-array" => json!({"exp": [now + 3_600]}),
        "nbf-10min-ahead" => json!({"nbf": now + 600}),
        "nbf-1day-ahead" => json!({"nbf": now + 86_400}),
        "iat-1h-ahead" => json!({"iat": now + 3_600, "exp": now + 7_200}),
        "aud-missing" => return Some(without(claims(), &["aud"])),
        "iss-missing" => return Some(without(claims(), &["iss"])),
        "email-missing" => return Some(without(claims(), &["email"])),
        "email-and-verified-missing" => return Some(without(claims(), &["email", "email_verified"])),
        "email-verified-missing" => return Some(without(claims(), &["email_verified"])),
        "exp-missing" => return Some(without(claims(), &["exp"])),
        _ => return None,
    };
    Some(with(claims(), &change))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// The header of Google's tokens.
fn header(kid: &str) -> Value {
    json!({"alg": "RS256", "kid": kid, "typ": "JWT"})
}

/// The claims of a push's token, made now.
fn claims() -> Value {
    let now = now();
    json!({"aud": AUDIENCE, "azp": "113774264463038321964", "email": ACCOUNT, "email_verified": true, "exp": now + 3_600,
        "iat": now, "iss": "https://accounts.google.com", "sub": "113774264463038321964"})
}

fn with(mut object: Value, change: &Value) -> Value {
    for (name, value) in change.as_object().unwrap() {
        object[name] = value.clone();
    }
    object
}

fn part(bytes: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

fn three(token: &str) -> [&str; 3] {
    let parts: Vec<&str> = token.split('.').collect();
    parts.try_into().unwrap()
}

fn sign(header: &Value, claims: &Value, key: &KeyPair) -> String {
    signed_by(header.to_string().as_bytes(), claims.to_string().as_bytes(), key, &RSA_PKCS1_SHA256)
}

fn signed_by(header: &[u8], payload: &[u8], key: &KeyPair, with: &'static dyn RsaEncoding) -> String {
    signed_text(&format!("{}.{}", part(header), part(payload)), key, with)
}

fn signed_text(text: &str, key: &KeyPair, with: &'static dyn RsaEncoding) -> String {
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign(with, &SystemRandom::new(), text.as_bytes(), &mut signature).unwrap();
    format!("{text}.{}", part(&signature))
}

fn public(key: &KeyPair, kid: &str) -> Value {
    let PublicKeyComponents { n, e } = PublicKeyComponents::<Vec<u8>>::from(key.public_key());
    json!({"kty": "RSA", "alg": "RS256", "use": "sig", "kid": kid, "n": part(&n), "e": part(&e)})
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
