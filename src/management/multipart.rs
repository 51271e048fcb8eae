//! The file in a form that a browser or `curl -F file=@defs.json` sends (`multipart/form-data`), and where the browser
//! goes on afterwards (`-F redirect=ADDRESS`).
//!
//! # Invariants
//! - A step looks at a bounded number of bytes; the number of parts and the head of each are bounded.

use leveret_core::mem::Messages;

use super::spool::Spool;

/// Bytes that one step looks at.
const BYTES_PER_STEP: usize = 64 << 10;
/// The longest head of a part, in bytes.
const HEAD_BYTES_MAX: usize = 4 << 10;
/// The longest boundary, in bytes: that of RFC 2046.
const BOUNDARY_BYTES_MAX: usize = 70;
/// The longest address in a part named `redirect`, in bytes.
const REDIRECT_BYTES_MAX: usize = 1024;

/// The most parts of a form.
const PARTS_MAX: usize = 64;

/// Finds the parts named `file` and `redirect`.
#[derive(Debug)]
pub(super) struct Form {
    /// What stands before each part: a line end, two dashes and the boundary.
    delimiter: Vec<u8>,
    /// Where the search goes on.
    at: usize,
    /// Where the content of the part begins that the search is in, and the part's name if it matters.
    part: Option<(usize, Option<Name>)>,
    part_count: usize,
    found: Found,
}

/// The names that matter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Name {
    File,
    Redirect,
}

/// What was found in a form.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Found {
    /// Where the file begins and ends; `None`: there is none.
    pub(super) file: Option<(usize, usize)>,
    /// Where the client goes on once the file is imported.
    pub(super) redirect: Option<String>,
}

impl Form {
    /// Reads a `Content-Type`; `None`: it is no form.
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

    /// Goes on; returns what was found once the form ends.
    ///
    /// # Errors
    /// There is no part named `file`, or the one named `redirect` is no address.
    pub(super) fn step(&mut self, body: &Spool, messages: &Messages) -> Result<Option<Found>, String> {
        let mut bytes = vec![0; BYTES_PER_STEP];
        let count = read(body, messages, self.at, &mut bytes);
        let bytes = &bytes[..count];
        let needle = match self.at {
            // The first delimiter has no line before it that would end.
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

/// Reads the content of a part named `redirect`. An empty one is as good as none.
fn address_of(bytes: Vec<u8>) -> Result<Option<String>, String> {
    if bytes.len() > REDIRECT_BYTES_MAX {
        return Err(format!("the form's part `redirect` may have at most {REDIRECT_BYTES_MAX} bytes"));
    }
    match String::from_utf8(bytes) {
        Ok(address) if address.bytes().all(|byte| byte.is_ascii_graphic()) => {
            Ok(Some(address).filter(|address| !address.is_empty()))
        }
        _ => Err("the form's part `redirect` must be an address: visible ASCII without spaces".to_string()),
    }
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
