//! The HTTP part of MQTT over WebSocket (RFC 6455): decides which requests are upgraded.
//!
//! No login is needed, because CONNECT of MQTT contains one. Browsers let a page of any site open a WebSocket, so the
//! `Origin` is checked: with `mqtt_anonymous_user`, or in the network of the broker, a foreign page must not reach it.

use core::fmt::Write as _;
use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::digest;

use super::gate::is_known_host;
use super::http::{Request, Status, Verb};
use super::request::{Answer, bad_request, problem};

/// The path of the upgrade.
pub(super) const PATH: &str = "mqtt";

/// Returns whether these segments are the path, with or without a slash at the end.
pub(super) fn is_path(segments: &[Cow<'_, str>]) -> bool {
    match segments {
        [path] => path == PATH,
        [path, end] => path == PATH && end.is_empty(),
        _ => false,
    }
}
/// The subprotocols: that of MQTT 3.1.1 and 5, and that of MQTT 3.1.
const PROTOCOLS: [&str; 2] = ["mqtt", "mqttv3.1"];
/// The text that the RFC appends to the client's key.
const KEY_SUFFIX: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Length of the decoded key of the client in bytes.
const KEY_BYTES: usize = 16;

/// Header lines of the response that asks for an upgrade.
pub(super) const UPGRADE_REQUIRED_LINES: &str =
    "cache-control: no-store\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n";

/// Answers a request for [`PATH`]. `hosts` are the host names of the broker, and `origins` is the value of
/// `mqtt_websocket_origins`.
pub(super) fn answer(request: &Request<'_>, hosts: &[String], origins: &[String]) -> Answer {
    if request.verb != Verb::Get || request.is_head {
        return Answer::Now(Status::MethodNotAllowed, problem("method_not_allowed", "only GET"));
    }
    let origin = request.origin.page;
    if origin.is_some_and(|origin| !is_allowed(origin, request.origin.host, hosts, origins)) {
        let why = "pages of this origin must not connect: add it to mqtt_websocket_origins";
        return Answer::Now(Status::Forbidden, problem("forbidden", why));
    }
    if request.origin.host.is_none() {
        return bad_request("the request has no Host header");
    }
    let upgrade = &request.upgrade;
    let upgrade_required = |why| Answer::Now(Status::UpgradeRequired, problem("upgrade_required", why));
    // HTTP/1.0 has no upgrades.
    if !upgrade.is_to_websocket || !upgrade.is_in_connection || request.is_last {
        return upgrade_required(
            "this path is for MQTT over WebSocket, with the headers Upgrade and Connection",
        );
    }
    if upgrade.version != Some("13") {
        return upgrade_required("Sec-WebSocket-Version must be 13");
    }
    let key = upgrade.key.unwrap_or_default();
    if !BASE64.decode(key).is_ok_and(|bytes| bytes.len() == KEY_BYTES) {
        return bad_request("Sec-WebSocket-Key must be 16 bytes in base64");
    }
    let offered = || upgrade.protocols.iter().flat_map(|value| value.split(',')).map(str::trim);
    // If both are offered, `mqtt` is taken (MQTT-6.0.0-4).
    let Some(protocol) = PROTOCOLS.into_iter().find(|known| offered().any(|offered| offered == *known))
    else {
        return bad_request("Sec-WebSocket-Protocol must offer mqtt or mqttv3.1");
    };
    if request.body_bytes != Some(0) {
        return bad_request("a request for an upgrade has no body");
    }
    Answer::Upgrade(response(key, protocol))
}

/// Returns whether a page of this origin may connect: the origin is in the list, or it is that of the broker itself.
fn is_allowed(origin: &str, host: Option<&str>, hosts: &[String], origins: &[String]) -> bool {
    let page = origin.strip_prefix("https://").or(origin.strip_prefix("http://"));
    // The name must be known too: another site may resolve its own name to the address of this broker.
    let is_own = host.is_some_and(|host| {
        page.is_some_and(|page| page.eq_ignore_ascii_case(host)) && is_known_host(host, hosts)
    });
    is_own || origins.iter().any(|allowed| allowed == "*" || allowed.eq_ignore_ascii_case(origin))
}

/// Returns the response `101 Switching Protocols`.
fn response(key: &str, protocol: &str) -> Vec<u8> {
    let mut hash = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(key.as_bytes());
    hash.update(KEY_SUFFIX.as_bytes());
    let mut text =
        String::from("HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n");
    // Writing to a `String` cannot fail.
    let _ = write!(
        text,
        "sec-websocket-accept: {}\r\nsec-websocket-protocol: {protocol}\r\n\r\n",
        BASE64.encode(hash.finish())
    );
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{Parsed, parse};

    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

    /// Returns the answer to a request with these header lines.
    fn answer_to(first: &str, headers: &[(&str, &str)], origins: &[&str]) -> Answer {
        let mut text = format!("{first} /mqtt HTTP/1.1\r\n");
        headers.iter().for_each(|(name, value)| text.push_str(&format!("{name}: {value}\r\n")));
        text.push_str("\r\n");
        let Parsed::Request(request, _) = parse(text.as_bytes(), 4096, None) else { panic!("{text}") };
        let origins: Vec<String> = origins.iter().map(ToString::to_string).collect();
        answer(&request, &["gate.local".to_string()], &origins)
    }

    fn status(answer: Answer) -> u16 {
        match answer {
            Answer::Upgrade(_) => 101,
            Answer::Now(status, _) => status as u16,
            other => panic!("{other:?}"),
        }
    }

    const GOOD: [(&str, &str); 6] = [
        ("Host", "gate.local:15672"),
        ("Upgrade", "WebSocket"),
        ("Connection", "keep-alive, Upgrade"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", KEY),
        ("Sec-WebSocket-Protocol", "chat, mqtt"),
    ];

    /// The key and the result are those of the RFC.
    #[test]
    fn the_response_proves_that_the_key_was_read() {
        let Answer::Upgrade(response) = answer_to("GET", &GOOD, &[]) else { panic!() };
        let text = String::from_utf8(response).unwrap();
        assert!(text.starts_with("HTTP/1.1 101 ") && text.ends_with("\r\n\r\n"), "{text}");
        assert!(text.contains("\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{text}");
        assert!(text.contains("\r\nsec-websocket-protocol: mqtt\r\n"), "{text}");
    }

    #[test]
    fn the_subprotocol_is_mqtt_if_it_is_offered() {
        for (offered, taken) in
            [("mqttv3.1, mqtt", "mqtt"), ("mqtt,mqttv3.1", "mqtt"), ("mqttv3.1", "mqttv3.1")]
        {
            let headers = GOOD
                .map(|(name, value)| (name, if name == "Sec-WebSocket-Protocol" { offered } else { value }));
            let answer = answer_to("GET", &headers, &[]);
            let Answer::Upgrade(text) = answer else { panic!("{offered}: refused") };
            let text = String::from_utf8_lossy(&text).to_lowercase();
            assert!(text.contains(&format!("\r\nsec-websocket-protocol: {taken}\r\n")), "{text}");
        }
    }

    #[test]
    fn each_missing_or_wrong_header_has_its_status() {
        for (name, value, wanted) in [
            ("Host", None, 400),
            ("Upgrade", None, 426),
            ("Upgrade", Some("h2c"), 426),
            ("Upgrade", Some("h2c, websocket"), 101),
            ("Connection", None, 426),
            ("Connection", Some("keep-alive"), 426),
            ("Connection", Some("upgrade, close"), 426),
            ("Sec-WebSocket-Version", None, 426),
            ("Sec-WebSocket-Version", Some("8"), 426),
            ("Sec-WebSocket-Key", None, 400),
            ("Sec-WebSocket-Key", Some("dG9vIHNob3J0"), 400),
            ("Sec-WebSocket-Key", Some("not base64"), 400),
            ("Sec-WebSocket-Protocol", None, 400),
            ("Sec-WebSocket-Protocol", Some("MQTT, chat"), 400),
            ("Sec-WebSocket-Protocol", Some("mqttv3.1,mqtt"), 101),
        ] {
            let headers: Vec<(&str, &str)> = GOOD
                .into_iter()
                .filter_map(|header| if header.0 == name { Some((name, value?)) } else { Some(header) })
                .collect();
            assert_eq!(status(answer_to("GET", &headers, &[])), wanted, "{name}: {value:?}");
        }
        assert_eq!(status(answer_to("PUT", &GOOD, &[])), 405);
        assert_eq!(status(answer_to("HEAD", &GOOD, &[])), 405);
        // A body that does not fit is not awaited.
        let with_body = [&GOOD[..], &[("Content-Length", "5000")]].concat();
        assert_eq!(status(answer_to("GET", &with_body, &[])), 400);
    }

    #[test]
    fn pages_of_other_origins_are_refused_unless_they_are_listed() {
        let with = |host, origin, origins: &[&str]| {
            let headers = [&[("Host", host)], &GOOD[1..], &[("Origin", origin)]].concat();
            status(answer_to("GET", &headers, origins))
        };
        for (host, origin, wanted) in [
            ("gate.local:15672", "http://gate.local:15672", 101),
            ("gate.local:15672", "https://GATE.local:15672", 101),
            ("10.0.0.1:15672", "http://10.0.0.1:15672", 101),
            ("gate.local:15672", "http://gate.local", 403),
            ("gate.local:15672", "http://gate.local:80", 403),
            ("gate.local:15672", "http://evil.org", 403),
            // The name of another site that resolves to the broker.
            ("evil.org:15672", "http://evil.org:15672", 403),
            ("gate.local:15672", "null", 403),
            ("gate.local:15672", "", 403),
        ] {
            assert_eq!(with(host, origin, &[]), wanted, "{origin} at {host}");
        }
        let listed = ["https://dash.example", "http://other.example:8080"];
        for (origin, wanted) in [
            ("https://dash.example", 101),
            ("https://Dash.example", 101),
            ("http://other.example:8080", 101),
            ("http://dash.example", 403),
            ("https://dash.example.evil.org", 403),
            ("http://gate.local:15672", 101),
        ] {
            assert_eq!(with("gate.local:15672", origin, &listed), wanted, "{origin}");
        }
        assert_eq!(with("evil.org", "null", &["*"]), 101);
    }
}
