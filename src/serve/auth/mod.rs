//! Who knocks: whether a push comes from the subscription that it must come from, by the OIDC token that it carries.
//!
//! [`Auth::check`] is all of it. `token` reads the header and the claims, `key_set` has `jsonwebtoken` verify them, `cache`
//! keeps the key server's keys, `refusal` names what was wrong. Nothing here reads a body, or answers.

mod cache;
mod key_set;
mod refusal;
mod token;
#[cfg(test)]
#[path = "../../../tests/it/support/tokens.rs"]
#[allow(dead_code, clippy::unwrap_used, clippy::panic, reason = "shared with tests that use the rest of it")]
mod tokens;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::builder::BoolishValueParser;
use http::HeaderMap;
use jsonwebtoken::Validation;
use tokio_util::sync::CancellationToken;
use url::{Host, Url};

use crate::usage::UsageError;
use cache::KeyCache;
use key_set::Verified;
pub(crate) use refusal::{Reason, Refusal};
use refusal::{Refusals, shown};
use token::{Expected, Unverified};

/// Where Google publishes the keys of its OIDC tokens.
const GOOGLES_KEYS: &str = "https://www.googleapis.com/oauth2/v3/certs";

/// What stands for the signature once Cloud Run's front end has checked the token.
const REMOVED_SIGNATURE: &str = "SIGNATURE_REMOVED_BY_GOOGLE";

/// Whom `serve` believes.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct AuthArgs {
    /// Audience of the push subscription's tokens; where the subscription names none, it is the push endpoint as given there
    #[arg(long, value_name = "TEXT", env = "CDNWARM_PUSH_AUDIENCE")]
    pub(crate) push_audience: Option<String>,

    /// Service account of the push subscription's tokens
    #[arg(long, value_name = "EMAIL", env = "CDNWARM_PUSH_SERVICE_ACCOUNT")]
    pub(crate) push_service_account: Option<String>,

    /// Key set that the tokens' signatures are checked with
    #[arg(long, value_name = "URL", default_value = GOOGLES_KEYS, env = "CDNWARM_PUSH_JWKS_URL")]
    pub(crate) push_jwks_url: Url,

    /// For a private Cloud Run service, whose front end checks a token's signature and removes it: take such tokens, and no
    /// others; audience, service account and times are checked all the same
    #[arg(long, env = "CDNWARM_TRUST_PLATFORM_AUTH", value_parser = BoolishValueParser::new())]
    pub(crate) trust_platform_auth: bool,

    /// Believe every request, whoever sent it, without a token
    #[arg(long, env = "CDNWARM_INSECURE_ACCEPT_UNAUTHENTICATED", value_parser = BoolishValueParser::new())]
    pub(crate) insecure_accept_unauthenticated: bool,
}

impl AuthArgs {
    /// Pushes with this audience and account, whose keys are at `keys`.
    pub(crate) fn for_demo(audience: &str, service_account: &str, keys: Url) -> Self {
        Self {
            push_audience: Some(audience.to_owned()),
            push_service_account: Some(service_account.to_owned()),
            push_jwks_url: keys,
            trust_platform_auth: false,
            insecure_accept_unauthenticated: false,
        }
    }
}

/// Decides about each push. Clones share keys and counts.
#[derive(Debug, Clone)]
pub(super) struct Auth(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    trust: Trust,
    refusals: Refusals,
    /// Tokens that were believed, by what it took.
    known: AtomicU64,
    verified: AtomicU64,
}

/// Why a push is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Belief {
    /// Everybody is.
    Unchecked,
    /// Its token was verified before.
    Known,
    Verified,
}

/// On what a push is believed.
#[derive(Debug)]
enum Trust {
    Everybody,
    Signature(Expected, Box<Validation>, KeyCache),
    Platform(Expected, Verified),
}

impl Auth {
    /// Checks the arguments. Nothing is fetched yet.
    ///
    /// # Errors
    /// Nobody named to be believed, or settings that contradict each other; a system without CA certificates.
    pub(super) fn new(args: AuthArgs, stop: CancellationToken) -> anyhow::Result<Self> {
        let expected = args.expected().map_err(UsageError::new)?;
        let trust = match expected {
            None => Trust::Everybody,
            Some(expected) if args.trust_platform_auth => Trust::Platform(expected, Verified::default()),
            Some(expected) => {
                let url = args.push_jwks_url;
                if url.scheme() == "http" && !is_loopback(&url) {
                    tracing::warn!(
                        "--push-jwks-url {url}: over plain http, whoever sits between can forge every token"
                    );
                }
                let validation = Box::new(expected.validation());
                Trust::Signature(expected, validation, KeyCache::new(url, stop)?)
            }
        };
        let (known, verified) = (AtomicU64::new(0), AtomicU64::new(0));
        Ok(Self(Arc::new(Inner { trust, refusals: Refusals::default(), known, verified })))
    }

    /// Starts to fetch the keys, so that the first push need not wait for them.
    pub(super) fn prepare(&self) {
        self.is_ready();
    }

    /// Whether pushes can be judged at all: not before the first key set was had.
    pub(super) fn is_ready(&self) -> bool {
        match &self.0.trust {
            Trust::Everybody | Trust::Platform(..) => true,
            Trust::Signature(.., keys) => keys.is_ready(),
        }
    }

    /// Whether a push with these headers is believed. Waits only where its key has to be fetched.
    ///
    /// # Errors
    /// Why it is not; counted and logged.
    pub(super) async fn check(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let checked = self.0.trust.check(headers).await;
        match &checked {
            Ok(Belief::Unchecked) => {}
            Ok(Belief::Known) => _ = self.0.known.fetch_add(1, Ordering::Relaxed),
            Ok(Belief::Verified) => _ = self.0.verified.fetch_add(1, Ordering::Relaxed),
            Err(refusal) => self.0.refusals.add(refusal),
        }
        checked.map(drop)
    }

    /// How many tokens were believed, by what it took.
    pub(super) fn believed(&self) -> [(&'static str, u64); 2] {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        [("known", of(&self.0.known)), ("verified", of(&self.0.verified))]
    }

    /// How many pushes were not believed, by what was wrong.
    pub(super) fn refused(&self) -> impl IntoIterator<Item = (&'static str, u64)> {
        self.0.refusals.counts()
    }
}

impl Trust {
    async fn check(&self, headers: &HeaderMap) -> Result<Belief, Refusal> {
        let (expected, validation, keys) = match self {
            Self::Everybody => return Ok(Belief::Unchecked),
            Self::Platform(expected, verified) => return check_platform(headers, expected, verified),
            Self::Signature(expected, validation, keys) => (expected, validation, keys),
        };

        // 1. The token; one that was verified before and has not expired needs no more.
        let text = token::bearer(headers)?;
        let now_s = now_s();
        if keys.current().is_some_and(|set| set.verified().has(text, now_s)) {
            return Ok(Belief::Known);
        }

        // 2. All that takes no key: a fetch is never started for what would be refused anyway.
        let token = unverified(text, expected, now_s)?;
        let kid = token.key_id()?;

        // 3. The key, and the signature by it.
        let set = match keys.with(kid).await {
            Ok(set) => set,
            Err(cache::NoKeys) => return Err(Refusal::new(Reason::NoKeys, "no key set to check it with")),
        };
        match set.verify(kid, text, validation) {
            Some(Ok(())) => {}
            Some(Err(error)) => return Err(Refusal::new(Reason::Signature, shown(&error.to_string()))),
            None => return Err(Refusal::new(Reason::UnknownKey, format!("no key \"{}\"", shown(kid)))),
        }
        set.verified().add(text, token.claims.expiry_s().unwrap_or_default());
        Ok(Belief::Verified)
    }
}

/// The same without keys, for tokens whose signature the platform has checked and removed.
fn check_platform(headers: &HeaderMap, expected: &Expected, verified: &Verified) -> Result<Belief, Refusal> {
    let text = token::bearer(headers)?;
    let now_s = now_s();
    if verified.has(text, now_s) {
        return Ok(Belief::Known);
    }
    let token = unverified(text, expected, now_s)?;
    if token.signature != REMOVED_SIGNATURE {
        let detail = "the signature is still there: no front end has checked it (--trust-platform-auth)";
        return Err(Refusal::new(Reason::Signature, detail));
    }
    verified.add(text, token.claims.expiry_s().unwrap_or_default());
    Ok(Belief::Verified)
}

/// Checks everything of a token but its signature.
fn unverified<'a>(text: &'a str, expected: &Expected, now_s: f64) -> Result<Unverified<'a>, Refusal> {
    let token = Unverified::parse(text)?;
    token.check_algorithm()?;
    token.claims.check(expected, now_s)?;
    Ok(token)
}

impl AuthArgs {
    /// Whom to believe, or `None` for everybody.
    fn expected(&self) -> anyhow::Result<Option<Expected>> {
        let (audience, service_account) = (&self.push_audience, &self.push_service_account);
        let other_keys = self.push_jwks_url.as_str() != GOOGLES_KEYS;
        if self.insecure_accept_unauthenticated {
            let contradiction = [
                (audience.is_some(), "--push-audience"),
                (service_account.is_some(), "--push-service-account"),
                (other_keys, "--push-jwks-url"),
                (self.trust_platform_auth, "--trust-platform-auth"),
            ];
            if let Some((_, name)) = contradiction.iter().find(|(given, _)| *given) {
                anyhow::bail!(
                    "--insecure-accept-unauthenticated believes everybody, and {name} does not: give one of them"
                );
            }
            return Ok(None);
        }
        if self.trust_platform_auth && other_keys {
            anyhow::bail!(
                "--trust-platform-auth checks no signature, so --push-jwks-url has no use: give one of them"
            );
        }
        let (Some(audience), Some(service_account)) = (audience, service_account) else {
            anyhow::bail!(
                "who may push? --push-audience and --push-service-account name the tokens of your push subscription \
                 (gcloud pubsub subscriptions describe shows both; the audience is the endpoint where it names none); on \
                 a private Cloud Run service add --trust-platform-auth. To believe everybody, say \
                 --insecure-accept-unauthenticated"
            );
        };
        let is_text =
            |text: &str| !text.is_empty() && text.trim() == text && !text.contains(char::is_control);
        anyhow::ensure!(
            is_text(audience),
            "--push-audience {audience:?}: it is empty, or has white space around it"
        );
        anyhow::ensure!(
            is_text(service_account) && service_account.contains('@'),
            "--push-service-account {service_account:?}: an e-mail address such as \
             push@PROJECT.iam.gserviceaccount.com is wanted"
        );
        anyhow::ensure!(
            matches!(self.push_jwks_url.scheme(), "http" | "https")
                && self.push_jwks_url.username().is_empty()
                && self.push_jwks_url.password().is_none(),
            "--push-jwks-url: an http or https URL without user or password is wanted"
        );
        Ok(Some(Expected { audience: audience.clone(), service_account: service_account.clone() }))
    }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

/// Seconds since 1970, as tokens count them.
fn now_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::key_set::KeySet;
    use super::tokens::{ACCOUNT, AUDIENCE, Keys};
    use super::*;

    /// Whether `jsonwebtoken` accepts the case of the list by itself, verified with key a whatever its `kid` says.
    fn is_accepted_by_jsonwebtoken(keys: &Keys, set: &KeySet, validation: &Validation, name: &str) -> bool {
        let lines = keys.lines(name, "http://127.0.0.1:1/");
        let [line] = &lines[..] else { return false };
        let Some(token) = line.strip_prefix(b"Authorization: Bearer ") else { return false };
        set.verify("key-a", str::from_utf8(token).unwrap(), validation).unwrap().is_ok()
    }

    #[test]
    fn jsonwebtoken_rejects_all_but_what_is_checked_in_front_of_it() {
        let list = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpora/jwt_cases.md");
        let list = std::fs::read_to_string(list).unwrap();
        let (_, refused) = list.split_once("all refused").unwrap();
        let keys = Keys::new();
        let set = KeySet::parse(keys.published(1).as_bytes()).unwrap();
        let expected = Expected { audience: AUDIENCE.to_owned(), service_account: ACCOUNT.to_owned() };
        let validation = expected.validation();
        let names = refused.lines().filter_map(|line| line.strip_prefix("- `")?.split_once('`'));
        let accepted: Vec<&str> = names
            .filter(|(name, stage)| !name.starts_with("kid-") && !stage.contains("stage 2"))
            .map(|(name, _)| name)
            .filter(|name| is_accepted_by_jsonwebtoken(&keys, &set, &validation, name))
            .collect();
        let expected = [
            "oversize-60k",
            "payload-not-utf8",
            "iss-array",
            "email-other",
            "email-missing",
            "email-and-verified-missing",
            "email-null",
            "email-array",
            "email-suffix",
            "email-nul",
            "email-verified-false",
            "email-verified-missing",
            "email-verified-string",
            "email-verified-one",
            "email-verified-null",
            "iat-1h-ahead",
        ];
        assert_eq!(accepted, expected);
    }

    /// A key server that is asked once.
    async fn key_server(published: String) -> Url {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/certs", listener.local_addr().unwrap()).parse().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await.unwrap();
            let answer = format!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{published}");
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        url
    }

    async fn is_believed(auth: &Auth, token: &str) -> bool {
        let value = format!("Bearer {token}").parse().unwrap();
        auth.check(&HeaderMap::from_iter([(http::header::AUTHORIZATION, value)])).await.is_ok()
    }

    #[tokio::test]
    async fn a_token_that_was_verified_is_not_verified_again() {
        let keys = Keys::new();
        let url = key_server(keys.published(1)).await;
        for (args, token) in [
            (AuthArgs::for_demo(AUDIENCE, ACCOUNT, url), keys.good(1)),
            (
                AuthArgs {
                    trust_platform_auth: true,
                    ..AuthArgs::for_demo(AUDIENCE, ACCOUNT, GOOGLES_KEYS.parse().unwrap())
                },
                keys.without_signature(&serde_json::json!({})),
            ),
        ] {
            let auth = Auth::new(args, CancellationToken::new()).unwrap();
            assert!(is_believed(&auth, &token).await);
            let set = match &auth.0.trust {
                Trust::Signature(.., keys) => keys.current(),
                _ => None,
            };
            let verified = match &auth.0.trust {
                Trust::Platform(_, verified) => verified,
                _ => set.as_ref().unwrap().verified(),
            };
            assert!(verified.has(&token, now_s()), "it is remembered");
            assert!(!is_believed(&auth, "remembered").await);
            verified.add("remembered", now_s() + 60.0);
            assert!(is_believed(&auth, "remembered").await, "what is remembered is not read again");
            let shown = format!("{auth:?}");
            assert!(!shown.contains("remembered") && !shown.contains(&token), "{shown}");
        }
    }
}
