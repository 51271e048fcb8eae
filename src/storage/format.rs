//! The version of the format.
//!
//! ```text
//! version | segment     | commit | footer |
//! 1       | "LEVERET1"  | "LVC1" | "LVF2" | Leveret 0.1; not read any more
//! 2       | "LEVERET2"  | "LVC2" | "LVF3" |
//! ```
//!
//! What comes later needs no new version when older programs may pass over it: records of a kind with
//! [`OPTIONAL`] set, the lower flags of a header, and what follows the flags.
//!
//! Always true: a version that this program does not know is reported, never guessed at and never written over.

/// The version.
pub const FORMAT: u8 = 2;
/// What a segment begins with.
pub(super) const SEGMENT_MAGIC: [u8; 8] = *b"LEVERET2";
/// What a commit begins with.
pub(super) const COMMIT_MAGIC: [u8; 4] = *b"LVC2";
/// What a footer's trailer begins with.
pub(super) const FOOTER_MAGIC: [u8; 4] = *b"LVF3";
/// The bit in a record's kind which says that whoever does not know the kind passes over the record.
pub(super) const OPTIONAL: u8 = 0x80;
/// The kind of a name's record, which only footers have.
pub(super) const NAMED: u8 = OPTIONAL | 1;
// Kind `OPTIONAL | 2` (130) was written by repairs of older versions. It is passed over, and not used again.
