//! Bounded cursors for reading and writing AMQP's primitive types.
//!
//! # Invariants
//! - A cursor never reads or writes outside of the slice it was given.
//! - A read or write that fails changes nothing.

use super::error::{Full, WireError};

/// A bounded cursor over received bytes. Numbers are big-endian (§4.2.5.1). A read either succeeds and advances the
/// cursor, or returns [`WireError::Truncated`] and does not move it.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Creates a cursor at the start of `bytes`.
    #[inline]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// Reads `len` octets.
    #[inline]
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], WireError> {
        let (head, tail) = self.bytes.split_at_checked(len).ok_or(WireError::Truncated)?;
        self.bytes = tail;
        Ok(head)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (head, tail) = self.bytes.split_first_chunk::<N>().ok_or(WireError::Truncated)?;
        self.bytes = tail;
        Ok(*head)
    }

    /// Reads one octet.
    #[inline]
    pub fn u8(&mut self) -> Result<u8, WireError> {
        self.array::<1>().map(|[octet]| octet)
    }

    /// Reads a 16-bit unsigned number.
    #[inline]
    pub fn u16(&mut self) -> Result<u16, WireError> {
        self.array().map(u16::from_be_bytes)
    }

    /// Reads a 32-bit unsigned number.
    #[inline]
    pub fn u32(&mut self) -> Result<u32, WireError> {
        self.array().map(u32::from_be_bytes)
    }

    /// Reads a 64-bit unsigned number.
    #[inline]
    pub fn u64(&mut self) -> Result<u64, WireError> {
        self.array().map(u64::from_be_bytes)
    }

    /// Reads a signed octet.
    #[inline]
    pub fn i8(&mut self) -> Result<i8, WireError> {
        self.array().map(i8::from_be_bytes)
    }

    /// Reads a 16-bit signed number.
    #[inline]
    pub fn i16(&mut self) -> Result<i16, WireError> {
        self.array().map(i16::from_be_bytes)
    }

    /// Reads a 32-bit signed number.
    #[inline]
    pub fn i32(&mut self) -> Result<i32, WireError> {
        self.array().map(i32::from_be_bytes)
    }

    /// Reads a 64-bit signed number.
    #[inline]
    pub fn i64(&mut self) -> Result<i64, WireError> {
        self.array().map(i64::from_be_bytes)
    }

    /// Reads an IEEE 754 single, which may be infinite or not a number.
    #[inline]
    pub fn f32(&mut self) -> Result<f32, WireError> {
        self.array().map(f32::from_be_bytes)
    }

    /// Reads an IEEE 754 double, which may be infinite or not a number.
    #[inline]
    pub fn f64(&mut self) -> Result<f64, WireError> {
        self.array().map(f64::from_be_bytes)
    }

    /// Reads an octet with the flags of a method (§4.2.5.2). Returns its bits, the lowest first. Callers
    /// ignore unused bits, as RabbitMQ does.
    #[inline]
    pub fn bits(&mut self) -> Result<[bool; 8], WireError> {
        self.u8().map(|octet| core::array::from_fn(|bit| octet & (1 << bit) != 0))
    }

    /// Reads a short string (§4.2.5.3): at most 255 octets of any value.
    #[inline]
    pub fn short_str(&mut self) -> Result<&'a [u8], WireError> {
        let mut ahead = *self;
        let len = ahead.u8()?;
        let octets = ahead.take(usize::from(len))?;
        *self = ahead;
        Ok(octets)
    }

    /// Reads a short string that must be UTF-8: a name or a text.
    ///
    /// # Errors
    /// [`WireError::Truncated`], or [`WireError::NotUtf8`]. RabbitMQ refuses methods with such strings too
    /// (501, "Malformed UTF-8 in shortstr").
    #[inline]
    pub fn short_string(&mut self) -> Result<&'a str, WireError> {
        let mut ahead = *self;
        let text = core::str::from_utf8(ahead.short_str()?).map_err(|_| WireError::NotUtf8)?;
        *self = ahead;
        Ok(text)
    }

    /// Reads a long string (§4.2.5.3): a 32-bit length, and so many octets of any value.
    #[inline]
    pub fn long_str(&mut self) -> Result<&'a [u8], WireError> {
        let mut ahead = *self;
        let len = ahead.u32()?;
        // So many octets cannot be in the memory of a 32-bit machine, so the string cannot be complete.
        let len = usize::try_from(len).map_err(|_| WireError::Truncated)?;
        let octets = ahead.take(len)?;
        *self = ahead;
        Ok(octets)
    }

    /// Returns the octets that have not been read yet.
    #[inline]
    pub fn rest(&self) -> &'a [u8] {
        self.bytes
    }

    /// Returns the number of octets that have not been read yet.
    #[inline]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Returns whether everything has been read.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Ends reading.
    ///
    /// # Errors
    /// [`WireError::TrailingBytes`] if there are unread octets. RabbitMQ refuses them too.
    #[inline]
    pub fn finish(self) -> Result<(), WireError> {
        if self.is_empty() { Ok(()) } else { Err(WireError::TrailingBytes) }
    }
}

/// A cursor over an output buffer. A write either succeeds completely, or returns [`Full`] and changes
/// nothing. After [`Full`] a caller can send the octets written so far, and then repeat the write.
#[derive(Debug)]
pub struct Writer<'a> {
    buf: &'a mut [u8],
    at: usize,
}

impl<'a> Writer<'a> {
    /// Creates a cursor at the first octet of `buf`.
    #[inline]
    pub fn new(buf: &'a mut [u8]) -> Self {
        Self { buf, at: 0 }
    }

    /// Returns the number of octets written so far, which is also the position of the next one.
    #[inline]
    pub fn at(&self) -> usize {
        self.at
    }

    /// Returns the number of free octets.
    #[inline]
    pub fn room(&self) -> usize {
        self.buf.len() - self.at
    }

    /// Returns the octets written up to now.
    #[inline]
    pub fn written(&self) -> &[u8] {
        self.buf.get(..self.at).unwrap_or_default()
    }

    /// Removes everything that was written at or after position `at`.
    #[inline]
    pub fn rewind(&mut self, at: usize) {
        self.at = self.at.min(at);
    }

    /// Returns the next `len` octets of the buffer, and counts them as written. The caller must fill them.
    ///
    /// Until the caller fills them, they contain old data of the buffer.
    #[inline]
    pub fn claim(&mut self, len: usize) -> Result<&mut [u8], Full> {
        let claimed = self.buf.get_mut(self.at..).and_then(|room| room.get_mut(..len)).ok_or(Full)?;
        self.at += len;
        Ok(claimed)
    }

    #[inline]
    fn array<const N: usize>(&mut self, octets: [u8; N]) -> Result<(), Full> {
        let room = self.buf.get_mut(self.at..).and_then(|room| room.first_chunk_mut::<N>()).ok_or(Full)?;
        *room = octets;
        self.at += N;
        Ok(())
    }

    /// Writes octets without a length.
    #[inline]
    pub fn write_raw(&mut self, octets: &[u8]) -> Result<(), Full> {
        self.claim(octets.len())?.copy_from_slice(octets);
        Ok(())
    }

    /// Writes one octet.
    #[inline]
    pub fn write_u8(&mut self, value: u8) -> Result<(), Full> {
        self.array([value])
    }

    /// Writes a 16-bit unsigned number.
    #[inline]
    pub fn write_u16(&mut self, value: u16) -> Result<(), Full> {
        self.array(value.to_be_bytes())
    }

    /// Writes a 32-bit unsigned number.
    #[inline]
    pub fn write_u32(&mut self, value: u32) -> Result<(), Full> {
        self.array(value.to_be_bytes())
    }

    /// Writes a 64-bit unsigned number.
    #[inline]
    pub fn write_u64(&mut self, value: u64) -> Result<(), Full> {
        self.array(value.to_be_bytes())
    }

    /// Writes up to eight bits in one octet, the lowest first.
    #[inline]
    pub fn write_bits<const N: usize>(&mut self, bits: [bool; N]) -> Result<(), Full> {
        const { assert!(N <= 8, "no method has more than eight flags in a row") };
        let octet = bits.iter().rev().fold(0, |octet, bit| octet << 1 | u8::from(*bit));
        self.write_u8(octet)
    }

    /// Writes a short string.
    ///
    /// # Errors
    /// [`Full`] also if the string is longer than 255 octets, the maximum of its length field.
    #[inline]
    pub fn write_short_str(&mut self, octets: &[u8]) -> Result<(), Full> {
        let len = u8::try_from(octets.len()).map_err(|_| Full)?;
        let claimed = self.claim(octets.len() + 1)?;
        if let Some((first, text)) = claimed.split_first_mut() {
            *first = len;
            text.copy_from_slice(octets);
        }
        Ok(())
    }

    /// Writes a long string.
    #[inline]
    pub fn write_long_str(&mut self, octets: &[u8]) -> Result<(), Full> {
        self.with_length(|w| w.write_raw(octets))
    }

    /// Writes the octets that `fill` writes, and before them their number as a 32-bit length.
    #[inline]
    pub(super) fn with_length(
        &mut self,
        fill: impl FnOnce(&mut Self) -> Result<(), Full>,
    ) -> Result<(), Full> {
        self.undo_on_error(|w| {
            let length_at = w.at;
            w.write_u32(0)?;
            let start = w.at;
            fill(w)?;
            let length = u32::try_from(w.at - start).map_err(|_| Full)?;
            if let Some(place) = w.buf.get_mut(length_at..start) {
                place.copy_from_slice(&length.to_be_bytes());
            }
            Ok(())
        })
    }

    #[inline]
    pub(super) fn undo_on_error(
        &mut self,
        write: impl FnOnce(&mut Self) -> Result<(), Full>,
    ) -> Result<(), Full> {
        let start = self.at;
        write(self).inspect_err(|_| self.at = start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FrameKind;

    #[test]
    fn a_read_that_fails_moves_nothing() {
        let mut reader = Reader::new(b"\x05abc");
        assert_eq!(reader.short_str(), Err(WireError::Truncated));
        assert_eq!(reader.long_str(), Err(WireError::Truncated));
        assert_eq!(reader.u64(), Err(WireError::Truncated));
        assert_eq!(reader.rest(), b"\x05abc");

        let mut reader = Reader::new(b"\x01\xff");
        assert_eq!(reader.short_string(), Err(WireError::NotUtf8));
        assert_eq!(reader.short_str(), Ok(&b"\xff"[..]));
        assert_eq!(reader.finish(), Ok(()));
    }

    #[test]
    fn a_length_that_lies_reads_nothing() {
        let mut reader = Reader::new(b"\xff\xff\xff\xffabc");
        assert_eq!(reader.long_str(), Err(WireError::Truncated));
        assert_eq!(reader.table(), Err(WireError::Truncated));
    }

    #[test]
    fn a_frame_that_does_not_fit_leaves_no_trace() {
        let mut buf = [0; 20];
        let mut w = Writer::new(&mut buf);
        w.write_raw(b"before").expect("fits");
        assert_eq!(w.frame(FrameKind::Body, 1, |w| w.write_raw(&[7; 10])), Err(Full));
        assert_eq!(w.written(), b"before");
        w.frame(FrameKind::Body, 1, |w| w.write_raw(&[7; 6])).expect("it fits exactly");
        assert_eq!(w.written(), b"before\x03\0\x01\0\0\0\x06\x07\x07\x07\x07\x07\x07\xce");
        assert_eq!(w.room(), 0);
    }

    #[test]
    fn short_strings_end_at_255_octets() {
        let mut buf = [0; 600];
        let mut w = Writer::new(&mut buf);
        assert_eq!(w.write_short_str(&[b'x'; 256]), Err(Full));
        assert_eq!(w.at(), 0);
        assert_eq!(w.write_short_str(&[b'x'; 255]), Ok(()));
        assert_eq!(w.at(), 256);
    }

    #[test]
    fn bits_begin_at_the_low_end() {
        let mut buf = [0; 1];
        let mut w = Writer::new(&mut buf);
        w.write_bits([false, true, false, true, true]).expect("fits");
        assert_eq!(w.written(), [0b11010]);
        let bits = Reader::new(w.written()).bits().expect("one octet");
        assert_eq!(bits, [false, true, false, true, true, false, false, false]);
    }
}
