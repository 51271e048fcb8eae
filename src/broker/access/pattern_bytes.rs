//! Bytes that the patterns of permissions and of policies take together.
//!
//! Why it exists: permissions and policies are kept by different parts, and `patterns_bytes_max` is for both.
//!
//! Always true: bytes are given back once, by the part that took them.

use super::fault::OperatorFault;

/// Bytes that all patterns take, and may take.
pub(crate) struct PatternBytes {
    used: usize,
    max: usize,
}

impl PatternBytes {
    /// A count without patterns, for at most `max` bytes.
    pub(crate) const fn with_max(max: usize) -> Self {
        Self { used: 0, max }
    }

    /// Bytes that all patterns may take.
    pub(crate) const fn most(&self) -> usize {
        self.max
    }

    /// Counts the bytes of new patterns, in place of `freed` ones.
    ///
    /// # Errors
    /// There is no room for the bytes beyond those freed.
    pub(crate) fn take(&mut self, bytes: usize, freed: usize) -> Result<(), OperatorFault> {
        assert!(freed <= self.used, "patterns that go were taken");
        let sum = self.used - freed + bytes;
        if sum > self.max && bytes > freed {
            return Err(OperatorFault::NoRoom("patterns_bytes_max"));
        }
        self.used = sum;
        Ok(())
    }

    /// Counts out the bytes of patterns that are gone.
    pub(crate) fn give_back(&mut self, bytes: usize) {
        assert!(bytes <= self.used, "patterns that go were taken");
        self.used -= bytes;
    }
}
