//! Names, kept inline.

/// The longest name on the wire in bytes (AMQP short string).
pub const NAME_BYTES_MAX: usize = 255;

/// A name kept inline: consumer tags, server-made names, users.
pub type Name = heapless::String<NAME_BYTES_MAX>;
