//! Decides which requests over the network are answered, and writes the security headers of every response.
//!
//! Browsers load pages of other sites. Such a page must not reach the API under a host name of its own that resolves
//! to this broker (DNS rebinding). It must not change anything with a login that the browser remembers. Output must
//! not run as a script, whatever a queue is called.
//!
//! # Invariants
//! - The host name and the origin of the page are checked before anything is answered. Module `websocket` has its own
//!   rules for upgrades.
//! - No part of the API is answered without a login, except rows that demand none.
//! - The address where metrics need no login serves nothing else.
//! - The answer to a failed login does not depend on what was wrong with it.

use core::net::{IpAddr, Ipv6Addr};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use zeroize::Zeroizing;

use super::http::{Head, JSON, Origin, Request, Status, Verb};
use super::request::RequestContext;
use super::request::User;
use super::request::{Answer, problem, unauthorized};
use super::table::{self, Interface};
use super::web_page::PageFile;
use super::websocket::{self, UPGRADE_REQUIRED_LINES};
use leveret_core::password::{PASSWORD_BYTES_MAX, PasswordCheck};

/// The longest login that is decoded, in base64: a name of 255 bytes, a colon and a password.
const LOGIN_BYTES_MAX: usize = (256 + PASSWORD_BYTES_MAX).div_ceil(3) * 4;

/// The header lines of every response that the page may consist of, and further lines.
macro_rules! secured {
    ($more:literal) => {
        concat!(
            "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self'; \
             img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; \
             frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'\r\n\
             x-content-type-options: nosniff\r\nreferrer-policy: no-referrer\r\n\
             cross-origin-resource-policy: same-origin\r\n",
            $more
        )
    };
}

/// The header lines of a file of the page. The client must ask whether its copy is still up to date.
const PAGE_LINES: &str =
    secured!("cache-control: no-cache\r\ncontent-encoding: gzip\r\nvary: accept-encoding\r\n");
/// The header lines of every answer of the API, and further lines. A browser that shows such an answer as a document
/// loads nothing for it.
macro_rules! secured_data {
    ($more:literal) => {
        concat!(
            "content-security-policy: default-src 'none'; frame-ancestors 'none'\r\n\
             x-content-type-options: nosniff\r\nreferrer-policy: no-referrer\r\n\
             cross-origin-resource-policy: same-origin\r\n",
            $more
        )
    };
}

const API_LINES: &str = secured_data!("cache-control: no-store\r\n");
/// The realm is RabbitMQ's: some tools store credentials by its name.
const CHALLENGE_LINES: &str = secured_data!(
    "cache-control: no-store\r\nwww-authenticate: Basic realm=\"RabbitMQ Management\", charset=\"UTF-8\"\r\n"
);

/// Returns the head of a response of the API.
pub(super) const fn head(status: Status, challenges: bool) -> Head<'static> {
    let more = match status {
        Status::Unauthorized if challenges => CHALLENGE_LINES,
        Status::UpgradeRequired => UPGRADE_REQUIRED_LINES,
        _ => API_LINES,
    };
    Head { status, media: JSON, more, tag: None }
}

/// Answers a request over the network.
///
/// # Errors
/// The password has to be checked first. The caller then repeats the call with the result.
pub(super) fn handle(
    request: &Request<'_>,
    context: &mut RequestContext<'_>,
    from_loopback: bool,
    is_login_right: Option<bool>,
) -> Result<Answer, Box<PasswordCheck>> {
    if let Some(origins) = &context.process.mqtt_websocket_origins
        && websocket::is_path(&request.segments)
    {
        return Ok(websocket::answer(request, &context.process.hosts, origins));
    }
    if let Some(refused) = refuse(request, &context.process.hosts) {
        return Ok(refused);
    }
    if let Some(answer) = table::answer_to_anybody(request, context) {
        return Ok(answer);
    }
    if request.segments.first().is_none_or(|first| *first != "api" && *first != "metrics") {
        return Ok(table::not_taken(request, context, Interface::Network, None));
    }
    let user = match request.origin.token() {
        Some(token) => context.tokens.user_of(token, context.broker, context.process.uptime_ms),
        None => match Login::of(&request.origin) {
            Some(login) => {
                let check =
                    context.broker.access().password_check(&login.user, &login.password, from_loopback);
                let is_correct = context.broker.access().is_remembered(&check);
                // If the check succeeded a moment ago, the user has changed since.
                if !is_correct && is_login_right.is_none() {
                    return Err(Box::new(check));
                }
                is_correct.then_some(login.user)
            }
            None => None,
        },
    };
    let Some(user) = user else { return Ok(unauthorized("Login failed")) };
    if context.broker.access().check_admission(context.pending_writes, &user, from_loopback).is_err() {
        return Ok(unauthorized("Login failed"));
    }
    let Some(user) = User::of(context.broker, &user) else { return Ok(unauthorized("Not management user")) };
    Ok(table::answer(request, context, Interface::Network, Some(&user)))
}

/// Answers a request at the address where metrics need no login. Only metrics are served there.
pub(super) fn metrics_alone(request: &Request<'_>, context: &mut RequestContext<'_>) -> Answer {
    refuse(request, &context.process.hosts)
        .unwrap_or_else(|| table::answer(request, context, Interface::Metrics, None))
}

/// Returns the head of the response with a file of the page.
pub(super) fn page_head(page: &PageFile, status: Status) -> Head<'_> {
    Head { status, media: page.media, more: PAGE_LINES, tag: Some(page.tag()) }
}

/// Returns the head of the answer that the client has this version already.
pub(super) const fn unchanged_head(tag: u64) -> Head<'static> {
    Head { status: Status::NotModified, media: JSON, more: "cache-control: no-store\r\n", tag: Some(tag) }
}

/// Refuses a request for a foreign host name or from a page of another origin.
fn refuse(request: &Request<'_>, hosts: &[String]) -> Option<Answer> {
    let forbidden = |why| Some(Answer::Now(Status::Forbidden, problem("forbidden", why)));
    let origin = &request.origin;
    match origin.host {
        Some(host) if !is_known_host(host, hosts) => {
            return forbidden("this is not a host name of this broker: add it to management_hosts");
        }
        // Only clients older than HTTP/1.1 omit `Host`, and they close the connection. Browsers always send it.
        None if !request.is_last => {
            return Some(Answer::Now(
                Status::BadRequest,
                problem("bad_request", "the request has no Host header"),
            ));
        }
        Some(_) | None => {}
    }
    if matches!(request.verb, Verb::Get | Verb::Options) {
        return None;
    }
    let page = origin.page.map(|page| page.strip_prefix("https://").or(page.strip_prefix("http://")));
    let is_here = |page: &str| origin.host.is_some_and(|host| page.eq_ignore_ascii_case(host));
    let is_foreign = page.is_some_and(|page| !page.is_some_and(is_here))
        || origin.fetch_site.is_some_and(|site| !matches!(site, "same-origin" | "none"));
    if is_foreign { forbidden("pages of another origin must not change anything here") } else { None }
}

/// Returns whether a `Host` is an IP address or one of these names, with or without a port.
pub(super) fn is_known_host(host: &str, hosts: &[String]) -> bool {
    if let Some(rest) = host.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else { return false };
        return address.parse::<Ipv6Addr>().is_ok() && (port.is_empty() || is_port(port));
    }
    let name = match host.find(':') {
        Some(at) if is_port(&host[at..]) => &host[..at],
        Some(_) => return false,
        None => host,
    };
    name.parse::<IpAddr>().is_ok() || hosts.iter().any(|ours| ours.eq_ignore_ascii_case(name))
}

fn is_port(text: &str) -> bool {
    text.strip_prefix(':')
        .is_some_and(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Basic credentials.
struct Login {
    user: String,
    password: Zeroizing<Vec<u8>>,
}

impl Login {
    fn of(origin: &Origin<'_>) -> Option<Self> {
        let value = origin.authorization?.0.trim_ascii();
        let (scheme, rest) = value.split_at_checked(6)?;
        let encoded = rest.trim_ascii();
        if !scheme.eq_ignore_ascii_case(b"basic ") || encoded.len() > LOGIN_BYTES_MAX {
            return None;
        }
        let both = Zeroizing::new(BASE64.decode(encoded).ok()?);
        let colon = both.iter().position(|byte| *byte == b':')?;
        let user = core::str::from_utf8(&both[..colon]).ok()?.to_string();
        Some(Self { user, password: Zeroizing::new(both[colon + 1..].to_vec()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_configured_names_are_known_hosts() {
        let hosts = ["localhost".to_string(), "gate.local".to_string()];
        for ours in ["localhost", "localhost:15672", "GATE.local:1", "10.0.0.1:15672", "[::1]", "[::1]:15672"]
        {
            assert!(is_known_host(ours, &hosts), "{ours}");
        }
        for other in [
            "",
            "gate",
            "localhost.evil.org",
            "evil.org:15672",
            "localhost:",
            "localhost:x",
            "[::1",
            "[x]",
            "::1",
        ] {
            assert!(!is_known_host(other, &hosts), "{other}");
        }
    }
}
