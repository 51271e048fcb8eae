//! The files of the log: what each is used for, and how many there may be.
//!
//! Always true: the counts are those of the list; free ones have the length of a segment, and are taken in
//! turn, so that all wear alike.

use std::collections::VecDeque;

use leveret_core::time::{Deadline, Now};

/// Segments that only the cleaner and settlements may open.
pub const SEGMENTS_RESERVED: usize = 2;
/// Segments beyond `disk_limit` that the cleaner may have made rather than never be able to write again: when
/// crash after crash has used up the reserve before it could free any. It has one more for each segment that
/// it cannot read.
pub(super) const SEGMENTS_EMERGENCY: usize = 4;
/// Segments kept ready beyond the reserved ones.
pub(super) const SEGMENTS_READY: usize = 2;
/// A file system that was full is asked for room again after this time, in milliseconds; then after half as
/// long again each time, up to the other.
const ASK_AGAIN_MS: u64 = 1_000;
const ASK_AGAIN_MS_MAX: u64 = 30_000;

/// What a slot's file is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Slot {
    /// There is no such file, or it is not ours to use.
    Unusable,
    /// Zeros are being written.
    Preparing,
    /// Ready to be a segment.
    Free,
    /// Part of the log.
    Live,
    /// It has left the log, but a fetch or a backup still reads it.
    Pinned,
}

/// The files.
#[derive(Debug)]
pub(super) struct Slots {
    pub(super) slots: Vec<Slot>,
    pub(super) free: usize,
    pub(super) used: usize,
    /// `disk_limit`.
    pub(super) max: usize,
    pub(super) prepared: u32,
    /// The one that those bytes are of.
    begun: u32,
    /// Files of the log that are shorter than a segment, or gone.
    cut: Vec<u32>,
    pub(super) preparing: Option<u32>,
    /// Slots with zeros still to be written.
    pub(super) unready: usize,
    /// The file system had no room, and is asked again then.
    pub(super) full_until: Option<Deadline>,
    /// Not even for what is written into a segment.
    pub(super) has_no_commit_room: bool,
    pub(super) ask_again_ms: u64,
    /// The free ones in the order in which they became so: they are taken in turn, so that all wear alike.
    pub(super) in_turn: VecDeque<u32>,
}

impl Slots {
    /// `taken` is the file of the newest segment; those that are `cut` are part of the log.
    pub(super) fn new(found: &[Slot], max: u32, taken: u32, cut: Vec<u32>) -> Self {
        let max = max as usize;
        let mut slots = Vec::with_capacity(found.len().max(max + SEGMENTS_EMERGENCY));
        slots.extend_from_slice(found);
        let mut in_turn = VecDeque::with_capacity(slots.capacity());
        let is_free = |slot: &u32| slots.get(*slot as usize) == Some(&Slot::Free);
        in_turn.extend((taken + 1..slots.len() as u32).filter(is_free));
        in_turn.extend((0..=taken).filter(is_free));
        let free = slots.iter().filter(|slot| **slot == Slot::Free).count();
        let used = slots.iter().filter(|slot| **slot != Slot::Unusable).count();
        let unready = slots.iter().filter(|slot| **slot == Slot::Preparing).count();
        Self {
            slots,
            free,
            used,
            max,
            prepared: 0,
            begun: 0,
            cut,
            preparing: None,
            unready,
            full_until: None,
            has_no_commit_room: false,
            ask_again_ms: ASK_AGAIN_MS,
            in_turn,
        }
    }

    pub(super) fn note_full(&mut self, now: Now) {
        self.full_until = Some(now.after_ms(self.ask_again_ms));
        self.ask_again_ms = (self.ask_again_ms * 3 / 2).min(ASK_AGAIN_MS_MAX);
    }

    pub(super) const fn note_room(&mut self) {
        self.full_until = None;
        self.has_no_commit_room = false;
        self.ask_again_ms = ASK_AGAIN_MS;
    }

    /// Whether the file system is not known to be full, or is to be asked again.
    pub(super) fn may_ask(&self, now: Now) -> bool {
        self.full_until.is_none_or(|until| until.is_due(now))
    }

    /// Segments that there may be: no more than there are while the file system is full.
    pub(super) const fn limit(&self) -> usize {
        let ready = self.used - self.unready;
        if self.full_until.is_some() && ready < self.max { ready } else { self.max }
    }

    /// A file that may be given up for the room it takes: one is kept, for acknowledgements.
    pub(super) fn to_give(&self) -> Option<u32> {
        if self.free > 1 { self.in_turn.back().copied() } else { None }
    }

    pub(super) fn get(&self, slot: u32) -> Slot {
        self.slots.get(slot as usize).copied().unwrap_or(Slot::Unusable)
    }

    pub(super) fn set(&mut self, slot: u32, state: Slot) {
        let Some(place) = self.slots.get_mut(slot as usize) else { panic!("there is no file {slot}") };
        let old = core::mem::replace(place, state);
        if old == Slot::Free {
            // Nearly always the first.
            if let Some(at) = self.in_turn.iter().position(|free| *free == slot) {
                self.in_turn.remove(at);
            }
        }
        if state == Slot::Free {
            self.in_turn.push_back(slot);
        }
        let count =
            |of: &mut usize, is: fn(Slot) -> bool| *of = *of + usize::from(is(state)) - usize::from(is(old));
        count(&mut self.free, |slot| slot == Slot::Free);
        count(&mut self.used, |slot| slot != Slot::Unusable);
        count(&mut self.unready, |slot| slot == Slot::Preparing);
    }

    /// Nobody needs any more what is in a file: it is ready, or made anew where it was cut.
    pub(super) fn release(&mut self, slot: u32) {
        let cut = self.cut.iter().position(|cut| *cut == slot);
        self.set(slot, if cut.is_some() { Slot::Preparing } else { Slot::Free });
        cut.map(|at| self.cut.swap_remove(at));
    }

    /// A file that is ready: the one that has been so for longest.
    pub(super) fn take_free(&mut self) -> Option<u32> {
        let slot = self.in_turn.front().copied()?;
        self.set(slot, Slot::Live);
        Some(slot)
    }

    pub(super) const fn free(&self) -> usize {
        self.free
    }

    /// `disk_limit` in segments, or what the file system has room for.
    pub(super) const fn most(&self) -> usize {
        self.max
    }

    /// Segments that are free, or may still be made.
    pub(super) const fn spare(&self) -> usize {
        self.free + self.limit().saturating_sub(self.used)
    }

    /// A file beyond the limit with nothing in it, some of which are kept for what comes next.
    pub(super) fn surplus(&self) -> Option<u32> {
        let is_surplus = self.used > self.max && self.free > SEGMENTS_RESERVED + SEGMENTS_READY;
        let last = self.slots.iter().rposition(|slot| *slot == Slot::Free)?;
        is_surplus.then_some(last as u32)
    }

    /// A new segment to prepare, or one that was begun.
    pub(super) fn begin(&mut self, most: usize) -> Option<u32> {
        if self.prepared > 0 {
            return Some(self.begun);
        }
        let unready = self.slots.iter().position(|slot| *slot == Slot::Preparing);
        if unready.is_none() {
            if self.used >= most {
                return None;
            }
            self.slots.push(Slot::Preparing);
            (self.used, self.unready) = (self.used + 1, self.unready + 1);
        }
        self.begun = unready.unwrap_or(self.slots.len() - 1) as u32;
        Some(self.begun)
    }
}
