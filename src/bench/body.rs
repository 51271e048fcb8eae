//! What is in a message, and whether it arrived as it was sent.
//!
//! Every octet of a body is known in advance but its number and the time it was sent, so a receiver can check
//! all of it without being told anything. Always true: a [`Checker`] that never complained, and whose tally
//! at the end is the one expected, has seen every message of its lanes once, whole and in order.
//!
//! ```text
//!    0           2          8            16                  size
//!    +-----------+----------+------------+- - - - - - - - - -+
//!    | publisher |  number  | sent at    |      filler       |
//!    +-----------+----------+------------+- - - - - - - - - -+
//!     16 bits     48 bits    64 bits, ns   from 8 on when the time is not wanted, from 0 on below 8 octets
//! ```
//!
//! A *lane* is what one publisher sends to one queue: its numbers go up by an equal step.

use super::error::BenchError;

/// Bodies from this size on carry a number.
pub(super) const NUMBERED_SIZE_MIN: usize = 8;
/// Bodies from this size on can carry the time they were sent.
pub(super) const STAMPED_SIZE_MIN: usize = 16;

const NUMBER_BITS: u32 = 48;

/// The filler of a body.
pub(super) fn filler(size: usize) -> Vec<u8> {
    // A prime period, so that octets moved by any power of two are noticed.
    (0..251).cycle().take(size).collect()
}

/// The octets that say who sent a message and which it is.
#[inline]
pub(super) fn pack(publisher: u16, number: u64) -> [u8; 8] {
    (u64::from(publisher) << NUMBER_BITS | number).to_be_bytes()
}

#[inline]
fn unpack(octets: [u8; 8]) -> (usize, u64) {
    let both = u64::from_be_bytes(octets);
    ((both >> NUMBER_BITS) as usize, both & ((1 << NUMBER_BITS) - 1))
}

/// A body on its way in.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    at: usize,
    head: [u8; STAMPED_SIZE_MIN],
}

/// What has come through a lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) count: u64,
    /// Sum of the scrambled numbers: the same only for the same numbers.
    pub(super) sum: u64,
}

impl Tally {
    /// The tally of `count` numbers from `first` on.
    pub(super) fn of(first: u64, step: u64, count: u64) -> Self {
        let sum = (0..count).fold(0_u64, |sum, at| sum.wrapping_add(scramble(first + at * step)));
        Self { count, sum }
    }

    pub(super) fn add(&mut self, other: Self) {
        self.count += other.count;
        self.sum = self.sum.wrapping_add(other.sum);
    }
}

/// A number made so that sums of different sets of numbers differ (splitmix64).
#[inline]
fn scramble(number: u64) -> u64 {
    let mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// One publisher's messages in one queue, as one consumer sees them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lane {
    /// The smallest number that may come next.
    pub(super) next: u64,
    pub(super) step: u64,
    pub(super) tally: Tally,
}

/// Checks what one consumer receives.
#[derive(Debug)]
pub(super) struct Checker {
    filler: Vec<u8>,
    /// Octets at the front that are not filler.
    head_len: usize,
    /// All publishers of its first queue, then of its second, and so on; empty when bodies are too small
    /// for numbers.
    pub(super) lanes: Vec<Lane>,
    publishers: usize,
    /// Nobody else consumes from these queues, so no number is ever left out.
    alone: bool,
}

impl Checker {
    pub(super) fn new(size: usize, stamped: bool, lanes: Vec<Lane>, publishers: usize, alone: bool) -> Self {
        let head_len = match size {
            _ if stamped => STAMPED_SIZE_MIN,
            NUMBERED_SIZE_MIN.. => NUMBERED_SIZE_MIN,
            _ => 0,
        };
        Self { filler: filler(size), head_len, lanes, publishers, alone }
    }

    /// Checks the length that was announced.
    #[inline]
    pub(super) fn begin(&self, body_len: u64) -> Result<Incoming, BenchError> {
        if body_len != self.filler.len() as u64 {
            return Err(wrong_length(body_len, self.filler.len()));
        }
        Ok(Incoming::default())
    }

    /// Checks a piece; `true` when it was the last.
    #[inline]
    pub(super) fn piece(&self, incoming: &mut Incoming, octets: &[u8]) -> Result<bool, BenchError> {
        let at = incoming.at;
        let end = at + octets.len();
        let Some(filler) = self.filler.get(at..end) else {
            return Err(wrong_length(end as u64, self.filler.len()));
        };
        let head = self.head_len.saturating_sub(at).min(octets.len());
        incoming.head[at.min(STAMPED_SIZE_MIN)..][..head].copy_from_slice(&octets[..head]);
        if octets[head..] != filler[head..] {
            return Err(BenchError::Wrong(format!("a body differs between its octets {at} and {end}")));
        }
        incoming.at = end;
        Ok(end == self.filler.len())
    }

    /// Checks the number of a complete body from the consumer's `queue`th queue; gives the time it was sent.
    #[inline]
    pub(super) fn complete(&mut self, queue: usize, incoming: &Incoming) -> Result<u64, BenchError> {
        let [n0, n1, n2, n3, n4, n5, n6, n7, s0, s1, s2, s3, s4, s5, s6, s7] = incoming.head;
        if self.head_len > 0 {
            let (publisher, number) = unpack([n0, n1, n2, n3, n4, n5, n6, n7]);
            self.count(queue, publisher, number)?;
        }
        Ok(u64::from_be_bytes([s0, s1, s2, s3, s4, s5, s6, s7]))
    }

    #[inline]
    fn count(&mut self, queue: usize, publisher: usize, number: u64) -> Result<(), BenchError> {
        let lane = self.lanes.get_mut(queue * self.publishers + publisher);
        let Some(lane) = lane.filter(|_| publisher < self.publishers) else {
            return Err(BenchError::Wrong(format!("a message of publisher {publisher}, which there is not")));
        };
        let fits = if self.alone {
            number == lane.next
        } else {
            number >= lane.next && (number - lane.next).is_multiple_of(lane.step)
        };
        if !fits {
            return Err(out_of_place(publisher, number, lane.next));
        }
        lane.next = number + lane.step;
        lane.tally.count += 1;
        // One consumer that skips nothing needs no sum.
        if !self.alone {
            lane.tally.sum = lane.tally.sum.wrapping_add(scramble(number));
        }
        Ok(())
    }
}

#[cold]
fn wrong_length(found: u64, size: usize) -> BenchError {
    BenchError::Wrong(format!("a body of {found} octets where all have {size}"))
}

#[cold]
fn out_of_place(publisher: usize, number: u64, due: u64) -> BenchError {
    let what = if number > due { "something before it is lost" } else { "it is repeated or late" };
    BenchError::Wrong(format!("message {number} of publisher {publisher} came where {due} was due: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checker(size: usize, alone: bool) -> Checker {
        let lane = Lane { next: 0, step: 1, tally: Tally::default() };
        Checker::new(size, false, vec![lane; 2], 2, alone)
    }

    fn body(size: usize, publisher: u16, number: u64) -> Vec<u8> {
        let mut body = filler(size);
        body[..8].copy_from_slice(&pack(publisher, number));
        body
    }

    /// Gives a body to a checker in pieces of a size.
    fn feed(checker: &mut Checker, body: &[u8], piece: usize) -> Result<u64, BenchError> {
        let mut incoming = checker.begin(body.len() as u64)?;
        for octets in body.chunks(piece) {
            checker.piece(&mut incoming, octets)?;
        }
        checker.complete(0, &incoming)
    }

    #[test]
    fn bodies_are_checked_whatever_pieces_they_come_in() {
        for size in [8, 15, 16, 17, 300] {
            for piece in [1, 7, 8, 9, 300] {
                let mut checker = checker(size, true);
                for number in 0..3 {
                    feed(&mut checker, &body(size, 1, number), piece).expect("as sent");
                }
                assert_eq!(checker.lanes[1].tally.count, 3);
            }
        }
    }

    #[test]
    fn what_is_lost_repeated_changed_or_cut_is_noticed() {
        let wrong = |alone, size, body: &[u8]| {
            let mut checker = checker(size, alone);
            feed(&mut checker, &super::tests::body(size, 0, 5), 99).map_or_else(drop, drop);
            checker.lanes[0].next = 5;
            feed(&mut checker, body, 99).unwrap_err().to_string()
        };
        assert!(
            wrong(true, 16, &body(16, 0, 6))
                .ends_with("message 6 of publisher 0 came where 5 was due: something before it is lost")
        );
        assert!(wrong(false, 16, &body(16, 0, 4)).ends_with("it is repeated or late"));
        assert!(wrong(true, 16, &body(16, 2, 5)).ends_with("publisher 2, which there is not"));
        assert!(wrong(true, 16, &body(15, 0, 5)).ends_with("a body of 15 octets where all have 16"));
        let mut changed = body(16, 0, 5);
        changed[15] ^= 1;
        assert!(wrong(true, 16, &changed).ends_with("differs between its octets 0 and 16"));
        assert!(checker(4, true).piece(&mut Incoming::default(), &[0, 1, 2, 3, 4]).is_err());
    }

    #[test]
    fn consumers_of_one_queue_add_up() {
        let mut sum = Tally::default();
        for first in 0..2 {
            let mut one = checker(8, false);
            for number in (first..10).step_by(2) {
                feed(&mut one, &body(8, 0, number), 8).expect("in order");
            }
            sum.add(one.lanes[0].tally);
        }
        assert_eq!(sum, Tally::of(0, 1, 10));
        assert_ne!(sum, Tally::of(1, 1, 10));
    }
}
