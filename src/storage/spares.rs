//! Buffers that go round: what a job has brought back serves the next one, so that nothing is allocated while
//! the log is written.
//!
//! Always true: what lies here is empty, or is emptied by whoever takes it.

use super::footer::Footer;
use super::parts::BodyPart;
use super::segment::SegmentRef;

/// For the segment that is opened, and the one that is sealed.
#[derive(Debug)]
pub(super) struct SegmentSpares {
    /// For the header of a segment, and its list of segments.
    pub(super) header: Vec<u8>,
    pub(super) live: Vec<SegmentRef>,
    /// For the seal of a segment.
    pub(super) seal: (Footer, Vec<u8>, Vec<(u64, BodyPart)>),
}

impl SegmentSpares {
    /// For segments of so many bytes.
    pub(super) fn new(segment_bytes: u32) -> Self {
        let seal = (Footer::default().with_room(segment_bytes), Vec::new(), Vec::new());
        Self { header: Vec::new(), live: Vec::new(), seal }
    }
}

/// For segments on their way out.
#[derive(Debug, Default)]
pub(super) struct CleanerSpares {
    /// Queues that are carried, and those that were.
    pub(super) draining: Vec<u64>,
    pub(super) carried: Vec<(u64, u64)>,
    /// The segments.
    pub(super) drained: Vec<u64>,
    /// For [`super::Index::carries`].
    pub(super) since: Vec<(u64, usize)>,
}
