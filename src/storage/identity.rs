//! Who a store is.

/// Who a store is: made once, when it is formatted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Tells stores apart; may be shown and sent.
    pub id: [u8; 16],
    /// Goes into every checksum; never leaves the store.
    pub secret: u64,
}

impl Identity {
    /// What the checksums of this store's commits start from.
    pub(super) fn seed(&self) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c(&self.secret.to_le_bytes()), &self.id)
    }
}
