//! Errors of reading and writing AMQP bytes.

use core::fmt;

/// Maximum nesting depth of tables and arrays, including the outermost. RabbitMQ has no such limit. Without
/// it, a few hundred octets from a hostile client could overflow the stack. Ordinary clients nest much less
/// deeply.
pub const TABLE_DEPTH_MAX: usize = 32;

/// Why received bytes are not valid AMQP.
///
/// For all of these RabbitMQ sends 501 FRAME_ERROR, or closes the connection without a reply. The caller
/// chooses the reply code and the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireError {
    /// A field extends beyond the end of the surrounding data.
    Truncated,
    /// Octets are left over after the last field.
    TrailingBytes,
    /// A short string that is a name or a text is not UTF-8.
    NotUtf8,
    /// A table or array contains a value of a type that RabbitMQ does not support; the octet is the type tag.
    UnknownFieldType(u8),
    /// Tables and arrays are nested deeper than [`TABLE_DEPTH_MAX`].
    TableTooDeep,
    /// A float in a table is infinite or not a number. RabbitMQ refuses those as well.
    NotFinite,
    /// A content header has property flags without a property.
    UndefinedFlags,
    /// A content header has a class other than `basic`; the number is the class.
    UnexpectedClass(u16),
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => f.write_str("a field reaches beyond the end"),
            Self::TrailingBytes => f.write_str("octets left over after the last field"),
            // RabbitMQ's error text.
            Self::NotUtf8 => f.write_str("Malformed UTF-8 in shortstr"),
            Self::UnknownFieldType(tag) => write!(f, "unknown field type {tag:#04x} in a table"),
            Self::TableTooDeep => write!(f, "tables nested more than {TABLE_DEPTH_MAX} deep"),
            Self::NotFinite => f.write_str("a number in a table is not finite"),
            Self::UndefinedFlags => f.write_str("undefined property flags"),
            Self::UnexpectedClass(class) => write!(f, "content header for class {class}"),
        }
    }
}

impl core::error::Error for WireError {}

/// A value cannot be written: the buffer has no space, or a length field is too small for the value (a short string has
/// at most 255 octets).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("does not fit into the output buffer")
    }
}

impl core::error::Error for Full {}
