//! Bounded cursors for reading and writing MQTT's primitive types (§1.5).
//!
//! # Invariants
//! - A cursor never reads or writes outside of the slice it was given.
//! - A read or write that fails changes nothing.

use super::reason::PacketError;

/// Maximum value of a variable byte integer (§1.5.5): four octets with seven bits each.
pub const VARIABLE_INT_MAX: u32 = (1 << 28) - 1;

/// A bounded cursor over received bytes. Numbers are big-endian.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// Reads `len` octets.
    #[inline]
    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], PacketError> {
        let (head, tail) = self.bytes.split_at_checked(len).ok_or(TRUNCATED)?;
        self.bytes = tail;
        Ok(head)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], PacketError> {
        let (head, tail) = self.bytes.split_first_chunk::<N>().ok_or(TRUNCATED)?;
        self.bytes = tail;
        Ok(*head)
    }

    /// Reads an octet.
    #[inline]
    pub(crate) fn u8(&mut self) -> Result<u8, PacketError> {
        self.array::<1>().map(|[octet]| octet)
    }

    /// Reads a two byte integer (§1.5.2).
    #[inline]
    pub(crate) fn u16(&mut self) -> Result<u16, PacketError> {
        self.array().map(u16::from_be_bytes)
    }

    /// Reads a four byte integer (§1.5.3).
    #[inline]
    pub(crate) fn u32(&mut self) -> Result<u32, PacketError> {
        self.array().map(u32::from_be_bytes)
    }

    /// Reads a variable byte integer (§1.5.5). It must have as few octets as possible (MQTT-1.5.5-1).
    pub(crate) fn variable_int(&mut self) -> Result<u32, PacketError> {
        match variable_int(self.bytes)? {
            None => Err(TRUNCATED),
            Some((_, _, false)) => Err(PacketError::malformed("a length with more octets than necessary")),
            Some((value, len, true)) => {
                self.bytes = &self.bytes[len..];
                Ok(value)
            }
        }
    }

    /// Reads binary data (§1.5.6): a two byte length, and so many octets.
    #[inline]
    pub(crate) fn binary(&mut self) -> Result<&'a [u8], PacketError> {
        let mut ahead = *self;
        let len = ahead.u16()?;
        let octets = ahead.take(usize::from(len))?;
        *self = ahead;
        Ok(octets)
    }

    /// Reads a UTF-8 string (§1.5.4), which must not contain U+0000 (MQTT-1.5.4-1, MQTT-1.5.4-2).
    #[inline]
    pub(crate) fn string(&mut self) -> Result<&'a str, PacketError> {
        let mut ahead = *self;
        let octets = ahead.binary()?;
        let text =
            core::str::from_utf8(octets).map_err(|_| PacketError::malformed("a string that is not UTF-8"))?;
        if octets.contains(&0) {
            return Err(PacketError::malformed("a string with the character U+0000"));
        }
        *self = ahead;
        Ok(text)
    }

    /// Returns the number of octets that have not been read yet.
    #[inline]
    pub(crate) const fn len(&self) -> usize {
        self.bytes.len()
    }

    #[inline]
    pub(crate) const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Ends reading. Octets that have not been read are an error.
    #[inline]
    pub(crate) fn finish(self) -> Result<(), PacketError> {
        if self.is_empty() { Ok(()) } else { Err(PacketError::malformed("octets after the last field")) }
    }
}

pub(crate) const TRUNCATED: PacketError =
    PacketError::malformed("a field reaches beyond the end of the packet");

/// Returns `None` if octets are missing at the end.
pub(crate) fn unless_truncated<T>(result: Result<T, PacketError>) -> Result<Option<T>, PacketError> {
    match result {
        Err(error) if error == TRUNCATED => Ok(None),
        result => result.map(Some),
    }
}

/// Reads a variable byte integer (§1.5.5) at the start of `bytes`: its value, its number of octets (1 to 4), and
/// whether that is the smallest possible number. `None`: it is incomplete.
pub(crate) fn variable_int(bytes: &[u8]) -> Result<Option<(u32, usize, bool)>, PacketError> {
    let mut value = 0;
    for (at, octet) in bytes.iter().take(4).enumerate() {
        value |= u32::from(octet & 0x7F) << (7 * at);
        if octet & 0x80 == 0 {
            return Ok(Some((value, at + 1, at == 0 || *octet != 0)));
        }
    }
    if bytes.len() < 4 { Ok(None) } else { Err(PacketError::malformed("a length of more than four octets")) }
}

/// Returns the number of octets of a variable byte integer (§1.5.5).
pub const fn variable_int_len(value: u32) -> usize {
    match value {
        0..=0x7F => 1,
        0x80..=0x3FFF => 2,
        0x4000..=0x1F_FFFF => 3,
        _ => 4,
    }
}

/// A packet does not fit into the output buffer, or one of its fields is longer than the protocol can express.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

/// A cursor over an output buffer. A write either succeeds completely, or returns [`Full`] and changes nothing.
///
/// A writer of [`Self::part`] stores only a part of its output, and its buffer is never full.
#[derive(Debug)]
pub struct Writer<'a> {
    buffer: &'a mut [u8],
    /// Number of octets written so far, stored or not.
    at: usize,
    /// Position in the output of the first octet of the buffer.
    from: usize,
    /// Octets outside of the buffer are discarded.
    is_part: bool,
}

impl<'a> Writer<'a> {
    /// Creates a cursor at the first octet of `buffer`.
    pub const fn new(buffer: &'a mut [u8]) -> Self {
        Self { buffer, at: 0, from: 0, is_part: false }
    }

    /// Creates a cursor that stores a part of the output: from octet `from` on, as much as fits into `buffer`. All other
    /// octets are discarded. So output that is larger than a buffer can be written in several calls.
    pub const fn part(buffer: &'a mut [u8], from: usize) -> Self {
        Self { buffer, at: 0, from, is_part: true }
    }

    /// Returns the number of octets written so far, including those that were discarded.
    pub const fn len(&self) -> usize {
        self.at
    }

    /// Returns whether nothing has been written.
    pub const fn is_empty(&self) -> bool {
        self.at == 0
    }

    /// Returns the octets written so far, without those that were discarded.
    pub fn written(&self) -> &[u8] {
        let len = self.at.saturating_sub(self.from).min(self.buffer.len());
        &self.buffer[..len]
    }

    /// Removes everything that was written after the first `len` octets, for example a packet that turned out to be
    /// larger than the client accepts.
    pub fn truncate(&mut self, len: usize) {
        assert!(len <= self.at, "only what was written can be removed");
        self.at = len;
    }

    /// Writes octets.
    #[inline]
    pub(crate) fn put(&mut self, octets: &[u8]) -> Result<(), Full> {
        let (start, end) = (self.at, self.at + octets.len());
        if self.is_part {
            let first = start.max(self.from);
            let last = end.min(self.from.saturating_add(self.buffer.len()));
            if first < last {
                self.buffer[first - self.from..last - self.from]
                    .copy_from_slice(&octets[first - start..last - start]);
            }
        } else {
            self.buffer.get_mut(start..end).ok_or(Full)?.copy_from_slice(octets);
        }
        self.at = end;
        Ok(())
    }

    pub(crate) fn u8(&mut self, value: u8) -> Result<(), Full> {
        self.put(&[value])
    }

    pub(crate) fn u16(&mut self, value: u16) -> Result<(), Full> {
        self.put(&value.to_be_bytes())
    }

    pub(crate) fn u32(&mut self, value: u32) -> Result<(), Full> {
        self.put(&value.to_be_bytes())
    }

    /// Writes a variable byte integer (§1.5.5).
    pub(crate) fn variable_int(&mut self, value: u32) -> Result<(), Full> {
        if value > VARIABLE_INT_MAX {
            return Err(Full);
        }
        let len = variable_int_len(value);
        let octets: [u8; 4] = core::array::from_fn(|at| {
            let more = if at + 1 < len { 0x80 } else { 0 };
            (value >> (7 * at)) as u8 & 0x7F | more
        });
        self.put(&octets[..len])
    }

    /// Writes a string or binary data: a two byte length and the octets.
    pub(crate) fn binary(&mut self, octets: &[u8]) -> Result<(), Full> {
        let len = u16::try_from(octets.len()).map_err(|_| Full)?;
        let start = self.at;
        let written = self.u16(len).and_then(|()| self.put(octets));
        self.undo_unless(start, written)
    }

    /// Returns a result, and undoes everything that was written from `start` on if it is an error.
    pub(crate) fn undo_unless(&mut self, start: usize, written: Result<(), Full>) -> Result<(), Full> {
        if written.is_err() {
            self.truncate(start);
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The limits of each length are those of table 1-1 (§1.5.5).
    #[test]
    fn variable_ints_have_as_few_octets_as_possible() {
        let cases: [(u32, &[u8]); 8] = [
            (0, &[0]),
            (127, &[0x7F]),
            (128, &[0x80, 1]),
            (16_383, &[0xFF, 0x7F]),
            (16_384, &[0x80, 0x80, 1]),
            (2_097_151, &[0xFF, 0xFF, 0x7F]),
            (2_097_152, &[0x80, 0x80, 0x80, 1]),
            (VARIABLE_INT_MAX, &[0xFF, 0xFF, 0xFF, 0x7F]),
        ];
        for (value, octets) in cases {
            let mut buffer = [0; 4];
            let mut writer = Writer::new(&mut buffer);
            writer.variable_int(value).expect("it fits");
            assert_eq!(writer.written(), octets);
            assert_eq!(variable_int(octets), Ok(Some((value, octets.len(), true))));
            assert_eq!(variable_int_len(value), octets.len());
            for shorter in 0..octets.len() {
                assert_eq!(variable_int(&octets[..shorter]), Ok(None));
                let mut buffer = [0; 4];
                assert_eq!(Writer::new(&mut buffer[..shorter]).variable_int(value), Err(Full));
            }
        }
        assert_eq!(Writer::new(&mut [0; 8]).variable_int(VARIABLE_INT_MAX + 1), Err(Full));
    }

    #[test]
    fn lengths_that_are_too_long_are_refused() {
        assert!(variable_int(&[0x80; 4]).is_err());
        assert!(variable_int(&[0x80, 0x80, 0x80, 0x80, 1]).is_err());
        assert_eq!(variable_int(&[0x80, 0]), Ok(Some((0, 2, false))));
        assert!(Reader::new(&[0x80, 0]).variable_int().is_err());
    }

    #[test]
    fn strings_are_utf_8_without_u_0000() {
        let read =
            |octets: &[u8]| Reader::new(octets).string().map(str::to_owned).map_err(|error| error.text);
        assert_eq!(read(&[0, 2, b'a', b'b', b'c']).as_deref(), Ok("ab"));
        assert_eq!(read(&[0, 0]).as_deref(), Ok(""));
        // A byte order mark is part of the string (MQTT-1.5.4-3).
        assert_eq!(read(&[0, 3, 0xEF, 0xBB, 0xBF]).as_deref(), Ok("\u{FEFF}"));
        for wrong in [&[0, 1, 0][..], &[0, 1, 0xFF], &[0, 3, 0xED, 0xA0, 0x80], &[0, 2, b'a'], &[0]] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn output_can_be_written_in_parts() {
        let write = |writer: &mut Writer<'_>| {
            writer.u8(1)?;
            writer.binary(b"abcdefgh")?;
            writer.variable_int(300)
        };
        let mut whole = [0; 32];
        let mut writer = Writer::new(&mut whole);
        write(&mut writer).expect("it fits");
        let expected = writer.written().to_vec();
        for size in 1..expected.len() + 2 {
            let (mut joined, mut buffer) = (Vec::new(), vec![0; size]);
            while joined.len() < expected.len() {
                let mut writer = Writer::part(&mut buffer, joined.len());
                assert_eq!((write(&mut writer), writer.len()), (Ok(()), expected.len()));
                joined.extend_from_slice(writer.written());
            }
            assert_eq!(joined, expected, "parts of {size} octets");
        }
        let mut writer = Writer::part(&mut whole, expected.len() + 1);
        write(&mut writer).expect("a part is never full");
        assert!(writer.written().is_empty());
    }

    #[test]
    fn what_does_not_fit_is_not_written() {
        let mut buffer = [7; 4];
        let mut writer = Writer::new(&mut buffer);
        assert_eq!(writer.binary(b"abc"), Err(Full));
        assert_eq!(writer.len(), 0);
        writer.binary(b"ab").expect("it fits");
        assert_eq!(writer.written(), [0, 2, b'a', b'b']);
        assert_eq!(Writer::new(&mut [0; 70_000]).binary(&[0; 65_536]), Err(Full));
    }
}
