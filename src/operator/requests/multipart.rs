//! The file in a form that a browser or `curl -F file=@defs.json` sends (`multipart/form-data`).
//!
//! # Invariants
//! - A step looks at a bounded number of bytes, and the head of a part is bounded.

use crate::mem::Messages;

use super::spool::Spool;

/// Bytes that one step looks at.
const BYTES_PER_STEP: usize = 64 << 10;
/// The longest head of a part, in bytes.
const HEAD_BYTES_MAX: usize = 4 << 10;
/// The longest boundary, in bytes: that of RFC 2046.
const BOUNDARY_BYTES_MAX: usize = 70;

/// Finds the part named `file`.
#[derive(Debug)]
pub(super) struct Form {
    /// What stands before each part: a line end, two dashes and the boundary.
    delimiter: Vec<u8>,
    /// Where the search goes on.
    at: usize,
    /// Where the content of the part begins that the search is in, and whether it is the file.
    part: Option<(usize, bool)>,
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
        is_one.then(|| Self { delimiter: format!("\r\n--{boundary}").into_bytes(), at: 0, part: None })
    }

    /// Goes on; returns where the file begins and ends, once it is found.
    ///
    /// # Errors
    /// There is no such part.
    pub(super) fn step(
        &mut self,
        body: &Spool,
        messages: &Messages,
    ) -> Result<Option<(usize, usize)>, String> {
        let none = || "the form has no part named `file`".to_string();
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
                return Err(none());
            }
            self.at += count + 1 - needle.len();
            return Ok(None);
        };
        let delimiter_at = self.at + found;
        if let Some((begin, true)) = self.part {
            return Ok(Some((begin, delimiter_at)));
        }
        let head_at = delimiter_at + needle.len();
        let mut head = vec![0; HEAD_BYTES_MAX];
        let count = read(body, messages, head_at, &mut head);
        let end = head[..count].windows(4).position(|part| part == b"\r\n\r\n").ok_or_else(none)?;
        let is_file = is_named_file(&String::from_utf8_lossy(&head[..end]));
        let begin = head_at + end + 4;
        // The line end before the next delimiter may be that of an empty part's head.
        (self.part, self.at) = (Some((begin, is_file)), begin.saturating_sub(2).max(1));
        Ok(None)
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

fn is_named_file(head: &str) -> bool {
    let lines = head.split("\r\n").filter_map(|line| line.split_once(':'));
    let mut dispositions = lines.filter(|(name, _)| name.trim().eq_ignore_ascii_case("content-disposition"));
    dispositions.any(|(_, value)| {
        value.split(';').filter_map(|part| part.split_once('=')).any(|(name, value)| {
            name.trim().eq_ignore_ascii_case("name") && value.trim().trim_matches('"') == "file"
        })
    })
}
