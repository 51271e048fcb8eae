//! Parses requests and writes responses, in the part of HTTP/1.1 that operators' tools use.
//!
//! # Invariants
//! - A request is either complete or not yet there.
//! - A request that is larger than the buffer or whose end is ambiguous is refused and the connection closed. So no
//!   second request can be smuggled inside the first.
//! - If the target has a host name, it replaces that of `Host` (RFC 9112, section 3.2.2).
//! - The segments of a path are UTF-8.

use std::borrow::Cow;
use std::io::Write;

use leveret_core::password::Secret;

use super::compression::accepts_gzip;

/// The longest request, head and body, in bytes, except for bodies that are taken in parts.
pub const REQUEST_BYTES_MAX: usize = 64 << 10;
/// The characters around the value of a header (RFC 9110, section 5.6.3).
const BLANKS: [char; 2] = [' ', '\t'];
/// The most headers of a request.
const HEADERS_MAX: usize = 32;
/// The most headers `Sec-WebSocket-Protocol` of a request.
const PROTOCOL_HEADERS_MAX: usize = 4;
/// The most segments of a path.
const SEGMENTS_MAX: usize = 9;

/// The method of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verb {
    /// Ask for the methods of a resource.
    Options,
    /// A method that no resource has.
    Other,
    /// Read an object.
    Get,
    /// Create or change an object.
    Put,
    /// Carry out an action.
    Post,
    /// Delete an object.
    Delete,
}

impl Verb {
    fn of(method: &str) -> Self {
        match method {
            "GET" | "HEAD" => Self::Get,
            "PUT" => Self::Put,
            "POST" => Self::Post,
            "DELETE" => Self::Delete,
            "OPTIONS" => Self::Options,
            _ => Self::Other,
        }
    }
}

/// Whether the object to change must exist.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Condition {
    /// It may exist or not.
    #[default]
    None,
    /// It must exist (`If-Match: *`).
    Exists,
    /// It must not exist (`If-None-Match: *`).
    IsNew,
}

/// One request.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// The method.
    pub verb: Verb,
    /// The path's segments, decoded.
    pub segments: heapless::Vec<Cow<'a, str>, SEGMENTS_MAX>,
    /// The part after the question mark.
    pub query: &'a str,
    /// The body. Empty if it is absent, or if it does not fit in the buffer after the head.
    pub body: &'a [u8],
    /// `Content-Type`, or empty.
    pub media: &'a str,
    /// The length of the body, from `Content-Length` or counted up to the last chunk. `None` while the end of a chunked body
    /// has not arrived.
    pub body_bytes: Option<usize>,
    /// `X-Reason`: what the clients of closed connections are told.
    pub reason: Option<&'a str>,
    /// Whether the client waits for permission to send the body (`Expect: 100-continue`).
    pub expects_continue: bool,
    /// Whether the object must exist.
    pub condition: Condition,
    /// Whether the connection is closed after the response.
    pub is_last: bool,
    /// Whether only the response's head is wanted (`HEAD`).
    pub is_head: bool,
    /// Whether the client accepts a compressed answer (`Accept-Encoding`).
    pub accepts_gzip: bool,
    /// The headers that identify the client.
    pub origin: Origin<'a>,
    /// The headers of an upgrade to WebSocket.
    pub upgrade: Upgrade<'a>,
}

/// The headers of an upgrade to WebSocket (RFC 6455).
#[derive(Clone, Default, Debug)]
pub struct Upgrade<'a> {
    /// Whether `Upgrade` contains `websocket`.
    pub is_to_websocket: bool,
    /// Whether `Connection` contains `upgrade`.
    pub is_in_connection: bool,
    /// `Sec-WebSocket-Key`.
    pub key: Option<&'a str>,
    /// `Sec-WebSocket-Version`.
    pub version: Option<&'a str>,
    /// The values of `Sec-WebSocket-Protocol`, each a list.
    pub protocols: heapless::Vec<&'a str, PROTOCOL_HEADERS_MAX>,
}

/// The headers that identify the client and the page it acts for.
#[derive(Clone, Copy, Default, Debug)]
pub struct Origin<'a> {
    /// `Authorization`.
    pub authorization: Option<Secret<'a>>,
    /// `Host`: the name by which the client reaches the broker.
    pub host: Option<&'a str>,
    /// `Origin`: the page whose script sends the request.
    pub page: Option<&'a str>,
    /// `Sec-Fetch-Site`: how that page is related to the broker.
    pub fetch_site: Option<&'a str>,
    /// `If-None-Match`: the version of the client's copy.
    pub client_copy: Option<&'a str>,
    /// Whether a script sends the request and shows errors itself.
    pub is_script: bool,
}

impl<'a> Origin<'a> {
    /// Returns the token that the request has instead of a password.
    pub fn token(&self) -> Option<&'a [u8]> {
        let (scheme, token) = self.authorization?.0.trim_ascii().split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
    }
}

/// The result of parsing bytes.
#[derive(Clone, Debug)]
pub enum Parsed<'a> {
    /// The head of the request is incomplete.
    NeedMore,
    /// The head is complete, the body is not.
    NeedBody {
        /// Length of the whole request.
        end: usize,
        /// Whether the client waits for permission to send the body (`Expect: 100-continue`).
        expects_continue: bool,
    },
    /// The head of a request with a chunked body is complete; it has this length.
    ChunkedBody {
        /// Length of the head.
        head_len: usize,
        /// Whether the client waits for permission to send the body (`Expect: 100-continue`).
        expects_continue: bool,
    },
    /// A request, and its length: without the body if both together do not fit.
    Request(Request<'a>, usize),
    /// The bytes can only be answered with this status.
    Refused(Status),
}

/// The status of a response.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum Status {
    /// The result follows.
    Ok = 200,
    /// The object was created.
    Created = 201,
    /// The request was carried out; there is no content.
    NoContent = 204,
    /// The request was carried out; the client is redirected.
    SeeOther = 303,
    /// The request is invalid.
    BadRequest = 400,
    /// The client's copy is up to date.
    NotModified = 304,
    /// The credentials are missing or wrong, or lack rights.
    Unauthorized = 401,
    /// The request is refused for every user.
    Forbidden = 403,
    /// The object does not exist.
    NotFound = 404,
    /// The resource exists and does not take this method.
    MethodNotAllowed = 405,
    /// The condition on the object's existence is not met.
    PreconditionFailed = 412,
    /// The request is too long.
    TooLarge = 413,
    /// The resource is only for clients that upgrade to WebSocket.
    UpgradeRequired = 426,
    /// A relevant header is not supported.
    NotImplemented = 501,
    /// The broker cannot do it now, perhaps later.
    Unavailable = 503,
}

impl Status {
    const fn words(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Created => "Created",
            Self::NoContent => "No Content",
            Self::SeeOther => "See Other",
            Self::BadRequest => "Bad Request",
            Self::NotModified => "Not Modified",
            Self::Unauthorized => "Unauthorized",
            Self::Forbidden => "Forbidden",
            Self::NotFound => "Not Found",
            Self::MethodNotAllowed => "Method Not Allowed",
            Self::PreconditionFailed => "Precondition Failed",
            Self::TooLarge => "Payload Too Large",
            Self::UpgradeRequired => "Upgrade Required",
            Self::NotImplemented => "Not Implemented",
            Self::Unavailable => "Service Unavailable",
        }
    }
}

impl Request<'_> {
    /// Returns whether the body is complete.
    pub fn is_whole(&self) -> bool {
        self.body_bytes == Some(self.body.len())
    }

    /// Returns whether the body is longer than `bytes_max`. The length of a chunked body may be unknown yet.
    pub fn is_longer_than(&self, bytes_max: usize) -> bool {
        self.body_bytes.is_some_and(|bytes| bytes > bytes_max)
    }

    /// Returns the value of a key in the query, still percent-encoded.
    pub fn query_value(&self, key: &str) -> Option<&str> {
        self.query
            .split('&')
            .find_map(|pair| pair.split_once('=').filter(|(name, _)| *name == key))
            .map(|p| p.1)
    }

    /// Returns whether the query contains `key=true`.
    pub fn has_true(&self, key: &str) -> bool {
        self.query_value(key) == Some("true")
    }
}

/// A chunked body that has been decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DecodedBody {
    /// The number of bytes that have been decoded. They follow the head.
    pub bytes: usize,
    /// Whether the body is complete.
    pub is_whole: bool,
}

/// Parses the request at the start of `bytes`, which has at most `bytes_max` bytes. If the result is
/// [`Parsed::ChunkedBody`], the caller decodes the body with a [`ChunkDecoder`], and calls this again with `decoded`.
pub fn parse(bytes: &[u8], bytes_max: usize, decoded: Option<DecodedBody>) -> Parsed<'_> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Request::new(&mut headers);
    let head_len = match head.parse(bytes) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) if bytes.len() >= bytes_max => {
            return Parsed::Refused(Status::TooLarge);
        }
        Ok(httparse::Status::Partial) => return Parsed::NeedMore,
        Err(_) => return Parsed::Refused(Status::BadRequest),
    };
    let (Some(method), Some(target), Some(version)) = (head.method, head.path, head.version) else {
        return Parsed::Refused(Status::BadRequest);
    };
    let known = match KnownHeaders::of_head(head.headers, &bytes[..head_len]) {
        Ok(known) => known,
        Err(status) => return Parsed::Refused(status),
    };
    let expects_continue = known.expects_continue;
    let (end, body_bytes) = match (known.is_chunked, decoded) {
        // HTTP/1.0 has no chunked bodies, so a proxy may not have seen this one's end.
        (true, _) if version == 0 => return Parsed::Refused(Status::BadRequest),
        (true, None) => return Parsed::ChunkedBody { head_len, expects_continue },
        (true, Some(body)) if body.is_whole => (head_len + body.bytes, Some(body.bytes)),
        (true, Some(_)) => (head_len, None),
        (false, _) => {
            let whole = head_len.checked_add(known.body_len).filter(|end| *end <= bytes_max);
            (whole.unwrap_or(head_len), Some(known.body_len))
        }
    };
    let Some(body) = bytes.get(head_len..end) else {
        return Parsed::NeedBody { end, expects_continue };
    };
    let verb = Verb::of(method);
    let Some((host, target)) = split_target(target) else { return Parsed::Refused(Status::BadRequest) };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let Some(segments) = segments(path) else { return Parsed::Refused(Status::BadRequest) };
    // Another parser may take what follows an unknown method for something else.
    let is_last = known.is_close_requested || version == 0 || verb == Verb::Other;
    let is_head = method == "HEAD";
    let KnownHeaders { media, condition, accepts_gzip, origin, upgrade, reason, .. } = known;
    let origin = Origin { host: host.or(origin.host), ..origin };
    let request = Request {
        verb,
        segments,
        query,
        body,
        media,
        body_bytes,
        reason,
        expects_continue,
        condition,
        is_last,
        is_head,
        accepts_gzip,
        origin,
        upgrade,
    };
    Parsed::Request(request, end)
}

/// The values of the relevant headers.
#[derive(Default)]
struct KnownHeaders<'a> {
    body_len: usize,
    is_chunked: bool,
    reason: Option<&'a str>,
    media: &'a str,
    condition: Condition,
    is_close_requested: bool,
    expects_continue: bool,
    accepts_gzip: bool,
    origin: Origin<'a>,
    upgrade: Upgrade<'a>,
}

impl<'a> KnownHeaders<'a> {
    fn of(headers: &[httparse::Header<'a>]) -> Result<Self, Status> {
        let mut known = Self::default();
        let mut length = None;
        for header in headers {
            // Other characters that Unicode calls white space are part of a value.
            let value = core::str::from_utf8(header.value).unwrap_or("").trim_matches(BLANKS);
            match header.name {
                name if name.eq_ignore_ascii_case("content-length") => {
                    note_content_length(&mut length, value)?;
                }
                name if name.eq_ignore_ascii_case("transfer-encoding") => known.note_encoding(value)?,
                name if name.eq_ignore_ascii_case("x-reason") => known.reason = Some(value),
                name if name.eq_ignore_ascii_case("if-match") => known.condition = Condition::Exists,
                name if name.eq_ignore_ascii_case("if-none-match") => {
                    known.condition = Condition::IsNew;
                    known.origin.client_copy = Some(value);
                }
                name if name.eq_ignore_ascii_case("connection") => {
                    known.is_close_requested |= has_word(value, "close");
                    known.upgrade.is_in_connection |= has_word(value, "upgrade");
                }
                name if name.eq_ignore_ascii_case("upgrade") => {
                    known.upgrade.is_to_websocket |= has_word(value, "websocket");
                }
                name if name.eq_ignore_ascii_case("sec-websocket-key") => {
                    once(&mut known.upgrade.key, value)?;
                }
                name if name.eq_ignore_ascii_case("sec-websocket-version") => {
                    once(&mut known.upgrade.version, value)?;
                }
                name if name.eq_ignore_ascii_case("sec-websocket-protocol") => {
                    known.upgrade.protocols.push(value).map_err(|_| Status::BadRequest)?;
                }
                name if name.eq_ignore_ascii_case("expect") => {
                    known.expects_continue = value.eq_ignore_ascii_case("100-continue");
                }
                name if name.eq_ignore_ascii_case("accept-encoding") => {
                    known.accepts_gzip |= accepts_gzip(value);
                }
                name if name.eq_ignore_ascii_case("content-type") => known.media = value,
                name if name.eq_ignore_ascii_case("host") => once(&mut known.origin.host, value)?,
                name if name.eq_ignore_ascii_case("authorization") => {
                    once(&mut known.origin.authorization, Secret(header.value))?;
                }
                name if name.eq_ignore_ascii_case("origin") => once(&mut known.origin.page, value)?,
                name if name.eq_ignore_ascii_case("sec-fetch-site") => {
                    once(&mut known.origin.fetch_site, value)?;
                }
                name if name.eq_ignore_ascii_case("x-requested-with") => known.origin.is_script = true,
                _ => {}
            }
        }
        // Different parsers would prefer one length or the other.
        if known.is_chunked && length.is_some() {
            return Err(Status::BadRequest);
        }
        known.body_len = length.unwrap_or(0);
        Ok(known)
    }

    /// Returns the headers of a request, like [`Self::of`]. `head` is everything before the body.
    fn of_head(headers: &[httparse::Header<'a>], head: &[u8]) -> Result<Self, Status> {
        let known = Self::of(headers)?;
        // RFC 9112 permits LF alone as a line end. A parser that takes it for a part of a value would see another body.
        if (known.body_len > 0 || known.is_chunked) && has_bare_line_feed(head) {
            return Err(Status::BadRequest);
        }
        Ok(known)
    }

    fn note_encoding(&mut self, value: &str) -> Result<(), Status> {
        if !value.eq_ignore_ascii_case("chunked") {
            return Err(Status::NotImplemented);
        }
        match core::mem::replace(&mut self.is_chunked, true) {
            true => Err(Status::BadRequest),
            false => Ok(()),
        }
    }
}

/// Returns whether a list of entity tags (`If-None-Match`) contains this one.
pub fn has_tag(tags: &str, tag: u64) -> bool {
    let tag = format!("\"{tag:016x}\"");
    tags.split(',').any(|other| other.trim().trim_start_matches("W/") == tag)
}

fn has_bare_line_feed(head: &[u8]) -> bool {
    head.windows(2).any(|pair| pair[1] == b'\n' && pair[0] != b'\r')
}

/// Returns whether a list contains this word.
fn has_word(list: &str, word: &str) -> bool {
    list.split(',').any(|other| other.trim_matches(BLANKS).eq_ignore_ascii_case(word))
}

fn note_content_length(length: &mut Option<usize>, value: &str) -> Result<(), Status> {
    // Different parsers would interpret two lengths, or a sign before one, differently.
    let is_number = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    if length.is_some() || !is_number {
        return Err(Status::BadRequest);
    }
    *length = Some(value.parse().map_err(|_| Status::TooLarge)?);
    Ok(())
}

/// Stores the value of a header that may occur once. If it occurred twice, another parser might read the other value
/// and identify another client.
fn once<T>(slot: &mut Option<T>, value: T) -> Result<(), Status> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(Status::BadRequest),
    }
}

/// Splits a target in absolute form (`http://host/path`), as clients send it to a proxy, into host and path. Other targets
/// have no host. Returns `None` if the target has no path.
fn split_target(target: &str) -> Option<(Option<&str>, &str)> {
    if target.starts_with('/') {
        return Some((None, target));
    }
    // `OPTIONS *` asks about the server as a whole.
    if target == "*" {
        return Some((None, "/"));
    }
    let (scheme, rest) = target.split_once("://")?;
    if !["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
        return None;
    }
    let path_at = rest.find('/').unwrap_or(rest.len());
    let (host, path) = rest.split_at(path_at);
    let is_host = !host.is_empty() && !host.contains(['@', '?', '#']);
    is_host.then_some((Some(host), if path.is_empty() { "/" } else { path }))
}

fn segments(path: &str) -> Option<heapless::Vec<Cow<'_, str>, SEGMENTS_MAX>> {
    let mut segments = heapless::Vec::new();
    for segment in path.strip_prefix('/')?.split('/') {
        segments.push(decode(segment)?).ok()?;
    }
    Some(segments)
}

/// Decodes percent-encoding. Returns `None` for an incomplete escape, or if the result is not UTF-8.
pub fn decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let high = char::from(bytes.next()?).to_digit(16)?;
                let low = char::from(bytes.next()?).to_digit(16)?;
                (high * 16 + low) as u8
            }
            byte => byte,
        });
    }
    String::from_utf8(decoded).ok().map(Cow::Owned)
}

/// Encodes everything except ASCII letters, digits and `-._~` as `%XX`.
pub fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// The head of a response, without the length of the body.
#[derive(Clone, Copy, Debug)]
pub struct Head<'h> {
    /// The status.
    pub status: Status,
    /// The media type of the body.
    pub media: &'static str,
    /// Further header lines, each with its line end.
    pub more: &'h str,
    /// The entity tag, which distinguishes versions of the body.
    pub tag: Option<u64>,
}

impl Head<'_> {
    /// Returns the head of a JSON response to operators' programs.
    pub const fn json(status: Status) -> Self {
        Self { status, media: JSON, more: "cache-control: no-cache\r\n", tag: None }
    }
}

/// The media type of JSON.
pub const JSON: &str = "application/json";

/// Begins a response whose body has `body_bytes` bytes; `None`: it is chunked.
pub fn begin(out: &mut Vec<u8>, head: Head<'_>, body_bytes: Option<usize>) {
    let Head { status, media, more, tag } = head;
    put(out, format_args!("HTTP/1.1 {} {}\r\n", status as u16, status.words()));
    put(out, format_args!("content-type: {media}\r\n{more}"));
    if let Some(tag) = tag {
        put(out, format_args!("etag: \"{tag:016x}\"\r\n"));
    }
    match body_bytes {
        Some(_) if matches!(status, Status::NoContent | Status::NotModified) => {}
        Some(bytes) => put(out, format_args!("content-length: {bytes}\r\n")),
        None => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
    }
    out.extend_from_slice(b"\r\n");
}

/// Tells the client to send the body.
pub fn ask_for_body(out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
}

/// The longest extension of a chunk, in bytes. Extensions are ignored.
const EXTENSION_BYTES_MAX: usize = 256;
/// The most bytes of header lines behind the last chunk. They are ignored.
const TRAILER_BYTES_MAX: usize = 4 << 10;
/// The most digits of a chunk's length.
const SIZE_DIGITS_MAX: usize = 8;

/// Decodes a chunked body (RFC 9112, section 7.1) as it arrives.
///
/// # Invariants
/// - Each line ends with CR LF: another parser may take a LF alone for a line end or not.
/// - Lengths, extensions and trailers are bounded. Lines without the form of RFC 9112 are refused, because another parser
///   may understand them otherwise.
#[derive(Clone, Debug, Default)]
pub struct ChunkDecoder(ChunkState);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ChunkState {
    /// In the length of a chunk; its value and its number of digits up to now.
    Size(usize, usize),
    /// In blanks behind a length of this value.
    SizeBlank(usize),
    /// In an extension behind a length of this value, of which this many bytes have arrived.
    Extension(usize, usize),
    /// At the LF behind a length of this value.
    SizeEnd(usize),
    /// In a chunk; the number of its bytes still to come.
    Content(usize),
    /// At the CR, or the LF, behind a chunk.
    ContentEnd { is_cr_seen: bool },
    /// In the header lines behind the last chunk.
    Trailer { line_bytes: usize, trailer_bytes: usize, has_colon: bool },
    /// At the LF of such a line. The line is empty, which ends the body, or not.
    TrailerEnd { is_empty: bool, trailer_bytes: usize },
    /// The body is complete.
    Done,
}

impl Default for ChunkState {
    fn default() -> Self {
        Self::Size(0, 0)
    }
}

impl ChunkDecoder {
    /// Returns whether the body is complete.
    pub fn is_done(&self) -> bool {
        self.0 == ChunkState::Done
    }

    /// Decodes bytes in place: moves the content to their beginning. Returns the length of the content, and the number of
    /// bytes that were decoded. Bytes behind the end of the body are not.
    ///
    /// # Errors
    /// The bytes are no chunked body.
    pub fn decode(&mut self, bytes: &mut [u8]) -> Result<(usize, usize), Status> {
        let (mut content_len, mut at) = (0, 0);
        while at < bytes.len() && !self.is_done() {
            if let ChunkState::Content(left) = self.0 {
                let count = left.min(bytes.len() - at);
                bytes.copy_within(at..at + count, content_len);
                (content_len, at) = (content_len + count, at + count);
                self.0 = match left - count {
                    0 => ChunkState::ContentEnd { is_cr_seen: false },
                    left => ChunkState::Content(left),
                };
                continue;
            }
            self.0 = self.0.after(bytes[at])?;
            at += 1;
        }
        Ok((content_len, at))
    }
}

/// Returns whether a line may contain this byte.
const fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

impl ChunkState {
    /// Returns the state after a byte outside of a chunk's content.
    fn after(self, byte: u8) -> Result<Self, Status> {
        let malformed = Err(Status::BadRequest);
        match (self, byte) {
            (Self::Size(value, digits), b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = char::from(byte).to_digit(16).unwrap_or_default() as usize;
                match digits < SIZE_DIGITS_MAX {
                    true => Ok(Self::Size(value * 16 + digit, digits + 1)),
                    false => Err(Status::TooLarge),
                }
            }
            (Self::Size(value, 1..), b'\r') => Ok(Self::SizeEnd(value)),
            (Self::Size(value, 1..) | Self::SizeBlank(value), b' ' | b'\t') => Ok(Self::SizeBlank(value)),
            (Self::Size(value, 1..) | Self::SizeBlank(value), b';') => Ok(Self::Extension(value, 0)),
            (Self::SizeBlank(value) | Self::Extension(value, _), b'\r') => Ok(Self::SizeEnd(value)),
            (Self::Extension(value, bytes), byte) if is_text(byte) && bytes < EXTENSION_BYTES_MAX => {
                Ok(Self::Extension(value, bytes + 1))
            }
            (Self::SizeEnd(0), b'\n') => {
                Ok(Self::Trailer { line_bytes: 0, trailer_bytes: 0, has_colon: false })
            }
            (Self::SizeEnd(value), b'\n') => Ok(Self::Content(value)),
            (Self::ContentEnd { is_cr_seen: false }, b'\r') => Ok(Self::ContentEnd { is_cr_seen: true }),
            (Self::ContentEnd { is_cr_seen: true }, b'\n') => Ok(Self::default()),
            (Self::Trailer { line_bytes, trailer_bytes, has_colon }, b'\r')
                if line_bytes == 0 || has_colon =>
            {
                Ok(Self::TrailerEnd { is_empty: line_bytes == 0, trailer_bytes })
            }
            // A blank at the beginning would continue the line before.
            (Self::Trailer { line_bytes: 0, .. }, b' ' | b'\t' | b':') => malformed,
            (Self::Trailer { line_bytes, trailer_bytes, has_colon }, byte)
                if is_text(byte) && trailer_bytes < TRAILER_BYTES_MAX =>
            {
                Ok(Self::Trailer {
                    line_bytes: line_bytes + 1,
                    trailer_bytes: trailer_bytes + 1,
                    has_colon: has_colon || byte == b':',
                })
            }
            (Self::TrailerEnd { is_empty: true, .. }, b'\n') => Ok(Self::Done),
            (Self::TrailerEnd { is_empty: false, trailer_bytes }, b'\n') => {
                Ok(Self::Trailer { line_bytes: 0, trailer_bytes: trailer_bytes + 2, has_colon: false })
            }
            _ => malformed,
        }
    }
}

/// Bytes around a chunk: the longest length in hexadecimal digits, and two line ends.
pub const CHUNK_OVERHEAD_BYTES: usize = CHUNK_HEAD_BYTES + 2;
const CHUNK_HEAD_BYTES: usize = 10;

/// Reserves space for the head of a chunk, and returns its position.
pub fn open_chunk(out: &mut Vec<u8>) -> usize {
    let at = out.len();
    out.extend_from_slice(&[b'0'; CHUNK_HEAD_BYTES]);
    at
}

/// Completes the chunk at `at`. An empty chunk would end the response, so it is removed.
pub fn close_chunk(out: &mut Vec<u8>, at: usize) {
    let len = out.len() - at - CHUNK_HEAD_BYTES;
    if len == 0 {
        out.truncate(at);
        return;
    }
    let head = format!("{len:08x}\r\n");
    out[at..at + CHUNK_HEAD_BYTES].copy_from_slice(head.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Ends a chunked response.
pub fn end_chunks(out: &mut Vec<u8>) {
    out.extend_from_slice(b"0\r\n\r\n");
}

fn put(out: &mut Vec<u8>, text: core::fmt::Arguments<'_>) {
    // Writing to a `Vec` cannot fail.
    let _ = out.write_fmt(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> Option<Status> {
        match parse(text.as_bytes(), 1024, None) {
            Parsed::Refused(status) => Some(status),
            _ => None,
        }
    }

    #[test]
    fn a_request_is_complete_or_absent() {
        let text = "PUT /api/queues/%2F/a%20b?if-empty=true&x=1 HTTP/1.1\r\ncontent-length: 3\r\n\
                    if-match: *\r\n\r\nabcGET / HTTP/1.1\r\n\r\n";
        let whole = text.find("GET").unwrap();
        for end in 0..whole {
            let parsed = parse(&text.as_bytes()[..end], 1024, None);
            assert!(matches!(parsed, Parsed::NeedMore | Parsed::NeedBody { .. }), "{end}");
        }
        let Parsed::Request(request, end) = parse(text.as_bytes(), 1024, None) else { panic!() };
        assert_eq!((end, request.verb, request.condition), (whole, Verb::Put, Condition::Exists));
        assert_eq!(request.segments, ["api", "queues", "/", "a b"]);
        assert_eq!((request.body, request.query_value("x")), (&b"abc"[..], Some("1")));
        assert!(request.has_true("if-empty"));
        assert!(!request.is_last && !request.has_true("if"));
    }

    #[test]
    fn requests_with_an_ambiguous_end_are_refused() {
        for (header, status) in [
            ("content-length: 3\r\nContent-Length: 3", Status::BadRequest),
            ("content-length: +3", Status::BadRequest),
            ("content-length:", Status::BadRequest),
            ("content-length: 3, 3", Status::BadRequest),
            ("content-length: 99999999999999999999999", Status::TooLarge),
            ("transfer-encoding: gzip, chunked", Status::NotImplemented),
            ("transfer-encoding: chunked\r\nTransfer-Encoding: chunked", Status::BadRequest),
            ("transfer-encoding: chunked\r\ncontent-length: 3", Status::BadRequest),
            ("content-length: 0\r\ntransfer-encoding: chunked", Status::BadRequest),
            ("transfer-encoding: \u{a0}chunked", Status::NotImplemented),
            ("transfer-encoding: chunked\u{2029}", Status::NotImplemented),
            ("content-length: \u{3000}5", Status::BadRequest),
            ("x: y\ncontent-length: 5", Status::BadRequest),
            ("x: y\ntransfer-encoding: chunked", Status::BadRequest),
        ] {
            assert_eq!(refused(&format!("PUT / HTTP/1.1\r\n{header}\r\n\r\n")), Some(status), "{header}");
        }
        assert_eq!(refused(&format!("GET /{} HTTP/1.1\r\n", "a".repeat(1024))), Some(Status::TooLarge));
        assert_eq!(refused("GET /%F HTTP/1.1\r\n\r\n"), Some(Status::BadRequest));
        assert_eq!(refused("GET /%FF HTTP/1.1\r\n\r\n"), Some(Status::BadRequest));
        assert_eq!(refused("GET /a/b/c/d/e/f/g/h/i/j HTTP/1.1\r\n\r\n"), Some(Status::BadRequest));
        assert_eq!(refused("PUT / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n"), Some(Status::BadRequest));
        assert_eq!(refused("AMQP\0\0\x09\x01"), Some(Status::BadRequest));
    }

    #[test]
    fn a_request_with_a_long_body_is_parsed_when_its_head_is_complete() {
        let text = "POST /api/definitions HTTP/1.1\r\ncontent-length: 2000\r\nexpect: 100-continue\r\n\r\n{";
        let Parsed::Request(request, end) = parse(text.as_bytes(), 1024, None) else { panic!() };
        assert_eq!((end, request.body, request.body_bytes), (text.len() - 1, &b""[..], Some(2000)));
        assert!(!request.is_whole() && request.expects_continue);
    }

    #[test]
    fn a_chunked_body_is_decoded_however_it_arrives() {
        let text = b"5\r\nhello\r\n1;name=value\r\n,\r\n00a \r\n chunked\r\n\r\n0\r\nTrailer: x\r\n\r\nGET";
        for piece in 1..text.len() {
            let (mut decoder, mut content, mut rest) = (ChunkDecoder::default(), Vec::new(), Vec::new());
            for bytes in text.chunks(piece) {
                let mut bytes = bytes.to_vec();
                let (len, taken) = decoder.decode(&mut bytes).unwrap();
                rest.extend_from_slice(&bytes[taken..]);
                content.extend_from_slice(&bytes[..len]);
            }
            assert!(decoder.is_done());
            assert_eq!((content.as_slice(), rest.as_slice()), (&b"hello, chunked\r\n"[..], &b"GET"[..]));
        }
        let long_extension = format!("1;{}\r\n", "x".repeat(EXTENSION_BYTES_MAX + 1));
        let long_trailer = format!("0\r\n{}", "a: b\r\n".repeat(TRAILER_BYTES_MAX / 4));
        for (wrong, status) in [
            ("\r\n", Status::BadRequest),
            ("x\r\n", Status::BadRequest),
            ("-1\r\n", Status::BadRequest),
            ("1\nx\n", Status::BadRequest),
            ("1\r\nxy", Status::BadRequest),
            ("1\r\nx\n", Status::BadRequest),
            ("0\r\n\n", Status::BadRequest),
            ("1;\n", Status::BadRequest),
            ("1 2\r\n", Status::BadRequest),
            ("1 \n", Status::BadRequest),
            ("1;a=\0\r\n", Status::BadRequest),
            ("0\r\nGET / HTTP/1.1\r\n\r\n", Status::BadRequest),
            ("0\r\nA: \0\r\n\r\n", Status::BadRequest),
            ("0\r\n A: b\r\n\r\n", Status::BadRequest),
            ("0\r\n: b\r\n\r\n", Status::BadRequest),
            ("123456789\r\n", Status::TooLarge),
            (&long_extension, Status::BadRequest),
            (&long_trailer, Status::BadRequest),
        ] {
            assert_eq!(
                ChunkDecoder::default().decode(&mut wrong.as_bytes().to_vec()),
                Err(status),
                "{wrong:?}"
            );
        }
    }

    #[test]
    fn the_host_of_an_absolute_target_replaces_the_header() {
        let parsed = |target: &str| {
            let text = format!("GET {target} HTTP/1.1\r\nHost: own\r\n\r\n");
            match parse(text.as_bytes(), 1024, None) {
                Parsed::Request(request, _) => {
                    let segments: Vec<String> = request.segments.iter().map(ToString::to_string).collect();
                    (request.origin.host.map(str::to_string), segments.join("/"), request.query.to_string())
                }
                _ => (None, "refused".to_string(), String::new()),
            }
        };
        let (own, other) = (Some("own".to_string()), Some("evil:1".to_string()));
        assert_eq!(parsed("/api/x?y=z"), (own.clone(), "api/x".into(), "y=z".into()));
        assert_eq!(parsed("http://evil:1/api/x?y=z"), (other.clone(), "api/x".into(), "y=z".into()));
        assert_eq!(parsed("HTTPS://evil:1"), (other, String::new(), String::new()));
        assert_eq!(parsed("http://evil:1?y=z"), (None, "refused".into(), String::new()));
        assert_eq!(parsed("*"), (own, String::new(), String::new()));
        for wrong in ["ftp://evil/", "evil:1", "http:///x", "http://user@evil/x", "api/x"] {
            assert_eq!(parsed(wrong).1, "refused", "{wrong}");
        }
    }

    #[test]
    fn encoding_is_reversible() {
        for text in ["/", "a b", "é%2F", "", "<leveret.1.2.0>"] {
            assert_eq!(decode(&encode(text)).unwrap(), text);
        }
    }

    #[test]
    fn chunks_begin_with_their_length() {
        let mut out = Vec::new();
        begin(&mut out, Head::json(Status::Ok), None);
        out.clear();
        let at = open_chunk(&mut out);
        close_chunk(&mut out, at);
        assert!(out.is_empty());
        let at = open_chunk(&mut out);
        out.extend_from_slice(b"hello");
        close_chunk(&mut out, at);
        end_chunks(&mut out);
        assert_eq!(out, b"00000005\r\nhello\r\n0\r\n\r\n");
    }
}
