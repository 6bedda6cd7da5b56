//! Redaction: decides what names a credential, and returns URLs as logs and tables may show them.
//!
//! All lists of secret words are here. The signing schemes of CDNs and clouds are in the test at the end.

use url::Url;

/// Replaces a redacted value.
pub(crate) const REDACTED: &str = "…";

/// A parameter or header whose name contains one of these holds a credential.
const PARTS: [&str; 21] = [
    "signature",
    "token",
    "secret",
    "password",
    "passwd",
    "credential",
    "apikey",
    "accesskey",
    "_key",
    "-key",
    "_sign",
    "-sign",
    "_auth",
    "-auth",
    "auth_",
    "auth-",
    "hmac",
    "sessionid",
    "sessid",
    "jwt",
    "bearer",
];

/// Words that mark a credential anywhere in the name of a header. In a URL they would match too much (`monkey=`,
/// `author=`).
const HEADER_PARTS: [&str; 4] = ["auth", "cookie", "key", "session"];

/// Names of URL parameters that are credentials only as a whole.
const WHOLE: [&str; 26] = [
    "sig",
    "sign",
    "auth",
    "authorization",
    "session",
    "key",
    "hdnts",
    "hdnea",
    "hdntl",
    "hdnr",
    "__gda__",
    "__gdb__",
    "policy",
    "key-pair-id",
    "keyname",
    "pwd",
    "pass",
    "md5",
    "hash",
    "verify",
    "secure",
    "otp",
    "code",
    "sid",
    "q-ak",
    "urlprefix",
];

/// Names that are a signature's where the value looks like one: nginx's `secure_link`, MediaVault, CDN origins' own.
const WHERE_DIGEST: [&str; 6] = ["h", "s", "st", "t", "tk", "e"];

/// The least length of a digest as text: 128 bits in base64.
const DIGEST_CHARS: usize = 22;
/// The least length of a parameter without a name that counts as a token.
const BARE_TOKEN_CHARS: usize = 40;

/// Returns whether the value of the header `name` may be a credential. Ignores case.
pub(crate) fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    PARTS.iter().chain(&HEADER_PARTS).any(|part| name.contains(part))
}

/// Returns `url` as it may be shown: values that look like credentials become an ellipsis.
///
/// Redacts the signatures of CDNs and clouds, in the query or in the path, and parameters that are named like a token,
/// key or password. Parameter names stay, so that a reader still recognises the URL.
pub fn shown_url(url: &Url) -> String {
    let mut shown = String::with_capacity(url.as_str().len());
    shown.push_str(&url[..url::Position::BeforePath]);
    for (number, segment) in url.path().split('/').enumerate() {
        if number > 0 {
            shown.push('/');
        }
        show_segment(segment, &mut shown);
    }
    if let Some(query) = url.query() {
        shown.push('?');
        show_parameters(query, &mut shown);
    }
    shown
}

/// A segment of a path may be a signature (`hdntl=...`), a list of parameters (`bcdn_token=...&expires=...`), or a token
/// by itself. Only what holds either sign is looked at: most segments hold neither.
fn show_segment(segment: &str, shown: &mut String) {
    if is_jwt(segment) {
        shown.push_str(REDACTED);
    } else if segment.contains('=') {
        show_parameters(segment, shown);
    } else {
        shown.push_str(segment);
    }
}

fn show_parameters(parameters: &str, shown: &mut String) {
    let mut start = 0;
    for end in
        parameters.bytes().enumerate().filter(|(_, byte)| matches!(byte, b'&' | b';')).map(|(at, _)| at)
    {
        show_parameter(&parameters[start..end], shown);
        shown.push_str(&parameters[end..=end]);
        start = end + 1;
    }
    show_parameter(&parameters[start..], shown);
}

fn show_parameter(parameter: &str, shown: &mut String) {
    match parameter.split_once('=') {
        Some((name, value)) if !value.is_empty() && is_credential(name, value) => {
            shown.push_str(name);
            shown.push('=');
            shown.push_str(REDACTED);
        }
        // A token that is the whole query, as some CDNs have it.
        None if parameter.len() >= BARE_TOKEN_CHARS && is_token_text(parameter) => shown.push_str(REDACTED),
        _ => shown.push_str(parameter),
    }
}

fn is_credential(name: &str, value: &str) -> bool {
    // A name may be written with percent escapes, and means the same.
    let decoded;
    let name = if name.contains(['%', '+']) {
        decoded = url::form_urlencoded::parse(name.as_bytes()).next().map(|(name, _)| name.into_owned());
        decoded.as_deref().unwrap_or_default()
    } else {
        name
    };
    let name = name.to_ascii_lowercase();
    PARTS.iter().any(|part| name.contains(part))
        || WHOLE.contains(&name.as_str())
        || is_jwt(value)
        || WHERE_DIGEST.contains(&name.as_str()) && value.len() >= DIGEST_CHARS && is_token_text(value)
}

/// A JSON Web Token (RFC 7519): three parts, of which the first is a JSON object in base64url.
fn is_jwt(text: &str) -> bool {
    text.starts_with("eyJ") && text.split('.').count() == 3 && text.len() >= BARE_TOKEN_CHARS
}

/// Nothing but what base64 and hexadecimal are written with.
fn is_token_text(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'%' | b'+' | b'='))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        shown_url(&Url::parse(text).unwrap())
    }

    /// Each signing scheme as its own documents write it: a URL in which every secret holds `SECRET`, and what is shown.
    #[test]
    fn no_signing_scheme_shows_what_it_signs_with() {
        const DIGEST: &str = "SECRETaGVsbG8gd29ybGQgaGVsbG8";
        for (scheme, signed, expected) in [
            (
                "Cloud CDN",
                "/a.ts?Expires=1&KeyName=SECRET&Signature=SECRET",
                "/a.ts?Expires=1&KeyName=…&Signature=…",
            ),
            (
                "Cloud CDN, prefix",
                "/a.ts?URLPrefix=SECRET&Expires=1&KeyName=SECRET&Signature=SECRET",
                "/a.ts?URLPrefix=…&Expires=1&KeyName=…&Signature=…",
            ),
            ("Media CDN", "/edge-cache-token=SECRET~hmac=SECRET/a.ts", "/edge-cache-token=…/a.ts"),
            ("Media CDN, query", "/a.ts?Edge-Cache-Token=SECRET", "/a.ts?Edge-Cache-Token=…"),
            (
                "Cloud Storage V4",
                "/b/a?X-Goog-Algorithm=GOOG4-RSA-SHA256&X-Goog-Credential=SECRET&X-Goog-Expires=1&X-Goog-Signature=SECRET",
                "/b/a?X-Goog-Algorithm=GOOG4-RSA-SHA256&X-Goog-Credential=…&X-Goog-Expires=1&X-Goog-Signature=…",
            ),
            (
                "S3 V4",
                "/a?X-Amz-Algorithm=A&X-Amz-Credential=SECRET&X-Amz-Date=D&X-Amz-Security-Token=SECRET&X-Amz-Signature=SECRET",
                "/a?X-Amz-Algorithm=A&X-Amz-Credential=…&X-Amz-Date=D&X-Amz-Security-Token=…&X-Amz-Signature=…",
            ),
            (
                "S3 V2",
                "/a?AWSAccessKeyId=SECRET&Signature=SECRET&Expires=1",
                "/a?AWSAccessKeyId=…&Signature=…&Expires=1",
            ),
            (
                "CloudFront, canned",
                "/a?Expires=1&Signature=SECRET&Key-Pair-Id=SECRET",
                "/a?Expires=1&Signature=…&Key-Pair-Id=…",
            ),
            (
                "CloudFront, custom",
                "/a?Policy=SECRET&Signature=SECRET&Key-Pair-Id=SECRET",
                "/a?Policy=…&Signature=…&Key-Pair-Id=…",
            ),
            ("Akamai, hdnts", "/a?hdnts=exp=1~acl=/*~hmac=SECRET", "/a?hdnts=…"),
            ("Akamai, hdnea", "/a?hdnea=st=1~exp=2~acl=/*~hmac=SECRET", "/a?hdnea=…"),
            ("Akamai, hdntl in the path", "/hdntl=exp=1~acl=%2f*~hmac=SECRET/a.ts", "/hdntl=…/a.ts"),
            (
                "Akamai, older",
                "/a?__gda__=1_SECRET&__gdb__=SECRET&__token__=SECRET",
                "/a?__gda__=…&__gdb__=…&__token__=…",
            ),
            ("Fastly", "/a?token=1_SECRET", "/a?token=…"),
            ("Fastly, JWT", "/a?jwt=SECRET&fastly_token=SECRET", "/a?jwt=…&fastly_token=…"),
            ("Cloudflare", "/a?verify=1-SECRET", "/a?verify=…"),
            ("Cloudflare Images", "/a?exp=1&sig=SECRET", "/a?exp=1&sig=…"),
            (
                "Cloudflare Stream",
                "/eyJhbGciOiJSUzI1NiJ9.SECRETSECRETSECRET.SECRETSECRET/manifest/video.m3u8",
                "/…/manifest/video.m3u8",
            ),
            (
                "Azure SAS",
                "/a?sv=2024-11-04&se=2026-01-01&sr=b&sp=r&sig=SECRET%3D",
                "/a?sv=2024-11-04&se=2026-01-01&sr=b&sp=r&sig=…",
            ),
            ("Edgio, token is the query", "/a?SECRETa4fbc3710fd3449a7c99986b4babcdef0123456789", "/a?…"),
            ("Edgio, named", "/a?ec_token=SECRET", "/a?ec_token=…"),
            ("MediaVault", &format!("/a?e=1700000000&h={DIGEST}"), "/a?e=1700000000&h=…"),
            ("Bunny", "/a?token=SECRET&token_path=%2F&expires=1", "/a?token=…&token_path=…&expires=1"),
            (
                "Bunny, path",
                "/bcdn_token=SECRET&expires=1&token_path=%2Fv/v/a.ts",
                "/bcdn_token=…&expires=1&token_path=…/v/a.ts",
            ),
            ("CDN77", "/a?secure=SECRET,1", "/a?secure=…"),
            ("KeyCDN", "/a?token=SECRET&expire=1", "/a?token=…&expire=1"),
            ("Gcore", "/a?md5=SECRET&expires=1", "/a?md5=…&expires=1"),
            ("nginx secure_link", &format!("/a?st={DIGEST}&e=1700000000"), "/a?st=…&e=1700000000"),
            ("Alibaba", "/a?auth_key=1-0-0-SECRET", "/a?auth_key=…"),
            (
                "Alibaba OSS",
                "/a?OSSAccessKeyId=SECRET&Expires=1&Signature=SECRET&security-token=SECRET",
                "/a?OSSAccessKeyId=…&Expires=1&Signature=…&security-token=…",
            ),
            (
                "Tencent",
                "/a?sign=SECRET&t=1700000000&txSecret=SECRET&txTime=1",
                "/a?sign=…&t=1700000000&txSecret=…&txTime=1",
            ),
            ("Tencent COS", "/a?q-ak=SECRET&q-signature=SECRET", "/a?q-ak=…&q-signature=…"),
            (
                "Huawei, Wangsu",
                "/a?hwSecret=SECRET&wsSecret=SECRET&wsTime=1",
                "/a?hwSecret=…&wsSecret=…&wsTime=1",
            ),
            (
                "OAuth, API keys",
                "/a?access_token=SECRET&client_secret=SECRET&api_key=SECRET&code=SECRET&x-api-key=SECRET",
                "/a?access_token=…&client_secret=…&api_key=…&code=…&x-api-key=…",
            ),
            (
                "sessions",
                "/a;jsessionid=SECRET?PHPSESSID=SECRET&session=SECRET&sid=SECRET",
                "/a;jsessionid=…?PHPSESSID=…&session=…&sid=…",
            ),
            ("another case", "/a?SIGNATURE=SECRET&Token=SECRET", "/a?SIGNATURE=…&Token=…"),
            ("escaped names", "/a?%73ig=SECRET&to%6ben=SECRET", "/a?%73ig=…&to%6ben=…"),
            ("semicolons", "/a?x=1;sig=SECRET;y=2", "/a?x=1;sig=…;y=2"),
            ("any name", "/a?x=eyJhbGciOiJSUzI1NiJ9.SECRETSECRETSECRET.SECRETSECRET", "/a?x=…"),
        ] {
            let shown = shown(&format!("https://cdn.example.com{signed}"));
            assert_eq!(shown, format!("https://cdn.example.com{expected}"), "{scheme}");
            assert!(!shown.contains("SECRET"), "{scheme}");
        }
    }

    #[test]
    fn headers_that_may_hold_credentials_are_secret() {
        for name in [
            "authorization",
            "Proxy-Authorization",
            "cookie",
            "Set-Cookie",
            "x-api-key",
            "X-Auth-Token",
            "x-amz-security-token",
            "client-secret",
            "db-password",
            "signature",
            "x-goog-credential",
            "session",
            "x-jwt",
            "x-hmac-sha256",
        ] {
            assert!(is_secret_name(name), "{name}");
        }
        for name in
            ["accept", "cache-control", "etag", "origin", "x-cache", "content-type", "warm-range", "age"]
        {
            assert!(!is_secret_name(name), "{name}");
        }
    }

    #[test]
    fn what_is_no_signature_stays() {
        for url in [
            "https://e.com/",
            "https://e.com/keys/a",
            "https://e.com/a?file=monkey&design=blue&author=me&signal=x&pass=",
            "https://e.com/a?sig=&token&v=1.2.3",
            "https://e.com/a?h=1080&s=small&t=12.5&e=1700000000&w=1920",
            "https://e.com/a?v=d41d8cd98f00b204e9800998ecf8427e",
            "https://e.com/a=b/c;d=e?f;g=h",
            "https://e.com:8443/v/season-0001/segment-00017.m4s?start=0&end=6",
            "https://e.com/a?",
            "https://[2001:db8::1]/a?b=c",
        ] {
            assert_eq!(shown(url), url);
        }
    }
}
