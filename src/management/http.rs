//! Requests out of bytes, and answers into bytes: as much of HTTP/1.1 as operators' tools speak.
//!
//! Always true: a request is whole or not there; what is larger than the buffer, or unclear about where it
//! ends, is refused and the connection closed, so nothing can hide behind a request; a path's segments are
//! UTF-8.

use std::borrow::Cow;
use std::io::Write;

use leveret_core::password::Secret;

/// The longest request, head and body, in bytes, but for those whose body is taken in parts.
pub const REQUEST_BYTES_MAX: usize = 64 << 10;
/// Headers of a request at most.
const HEADERS_MAX: usize = 32;
/// Segments of a path at most.
const SEGMENTS_MAX: usize = 9;

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verb {
    /// Show something.
    Get,
    /// Make something, or change it.
    Put,
    /// Do something.
    Post,
    /// Take something away.
    Delete,
}

/// Whether the thing to change must exist.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Condition {
    /// It may exist or not.
    #[default]
    None,
    /// It must be there (`If-Match: *`).
    Exists,
    /// It must not be there yet (`If-None-Match: *`).
    IsNew,
}

/// One request.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// What is asked for.
    pub verb: Verb,
    /// The path's segments, decoded.
    pub segments: heapless::Vec<Cow<'a, str>, SEGMENTS_MAX>,
    /// What stands behind the question mark.
    pub query: &'a str,
    /// The request's body; empty when it has none, or is too long to stand beside its head.
    pub body: &'a [u8],
    /// `Content-Type`; empty when it is not said.
    pub media: &'a str,
    /// The length of the body that the head announces.
    pub body_bytes: usize,
    /// The client sends the body only after it hears that it may (`Expect: 100-continue`).
    pub awaits_word: bool,
    /// Whether the thing must exist.
    pub condition: Condition,
    /// The client closes behind the answer, or wants us to.
    pub is_last: bool,
    /// Only what stands above the answer is wanted (`HEAD`).
    pub is_head: bool,
    /// Who asks, and from where, as far as it says so.
    pub origin: Origin<'a>,
}

/// What a request says of who asks.
#[derive(Clone, Copy, Default, Debug)]
pub struct Origin<'a> {
    /// `Authorization`.
    pub authorization: Option<Secret<'a>>,
    /// `Host`: the name that it knows us by.
    pub host: Option<&'a str>,
    /// `Origin`: the page whose script asks.
    pub page: Option<&'a str>,
    /// `Sec-Fetch-Site`: how that page is related to us.
    pub fetch_site: Option<&'a str>,
    /// `If-None-Match`: the copy that it has.
    pub has_copy: Option<&'a str>,
    /// A script asks, which shows a refusal itself.
    pub is_script: bool,
}

impl<'a> Origin<'a> {
    /// The token that it came with instead of a password.
    pub fn token(&self) -> Option<&'a [u8]> {
        let (scheme, token) = self.authorization?.0.trim_ascii().split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
    }
}

/// What the bytes are.
#[derive(Clone, Debug)]
pub enum Parsed<'a> {
    /// The beginning of what stands above a request's body.
    NeedMore,
    /// All of that, and not all of the body.
    NeedBody {
        /// Bytes of the whole request.
        end: usize,
        /// It comes only when the client hears that it may (`Expect: 100-continue`).
        awaits_word: bool,
    },
    /// A request, and how many bytes it takes: without its body if it is too long for both.
    Request(Request<'a>, usize),
    /// Nothing that can be answered but with this status.
    Refused(Status),
}

/// How an answer begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum Status {
    /// What was asked for follows.
    Ok = 200,
    /// What was put exists now, and did not before.
    Created = 201,
    /// The request was carried out, and there is nothing to show.
    NoContent = 204,
    /// The request was carried out, and the client goes on elsewhere.
    SeeOther = 303,
    /// The request makes no sense.
    BadRequest = 400,
    /// The copy that the client has is good.
    NotModified = 304,
    /// What the request proves is not enough.
    Unauthorized = 401,
    /// It may not ask for this, whoever it is.
    Forbidden = 403,
    /// There is no such thing.
    NotFound = 404,
    /// The resource exists and does not take this method.
    MethodNotAllowed = 405,
    /// It is there, or is not, against the condition.
    PreconditionFailed = 412,
    /// The request is longer than one may be.
    TooLarge = 413,
    /// We did not understand a header that matters.
    NotImplemented = 501,
    /// The broker cannot do it now; later it may.
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
            Self::NotImplemented => "Not Implemented",
            Self::Unavailable => "Service Unavailable",
        }
    }
}

impl Request<'_> {
    /// Whether the body is here.
    pub const fn is_whole(&self) -> bool {
        self.body.len() == self.body_bytes
    }

    /// The value of a key in the query, not decoded further.
    pub fn asked(&self, key: &str) -> Option<&str> {
        self.query
            .split('&')
            .find_map(|pair| pair.split_once('=').filter(|(name, _)| *name == key))
            .map(|p| p.1)
    }

    /// Whether the query says `key=true`.
    pub fn says(&self, key: &str) -> bool {
        self.asked(key) == Some("true")
    }
}

/// Reads the request at the start of `bytes`, of which there are never more than `bytes_max`.
pub fn parse(bytes: &[u8], bytes_max: usize) -> Parsed<'_> {
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
    let told = match Told::of(head.headers) {
        Ok(told) => told,
        Err(status) => return Parsed::Refused(status),
    };
    let whole = head_len.checked_add(told.body_len).filter(|end| *end <= bytes_max);
    let end = whole.unwrap_or(head_len);
    let Some(body) = bytes.get(head_len..end) else {
        return Parsed::NeedBody { end, awaits_word: told.awaits_word };
    };
    let verb = match method {
        "GET" | "HEAD" => Verb::Get,
        "PUT" => Verb::Put,
        "POST" => Verb::Post,
        "DELETE" => Verb::Delete,
        _ => return Parsed::Refused(Status::MethodNotAllowed),
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let Some(segments) = segments(path) else { return Parsed::Refused(Status::BadRequest) };
    let is_last = told.closes || version == 0;
    let is_head = method == "HEAD";
    let Told { body_len: body_bytes, media, condition, awaits_word, origin, .. } = told;
    let request = Request {
        verb,
        segments,
        query,
        body,
        media,
        body_bytes,
        awaits_word,
        condition,
        is_last,
        is_head,
        origin,
    };
    Parsed::Request(request, end)
}

/// What the headers say that matters.
#[derive(Default)]
struct Told<'a> {
    body_len: usize,
    media: &'a str,
    condition: Condition,
    closes: bool,
    awaits_word: bool,
    origin: Origin<'a>,
}

impl<'a> Told<'a> {
    fn of(headers: &[httparse::Header<'a>]) -> Result<Self, Status> {
        let mut told = Self::default();
        let mut has_length = false;
        for header in headers {
            let value = core::str::from_utf8(header.value).unwrap_or("").trim();
            match header.name {
                name if name.eq_ignore_ascii_case("content-length") => {
                    // Two lengths, or a sign before one, mean different things to different readers.
                    let is_number = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
                    if core::mem::replace(&mut has_length, true) || !is_number {
                        return Err(Status::BadRequest);
                    }
                    told.body_len = value.parse().map_err(|_| Status::TooLarge)?;
                }
                name if name.eq_ignore_ascii_case("transfer-encoding") => return Err(Status::NotImplemented),
                name if name.eq_ignore_ascii_case("if-match") => told.condition = Condition::Exists,
                name if name.eq_ignore_ascii_case("if-none-match") => {
                    told.condition = Condition::IsNew;
                    told.origin.has_copy = Some(value);
                }
                name if name.eq_ignore_ascii_case("connection") => {
                    told.closes |= value.split(',').any(|word| word.trim().eq_ignore_ascii_case("close"));
                }
                name if name.eq_ignore_ascii_case("expect") => {
                    told.awaits_word = value.eq_ignore_ascii_case("100-continue");
                }
                name if name.eq_ignore_ascii_case("content-type") => told.media = value,
                name if name.eq_ignore_ascii_case("host") => once(&mut told.origin.host, value)?,
                name if name.eq_ignore_ascii_case("authorization") => {
                    once(&mut told.origin.authorization, Secret(header.value))?;
                }
                name if name.eq_ignore_ascii_case("origin") => once(&mut told.origin.page, value)?,
                name if name.eq_ignore_ascii_case("sec-fetch-site") => {
                    once(&mut told.origin.fetch_site, value)?;
                }
                name if name.eq_ignore_ascii_case("x-requested-with") => told.origin.is_script = true,
                _ => {}
            }
        }
        Ok(told)
    }
}

/// Keeps what may be said once: whoever reads the other of two would take the client for somebody else.
fn once<T>(slot: &mut Option<T>, value: T) -> Result<(), Status> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(Status::BadRequest),
    }
}

fn segments(path: &str) -> Option<heapless::Vec<Cow<'_, str>, SEGMENTS_MAX>> {
    let mut segments = heapless::Vec::new();
    for segment in path.strip_prefix('/')?.split('/') {
        segments.push(decode(segment)?).ok()?;
    }
    Some(segments)
}

/// `%2F` and its like decoded; `None` for half an escape, or when the result is no text.
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

/// The other way round: everything but letters, digits and a few signs becomes an escape.
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

/// What stands above a body besides its length.
#[derive(Clone, Copy, Debug)]
pub struct Head<'h> {
    /// How it begins.
    pub status: Status,
    /// Its media type.
    pub media: &'static str,
    /// Further lines, each with its end.
    pub more: &'h str,
    /// What tells this body from others of its path.
    pub tag: Option<u64>,
}

impl Head<'_> {
    /// Of JSON for programs of the operator.
    pub const fn json(status: Status) -> Self {
        Self { status, media: JSON, more: "cache-control: no-cache\r\n", tag: None }
    }
}

/// The media type of JSON.
pub const JSON: &str = "application/json";

/// Begins an answer whose body has so many bytes, or as many as come in chunks.
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

/// Says that the body of a request may come.
pub fn ask_for_body(out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
}

/// Bytes around a chunk: the longest length in hexadecimal digits, and two line ends.
pub const CHUNK_OVERHEAD_BYTES: usize = CHUNK_HEAD_BYTES + 2;
const CHUNK_HEAD_BYTES: usize = 10;

/// Makes room for the head of a chunk; returns where it is.
pub fn open_chunk(out: &mut Vec<u8>) -> usize {
    let at = out.len();
    out.extend_from_slice(&[b'0'; CHUNK_HEAD_BYTES]);
    at
}

/// What stands behind `at` is a chunk now; an empty one would end the answer, so there is none then.
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

/// Ends an answer in chunks.
pub fn end_chunks(out: &mut Vec<u8>) {
    out.extend_from_slice(b"0\r\n\r\n");
}

fn put(out: &mut Vec<u8>, text: core::fmt::Arguments<'_>) {
    // A Vec takes everything.
    let _ = out.write_fmt(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> Option<Status> {
        match parse(text.as_bytes(), 1024) {
            Parsed::Refused(status) => Some(status),
            _ => None,
        }
    }

    #[test]
    fn a_request_is_whole_or_not_there() {
        let text = "PUT /api/queues/%2F/a%20b?if-empty=true&x=1 HTTP/1.1\r\ncontent-length: 3\r\n\
                    if-match: *\r\n\r\nabcGET / HTTP/1.1\r\n\r\n";
        let whole = text.find("GET").unwrap();
        for end in 0..whole {
            let parsed = parse(&text.as_bytes()[..end], 1024);
            assert!(matches!(parsed, Parsed::NeedMore | Parsed::NeedBody { .. }), "{end}");
        }
        let Parsed::Request(request, end) = parse(text.as_bytes(), 1024) else { panic!() };
        assert_eq!((end, request.verb, request.condition), (whole, Verb::Put, Condition::Exists));
        assert_eq!(request.segments, ["api", "queues", "/", "a b"]);
        assert_eq!((request.body, request.asked("x")), (&b"abc"[..], Some("1")));
        assert!(request.says("if-empty"));
        assert!(!request.is_last && !request.says("if"));
    }

    #[test]
    fn what_is_unclear_about_its_end_is_refused() {
        for (header, status) in [
            ("content-length: 3\r\nContent-Length: 3", Status::BadRequest),
            ("content-length: +3", Status::BadRequest),
            ("content-length:", Status::BadRequest),
            ("content-length: 3, 3", Status::BadRequest),
            ("content-length: 99999999999999999999999", Status::TooLarge),
            ("transfer-encoding: chunked", Status::NotImplemented),
        ] {
            assert_eq!(refused(&format!("PUT / HTTP/1.1\r\n{header}\r\n\r\n")), Some(status), "{header}");
        }
        assert_eq!(refused(&format!("GET /{} HTTP/1.1\r\n", "a".repeat(1024))), Some(Status::TooLarge));
        assert_eq!(refused("GET /%F HTTP/1.1\r\n\r\n"), Some(Status::BadRequest));
        assert_eq!(refused("GET /%FF HTTP/1.1\r\n\r\n"), Some(Status::BadRequest));
        assert_eq!(refused("GET /a/b/c/d/e/f/g/h/i/j HTTP/1.1\r\n\r\n"), Some(Status::BadRequest));
        assert_eq!(refused("BREW / HTTP/1.1\r\n\r\n"), Some(Status::MethodNotAllowed));
        assert_eq!(refused("AMQP\0\0\x09\x01"), Some(Status::BadRequest));
    }

    #[test]
    fn a_request_with_a_long_body_is_there_as_soon_as_its_head_is() {
        let text = "POST /api/definitions HTTP/1.1\r\ncontent-length: 2000\r\nexpect: 100-continue\r\n\r\n{";
        let Parsed::Request(request, end) = parse(text.as_bytes(), 1024) else { panic!() };
        assert_eq!((end, request.body, request.body_bytes), (text.len() - 1, &b""[..], 2000));
        assert!(!request.is_whole() && request.awaits_word);
    }

    #[test]
    fn encoding_reads_back() {
        for text in ["/", "a b", "é%2F", "", "<leveret.1.2.0>"] {
            assert_eq!(decode(&encode(text)).unwrap(), text);
        }
    }

    #[test]
    fn chunks_say_how_long_they_are() {
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
