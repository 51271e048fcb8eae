//! A request body that is longer than a request buffer, kept in the message pool until it is decoded.
//!
//! # Invariants
//! - A piece has at most [`PIECE_BYTES`], so that a step that handles one piece is bounded.
//! - Pool memory is taken as the body arrives, never for bytes that were only announced.
//! - The owner calls [`Spool::release`]: a spool that is dropped would keep its pool memory.

use zeroize::Zeroizing;

use leveret_core::mem::{MessageFlags, MessageId, Messages, PoolFull, Share};

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

    /// Appends bytes. `expected`: at most so many bytes are still to come, these included.
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

    /// Replaces a piece by bytes that are no longer.
    ///
    /// # Errors
    /// The pool is full; the piece is gone.
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
