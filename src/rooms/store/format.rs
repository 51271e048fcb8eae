//! Versions of the format, and who reads what.
//!
//! ```text
//! version | segment     | commit | footer | what is new
//! 1       | "LEVERET1"  | "LVC1" | "LVF2" |
//! 2       | "LEVERET2"  | "LVC2" | "LVF3" | flags and room in headers; facts of any kind in footers,
//!         |             |        |        | definitions whole; records that a reader may pass over
//! ```
//!
//! Two programs may take turns at one store: a fleet's update that is taken back. So this program reads every
//! version, and goes on writing the one that it finds until somebody asks for more (`leveret upgrade-store`).
//! An upgrade is a new segment: older segments stay as they are, side by side with newer ones, until they
//! leave the log. From its header on, a program that does not know the newer version touches nothing.
//!
//! What comes later needs no new version when older programs may pass over it: records of a kind with
//! [`OPTIONAL`] set, the lower flags of a header, and what follows the flags.
//!
//! Always true: a version that this program does not know is told, never guessed at and never written over;
//! what lies in a segment is of the version of its header, or of an older one.

/// The bit in a record's kind which says that whoever does not know the kind passes over the record.
pub(super) const OPTIONAL: u8 = 0x80;
/// The kind of a name's record, which only footers have.
pub(super) const NAMED: u8 = OPTIONAL | 1;
// Kind `OPTIONAL | 2` (130) was written by repairs of older versions. It is passed over, and not used again.

/// A version of the format.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Format {
    /// Up to Leveret 0.1.
    One,
    /// See the module.
    #[default]
    Two,
}

impl Format {
    const ALL: [Self; 2] = [Self::One, Self::Two];
    /// The newest one, which new stores have.
    pub const NEWEST: Self = Self::Two;

    /// Its number.
    pub const fn number(self) -> u8 {
        match self {
            Self::One => 1,
            Self::Two => 2,
        }
    }

    /// What a segment begins with.
    pub(super) const fn segment_magic(self) -> [u8; 8] {
        match self {
            Self::One => *b"LEVERET1",
            Self::Two => *b"LEVERET2",
        }
    }

    /// What a commit begins with.
    pub(super) const fn commit_magic(self) -> [u8; 4] {
        match self {
            Self::One => *b"LVC1",
            Self::Two => *b"LVC2",
        }
    }

    /// What a footer's trailer begins with.
    pub(super) const fn footer_magic(self) -> [u8; 4] {
        match self {
            Self::One => *b"LVF2",
            Self::Two => *b"LVF3",
        }
    }

    /// The one whose segments begin so.
    pub(super) fn of_segment(magic: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.segment_magic() == *magic)
    }

    /// The one whose commits begin so.
    pub(super) fn of_commit(magic: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.commit_magic() == *magic)
    }

    /// The one whose footers' trailers begin so.
    pub(super) fn of_footer(magic: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.footer_magic() == *magic)
    }
}
