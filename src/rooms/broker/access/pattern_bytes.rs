//! Bytes that the patterns of permissions and of policies take together.
//!
//! Why it exists: permissions and policies are kept by different parts, and `patterns_bytes_max` is for both.
//!
//! Always true: bytes are given back once, by the part that took them.

use super::fault::OperatorFault;

/// What all patterns take, and may take.
pub(crate) struct PatternBytes {
    used: usize,
    max: usize,
}

impl PatternBytes {
    /// No pattern yet.
    pub(crate) const fn with_max(max: usize) -> Self {
        Self { used: 0, max }
    }

    /// Bytes that all patterns may take.
    pub(crate) const fn most(&self) -> usize {
        self.max
    }

    /// Counts patterns in for others that go.
    ///
    /// # Errors
    /// There is no room for more bytes than go.
    pub(crate) fn take(&mut self, bytes: usize, freed: usize) -> Result<(), OperatorFault> {
        assert!(freed <= self.used, "patterns that go were taken");
        let sum = self.used - freed + bytes;
        if sum > self.max && bytes > freed {
            return Err(OperatorFault::NoRoom("patterns_bytes_max"));
        }
        self.used = sum;
        Ok(())
    }

    /// Patterns are gone.
    pub(crate) fn give_back(&mut self, bytes: usize) {
        assert!(bytes <= self.used, "patterns that go were taken");
        self.used -= bytes;
    }
}
