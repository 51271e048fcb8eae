//! Variable-length integers: seven bits per byte, least significant first; the top bit means that more bytes
//! follow.
//!
//! [`put`] writes a number, and [`Input::varint`] reads it. Reading never goes beyond the input and never panics, for
//! any bytes.

/// Maximum number of bytes of an encoded number.
pub(super) const BYTES_MAX: usize = 10;

/// Appends `value`.
pub(super) fn put(out: &mut Vec<u8>, value: u64) {
    if value < 0x80 {
        return out.push(value as u8);
    }
    let (bytes, length) = encode(value);
    out.extend_from_slice(&bytes[..length]);
}

/// Returns the encoding of `value`, padded with zeros, and its length in bytes.
#[inline]
pub(super) fn encode(mut value: u64) -> ([u8; BYTES_MAX], usize) {
    let (mut bytes, mut length) = ([0; BYTES_MAX], 0);
    while value >= 0x80 {
        bytes[length] = value as u8 | 0x80;
        value >>= 7;
        length += 1;
    }
    bytes[length] = value as u8;
    (bytes, length + 1)
}

/// Returns the number of bytes that the encoding of `value` takes.
pub(super) const fn bytes(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

/// Maps a signed number to an unsigned one so that small absolute values stay small.
pub(super) const fn zigzag(value: i64) -> u64 {
    (value.wrapping_shl(1) ^ (value >> 63)) as u64
}

/// Reverses [`zigzag`].
pub(super) const fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// A slice that is decoded from the front. Methods that read return `None` if the input is too short or malformed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Input<'a> {
    bytes: &'a [u8],
}

impl<'a> Input<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    pub(super) const fn rest(&self) -> &'a [u8] {
        self.bytes
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(count)?;
        self.bytes = rest;
        Some(taken)
    }

    pub(super) fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.take(8)?.try_into().ok().map(u64::from_le_bytes)
    }

    // Not inlined, because dozens of places read numbers, and the program would grow. The first test is a fast path,
    // because most numbers have one byte.
    #[inline(never)]
    pub(super) fn varint(&mut self) -> Option<u64> {
        let (first, rest) = self.bytes.split_first()?;
        if *first < 0x80 {
            self.bytes = rest;
            return Some(u64::from(*first));
        }
        let (mut value, mut at) = (u64::from(first & 0x7f), 1);
        while at < BYTES_MAX {
            let byte = *self.bytes.get(at)?;
            value |= u64::from(byte & 0x7f) << (7 * at);
            at += 1;
            if byte < 0x80 {
                self.bytes = &self.bytes[at..];
                return (at < BYTES_MAX || byte <= 1).then_some(value);
            }
        }
        None
    }

    /// Reads a length and then returns that number of bytes.
    #[inline]
    pub(super) fn counted(&mut self) -> Option<&'a [u8]> {
        let count = usize::try_from(self.varint()?).ok()?;
        self.take(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_reads_back() {
        for shift in 0..64 {
            for value in [1_u64 << shift, (1 << shift) - 1, u64::MAX >> shift] {
                let mut out = Vec::new();
                put(&mut out, value);
                assert!(out.len() <= 10 && out.len() == bytes(value));
                assert_eq!(unzigzag(zigzag(value as i64)), value as i64);
                assert_eq!(Input::new(&out).varint(), Some(value));
            }
        }
    }

    #[test]
    fn too_long_and_cut_numbers_mean_nothing() {
        assert_eq!(Input::new(&[0xff; 11]).varint(), None);
        assert_eq!(Input::new(&[0x80]).varint(), None);
        assert_eq!(Input::new(&[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 2]).varint(), None);
    }
}
