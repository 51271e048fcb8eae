//! Stores a request body that is longer than a request buffer in the message pool, and finds the file in a multipart
//! form.
//!
//! # Invariants
//! - A piece has at most [`PIECE_BYTES`], so that a step that handles one piece is bounded.
//! - Pool memory is taken as the body arrives, never for bytes that were only announced.
//! - The owner calls [`Spool::release`]: a spool that is dropped would keep its pool memory.
//! - A step on a form examines a bounded number of bytes. The number of parts and the head of each are bounded.

use leveret_core::mem::{MessageFlags, MessageId, Messages, PoolFull, Share};
use zeroize::Zeroizing;

/// The longest piece in bytes: a multiple of four, so that base64 is decoded piece by piece.
pub(super) const PIECE_BYTES: usize = 64 << 10;

#[derive(Debug)]
enum Piece {
    /// A short body, in the memory of the request buffer.
    Buffered(Zeroizing<Vec<u8>>),
    /// A message that only the spool holds, and the number of bytes in it.
    Pooled(MessageId, usize),
}

/// The bytes of one body.
#[derive(Debug, Default)]
pub(super) struct Spool {
    pieces: Vec<Piece>,
    len: usize,
}

impl Spool {
    /// Keeps a body that fits a request buffer.
    pub(super) fn buffered(body: &[u8]) -> Self {
        debug_assert!(body.len() <= PIECE_BYTES, "a request buffer holds no more");
        Self { pieces: vec![Piece::Buffered(Zeroizing::new(body.to_vec()))], len: body.len() }
    }

    /// Returns the number of bytes.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Returns the number of pieces.
    pub(super) fn pieces(&self) -> usize {
        self.pieces.len()
    }

    /// Appends bytes. At most `expected` bytes are still to come, including these.
    ///
    /// # Errors
    /// The pool is full; what was appended before stays.
    pub(super) fn push(
        &mut self,
        messages: &mut Messages,
        share: Share,
        mut bytes: &[u8],
        mut expected: usize,
    ) -> Result<(), PoolFull> {
        while !bytes.is_empty() {
            let room = match self.pieces.last() {
                Some(Piece::Pooled(id, _)) => messages.body_missing(*id) as usize,
                Some(Piece::Buffered(_)) | None => 0,
            };
            if room == 0 {
                let piece =
                    begin(messages, share, expected.clamp(bytes.len().min(PIECE_BYTES), PIECE_BYTES))?;
                self.pieces.push(Piece::Pooled(piece, 0));
            } else if let Some(Piece::Pooled(id, filled)) = self.pieces.last_mut() {
                let (now, later) = bytes.split_at(room.min(bytes.len()));
                messages.append_body(*id, now);
                *filled += now.len();
                (self.len, expected) = (self.len + now.len(), expected.saturating_sub(now.len()));
                bytes = later;
            }
        }
        Ok(())
    }

    /// Returns a copy of a piece.
    pub(super) fn piece(&self, messages: &Messages, number: usize) -> Zeroizing<Vec<u8>> {
        match self.pieces.get(number) {
            Some(Piece::Buffered(bytes)) => bytes.clone(),
            Some(Piece::Pooled(id, filled)) => {
                let mut bytes = Zeroizing::new(vec![0; *filled]);
                messages.read(*id, &mut messages.body_cursor(*id, 0), &mut bytes);
                bytes
            }
            None => Zeroizing::default(),
        }
    }

    /// Copies bytes from an offset on, at most up to the end of a piece, and returns how many. Only while
    /// every piece but the last is full.
    pub(super) fn read(&self, messages: &Messages, offset: usize, out: &mut [u8]) -> usize {
        let at = offset % PIECE_BYTES;
        match self.pieces.get(offset / PIECE_BYTES) {
            Some(Piece::Buffered(bytes)) => {
                let rest = bytes.get(at..).unwrap_or_default();
                let count = rest.len().min(out.len());
                out[..count].copy_from_slice(&rest[..count]);
                count
            }
            Some(Piece::Pooled(id, filled)) => {
                let count = filled.saturating_sub(at).min(out.len());
                messages.read(*id, &mut messages.body_cursor(*id, at as u32), &mut out[..count]);
                count
            }
            None => 0,
        }
    }

    /// Replaces a piece by bytes that are not longer.
    ///
    /// # Errors
    /// The pool is full; the piece has been freed.
    pub(super) fn replace(
        &mut self,
        messages: &mut Messages,
        share: Share,
        number: usize,
        bytes: &[u8],
    ) -> Result<(), PoolFull> {
        self.free(messages, number);
        let id = begin(messages, share, bytes.len())?;
        messages.append_body(id, bytes);
        self.len += bytes.len();
        match self.pieces.get_mut(number) {
            Some(piece) => *piece = Piece::Pooled(id, bytes.len()),
            None => messages.release(id),
        }
        Ok(())
    }

    /// Frees a piece; those behind it keep their numbers.
    pub(super) fn free(&mut self, messages: &mut Messages, number: usize) {
        let Some(piece) = self.pieces.get_mut(number) else { return };
        match core::mem::replace(piece, Piece::Buffered(Zeroizing::default())) {
            Piece::Pooled(id, filled) => {
                self.len -= filled;
                messages.release(id);
            }
            Piece::Buffered(bytes) => self.len -= bytes.len(),
        }
    }

    /// Frees everything.
    pub(super) fn release(&mut self, messages: &mut Messages) {
        (0..self.pieces.len()).for_each(|number| self.free(messages, number));
        self.pieces.clear();
    }
}

fn begin(messages: &mut Messages, share: Share, bytes: usize) -> Result<MessageId, PoolFull> {
    let id = messages.begin("", b"", share)?;
    // A piece is far below 4 GiB.
    if let Err(full) = messages.reserve_whole(id, &[], MessageFlags::NONE, bytes as u32, share) {
        messages.discard(id);
        return Err(full);
    }
    Ok(id)
}

/// Bytes that one step examines.
const BYTES_PER_STEP: usize = 64 << 10;
/// The longest head of a part, in bytes.
const HEAD_BYTES_MAX: usize = 4 << 10;
/// The longest boundary, in bytes, as in RFC 2046.
const BOUNDARY_BYTES_MAX: usize = 70;
/// The longest address in a part named `redirect`, in bytes.
const REDIRECT_BYTES_MAX: usize = 1024;

/// The most parts of a form.
const PARTS_MAX: usize = 64;

/// Finds the parts named `file` and `redirect` of a form (`multipart/form-data`).
///
/// Browsers and `curl -F file=@defs.json` send such forms. `redirect` (`-F redirect=ADDRESS`) is the address to which
/// the browser goes on afterwards.
#[derive(Debug)]
pub(super) struct Form {
    /// The bytes before each part: a line end, two dashes and the boundary.
    delimiter: Vec<u8>,
    /// Where the search goes on.
    at: usize,
    /// The start of the content of the current part, and the part's name if it is one of [`Name`].
    part: Option<(usize, Option<Name>)>,
    part_count: usize,
    found: Found,
}

/// The names of relevant parts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Name {
    File,
    Redirect,
}

/// The result of parsing a form.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Found {
    /// The start and end of the file. `None`: there is none.
    pub(super) file: Option<(usize, usize)>,
    /// The address to redirect the client to once the file is imported.
    pub(super) redirect: Option<String>,
}

impl Form {
    /// Creates a parser from a `Content-Type`. Returns `None` if it is not a form.
    pub(super) fn of(media: &str) -> Option<Self> {
        let mut parts = media.split(';').map(str::trim);
        if !parts.next()?.eq_ignore_ascii_case("multipart/form-data") {
            return None;
        }
        let boundary = parts.find_map(|part| {
            let (name, value) = part.split_once('=')?;
            name.trim().eq_ignore_ascii_case("boundary").then(|| value.trim().trim_matches('"'))
        })?;
        let is_one = (1..=BOUNDARY_BYTES_MAX).contains(&boundary.len());
        let delimiter = format!("\r\n--{boundary}").into_bytes();
        is_one.then(|| Self { delimiter, at: 0, part: None, part_count: 0, found: Found::default() })
    }

    /// Continues. Returns the result once the form ends.
    ///
    /// # Errors
    /// There is no part named `file`, or the part named `redirect` is not an address.
    pub(super) fn step(&mut self, body: &Spool, messages: &Messages) -> Result<Option<Found>, String> {
        let mut bytes = vec![0; BYTES_PER_STEP];
        let count = read(body, messages, self.at, &mut bytes);
        let bytes = &bytes[..count];
        let needle = match self.at {
            // The first delimiter has no line end before it.
            0 => &self.delimiter[2..],
            _ => &*self.delimiter,
        };
        let Some(found) = bytes.windows(needle.len()).position(|part| part == needle) else {
            if count < BYTES_PER_STEP {
                return self.end();
            }
            self.at += count + 1 - needle.len();
            return Ok(None);
        };
        let delimiter_at = self.at + found;
        let head_at = delimiter_at + needle.len();
        match self.part.take() {
            Some((begin, Some(Name::File))) => {
                self.found.file.get_or_insert((begin, delimiter_at));
            }
            Some((begin, Some(Name::Redirect))) => {
                let mut address = vec![0; delimiter_at.saturating_sub(begin).min(REDIRECT_BYTES_MAX + 1)];
                read(body, messages, begin, &mut address);
                self.found.redirect = address_of(address)?;
            }
            _ => {}
        }
        let mut head = vec![0; HEAD_BYTES_MAX];
        let count = read(body, messages, head_at, &mut head);
        let end = head[..count].windows(4).position(|part| part == b"\r\n\r\n");
        let Some(end) = end.filter(|_| !head.starts_with(b"--")) else { return self.end() };
        self.part_count += 1;
        if self.part_count > PARTS_MAX {
            return Err(format!("the form may have at most {PARTS_MAX} parts"));
        }
        let begin = head_at + end + 4;
        let name = name_of(&String::from_utf8_lossy(&head[..end]));
        // The line end before the next delimiter may be that of an empty part's head.
        (self.part, self.at) = (Some((begin, name)), begin.saturating_sub(2).max(1));
        Ok(None)
    }

    fn end(&mut self) -> Result<Option<Found>, String> {
        match self.found.file {
            Some(_) => Ok(Some(core::mem::take(&mut self.found))),
            None => Err("the form has no part named `file`".to_string()),
        }
    }
}

/// Reads the content of a part named `redirect`. An empty one is treated as absent.
///
/// Only paths of this broker are taken. Otherwise a link to a form could lead a user on to any other site, under the
/// broker's name.
fn address_of(bytes: Vec<u8>) -> Result<Option<String>, String> {
    if bytes.len() > REDIRECT_BYTES_MAX {
        return Err(format!("the form's part `redirect` may have at most {REDIRECT_BYTES_MAX} bytes"));
    }
    match String::from_utf8(bytes) {
        Ok(address) if is_local(&address) => Ok(Some(address).filter(|address| !address.is_empty())),
        _ => {
            let why = "the form's part `redirect` must be a path of this broker: visible ASCII without spaces, a \
                       scheme or a host";
            Err(why.to_string())
        }
    }
}

/// Returns whether a browser would stay at this broker. Browsers take `\` for `/`.
fn is_local(address: &str) -> bool {
    let path = address.split(['?', '#']).next().unwrap_or_default();
    let first = path.split('/').next().unwrap_or_default();
    address.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\')
        && !path.starts_with("//")
        && !first.contains(':')
}

/// Reads on over the ends of pieces.
fn read(body: &Spool, messages: &Messages, at: usize, out: &mut [u8]) -> usize {
    let mut done = 0;
    while done < out.len() {
        match body.read(messages, at + done, &mut out[done..]) {
            0 => break,
            count => done += count,
        }
    }
    done
}

fn name_of(head: &str) -> Option<Name> {
    let lines = head.split("\r\n").filter_map(|line| line.split_once(':'));
    let mut dispositions = lines.filter(|(name, _)| name.trim().eq_ignore_ascii_case("content-disposition"));
    dispositions.find_map(|(_, value)| {
        let mut fields = value.split(';').filter_map(|part| part.split_once('='));
        let (_, name) = fields.find(|(key, _)| key.trim().eq_ignore_ascii_case("name"))?;
        match name.trim().trim_matches('"') {
            "file" => Some(Name::File),
            "redirect" => Some(Name::Redirect),
            _ => None,
        }
    })
}
