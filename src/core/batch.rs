//! Batch numbers, with which a client waits until its changes are durable.

/// The number of a batch: changes that become durable together. Numbers rise. [`Batch::NONE`] is always durable.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Batch(u64);

impl Batch {
    /// The batch that is always durable: there is nothing to wait for.
    pub const NONE: Self = Self(0);

    /// Returns the batch with this number; batches are numbered from 1.
    pub const fn numbered(number: u64) -> Self {
        Self(number)
    }

    /// Returns the batch as 8 bytes, for [`Self::from_be_bytes`].
    pub const fn to_be_bytes(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }

    /// Returns the batch from the bytes that [`Self::to_be_bytes`] returned.
    pub const fn from_be_bytes(octets: [u8; 8]) -> Self {
        Self(u64::from_be_bytes(octets))
    }

    /// Returns the previous batch.
    ///
    /// # Panics
    /// The batch is [`Batch::NONE`].
    pub const fn before(self) -> Self {
        Self(self.0.checked_sub(1).expect("there is no batch before the first"))
    }

    /// Returns the next batch.
    pub const fn after(self) -> Self {
        Self(self.0 + 1)
    }

    /// Returns whether there is nothing to wait for.
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }
}
