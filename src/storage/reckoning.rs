//! What the cleaner has learned from the segments that it has cleaned: nothing must be copied for nothing
//! again and again, and wear the card of a board on which nothing happens.
//!
//! Always true: without news the log is gone over once at most, for what is dead in it is gone by then; once
//! a segment gave no room, what has been written since then is left alone, until one gives some or there is
//! news.

/// A segment that took as much to clean as it gave lowers what is worth copying by so many percent for the
/// next ones, by so many at most, and one that gave room raises it by one again.
const CAUTION_STEP_PERCENT: u64 = 5;
const CAUTION_MAX_PERCENT: u64 = 46;

/// What came of the cleaner's work so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reckoning {
    /// What the log had taken when the last one was chosen, what is new left out, in bytes.
    taken_before: Option<u64>,
    /// The first of those written since one gave no room.
    barren_from: Option<u64>,
    /// How often something was said, new or of what is done with; and how often by then.
    said: u64,
    said_then: u64,
    /// Segments cleaned since then.
    cleaned: usize,
    /// It is content with so many percent less: segments gave no room of late.
    caution_percent: u64,
}

impl Reckoning {
    /// Something was said, new or of what is done with.
    pub(super) const fn note_said(&mut self) {
        self.said += 1;
    }

    /// What was said last is no news: it was there before.
    pub(super) const fn note_no_news(&mut self) {
        self.said -= 1;
    }

    /// Learns from what the segment that was cleaned last has taken until it had left. `taken_bytes` is what
    /// the log has taken so far, but for what is new in it; `active` is the segment that is written.
    pub(super) fn learn(&mut self, taken_bytes: u64, segment_bytes: u32, active: u64) {
        if self.said_then != self.said {
            (self.said_then, self.barren_from, self.cleaned) = (self.said, None, 0);
        }
        let Some(before) = self.taken_before.take() else { return };
        if taken_bytes.saturating_sub(before) < segment_bytes.into() {
            self.barren_from = None;
            self.caution_percent = self.caution_percent.saturating_sub(1);
        } else {
            self.barren_from.get_or_insert(active);
            self.caution_percent = (self.caution_percent + CAUTION_STEP_PERCENT).min(CAUTION_MAX_PERCENT);
        }
    }

    /// Whether each of so many segments was cleaned since the last news.
    pub(super) const fn has_been_through(&self, segments: usize) -> bool {
        self.cleaned > segments
    }

    /// By how many percent less than otherwise may have to be written for a segment.
    pub(super) const fn caution_percent(&self) -> u64 {
        self.caution_percent
    }

    /// Whether a segment is of those that are left alone.
    pub(super) fn is_barren(&self, sequence: u64) -> bool {
        self.barren_from.is_some_and(|barren| sequence >= barren)
    }

    /// A segment was chosen.
    pub(super) const fn note_chosen(&mut self, taken_bytes: u64) {
        self.taken_before = Some(taken_bytes);
        self.cleaned += 1;
    }
}
