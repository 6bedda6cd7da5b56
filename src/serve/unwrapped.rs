//! An unwrapped push: the message's data is the body, and its metadata and attributes are headers.
//!
//! <https://cloud.google.com/pubsub/docs/payload-unwrapping>. Attributes come under their own names, among all that
//! clients, proxies and front ends add, so that only names which nobody else uses can be believed to be ours.

use std::borrow::Cow;
use std::collections::BTreeMap;

use http::HeaderMap;

use super::envelope::{EnvelopeError, Push};

/// The names of attributes: options, coordinates, and what tells a pack.
const ATTRIBUTES: [&str; 2] = ["warm-", "kafka-"];
const CONTENT_TYPE: &str = "content-type";

/// Reads an unwrapped push. Without `--push-no-wrapper-write-metadata` there is only data, and no failure is ever tried
/// again, since nothing tells how old the message is.
///
/// Of the headers only `x-goog-pubsub-...` (Google's emulator has its own name for the ordering key), `content-type` and
/// those that start with `warm-` or `kafka-` are read; header names being lower case, so are the attributes'. Of a
/// repeated one the last value counts.
///
/// # Errors
/// [`EnvelopeError`] where the body is a wrapped push, and where an attribute is not UTF-8, which Pub/Sub does not carry.
pub(super) fn parse<'a>(headers: &'a HeaderMap, body: &'a [u8]) -> Result<Push<'a>, EnvelopeError> {
    // No URL starts so; where --malformed is ack, it would be gone.
    if body.trim_ascii_start().starts_with(b"{") {
        return Err(EnvelopeError::Wrapped);
    }
    let metadata = |name: &str| {
        let text = headers.get(name)?.to_str().ok()?;
        (!text.is_empty()).then_some(Cow::Borrowed(text))
    };
    let mut attributes = BTreeMap::new();
    for (name, value) in headers {
        let name = name.as_str();
        if name == CONTENT_TYPE || ATTRIBUTES.iter().any(|prefix| name.starts_with(prefix)) {
            let value = std::str::from_utf8(value.as_bytes())
                .map_err(|_| EnvelopeError::HeaderNotUtf8(name.to_owned()))?;
            attributes.insert(Cow::Borrowed(name), Cow::Borrowed(value));
        }
    }
    Ok(Push {
        data: body.to_vec(),
        attributes,
        message_id: metadata("x-goog-pubsub-message-id"),
        publish_time: metadata("x-goog-pubsub-publish-time").and_then(|time| time.parse().ok()),
        ordering_key: metadata("x-goog-pubsub-ordering-key").or_else(|| metadata("x-goog-ordering-key")),
        subscription: metadata("x-goog-pubsub-subscription-name"),
        delivery_attempt: metadata("x-goog-pubsub-delivery-attempt").and_then(|count| count.parse().ok()),
    })
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;
    use crate::request::WarmRequest;

    const URL: &[u8] = b"https://example.com/";

    fn headers(pairs: &[(&str, &[u8])]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_bytes(value).unwrap(),
            );
        }
        headers
    }

    #[test]
    fn metadata_and_attributes_are_read_as_the_service_sends_them() {
        let headers = headers(&[
            ("x-goog-pubsub-subscription-name", b"projects/p/subscriptions/s"),
            ("x-goog-pubsub-message-id", b"7"),
            ("x-goog-pubsub-publish-time", b"2026-02-26T19:13:55.749Z"),
            ("x-goog-pubsub-ordering-key", b"k"),
            ("Kafka-Offset", b"17"),
            ("warm-header-accept-language", b"de"),
            ("warm-regions", b"eu"),
            ("warm-regions", b"us"),
            ("kafka-key", "ü".as_bytes()),
        ]);
        let push = parse(&headers, URL).unwrap();
        assert_eq!(push.data, URL);
        let options: Vec<_> = push.options().collect();
        let expected = [
            ("kafka-key", "ü"),
            ("kafka-offset", "17"),
            ("warm-header-accept-language", "de"),
            ("warm-regions", "us"),
        ];
        assert_eq!(options, expected);
        assert_eq!(push.subscription.as_deref(), Some("projects/p/subscriptions/s"));
        assert_eq!(push.message_id.as_deref(), Some("7"));
        assert_eq!(push.publish_time, Some("2026-02-26T19:13:55.749Z".parse().unwrap()));
        assert_eq!(push.ordering_key.as_deref(), Some("k"));
        assert_eq!(push.delivery_attempt, None);
    }

    #[test]
    fn the_emulators_name_for_the_ordering_key_is_read_too() {
        let headers = headers(&[("x-goog-ordering-key", b"k")]);
        assert_eq!(parse(&headers, URL).unwrap().ordering_key.as_deref(), Some("k"));
    }

    #[test]
    fn no_header_that_others_set_is_an_option() {
        let headers = headers(&[
            ("host", b"example.com"),
            ("authorization", b"Bearer t"),
            ("user-agent", b"CloudPubSub-Google"),
            ("accept-encoding", b"gzip"),
            ("range", b"bytes=0-1"),
            ("cookie", b"a=b"),
            ("forwarded", b"for=192.0.2.1"),
            ("x-forwarded-for", b"192.0.2.1"),
            ("x-cloud-trace-context", b"1"),
            ("traceparent", b"00"),
            ("x-goog-warm-regions", b"us"),
            ("x-warm-regions", b"us"),
            ("x-broken", b"\xff"),
            ("content-type", b"application/x-www-form-urlencoded"),
        ]);
        let push = parse(&headers, URL).unwrap();
        assert_eq!(
            push.options().collect::<Vec<_>>(),
            [("content-type", "application/x-www-form-urlencoded")]
        );
        assert_eq!(WarmRequest::parse(&push.data, push.options()).unwrap().headers().len(), 0);
    }

    #[test]
    fn an_unknown_option_is_left_to_be_refused_by_name() {
        let headers = headers(&[("warm-colour", b"red")]);
        let push = parse(&headers, URL).unwrap();
        let reason = WarmRequest::parse(&push.data, push.options()).unwrap_err().reason();
        assert_eq!(reason, "unknown option warm-colour");
    }

    #[test]
    fn what_no_unwrapped_push_can_be_is_told_apart() {
        let wrapped = parse(&HeaderMap::new(), br#" {"message":{}}"#).unwrap_err();
        assert!(wrapped.to_string().contains("--payload wrapped"), "{wrapped}");
        let headers = headers(&[("warm-regions", b"\xff")]);
        let error = parse(&headers, URL).unwrap_err();
        assert!(error.to_string().contains("warm-regions"), "{error}");
    }
}
