//! Publisher confirms: what is unconfirmed, and how long confirming took.
//!
//! The publisher counts up what it sent, whoever reads the socket counts up what was confirmed; they may be
//! two threads. Always true: at most as many messages as the window is wide are unconfirmed, counted from
//! the oldest one; a confirm of what was not sent, or was confirmed before, is an error.
//!
//! ```text
//!    tags     1 2 3 4 | 5 6 7 8 9 | 10 11          5: the oldest unconfirmed, 9: the last sent
//!    stamps           | t 0 t t t |                0: confirmed out of turn
//! ```

use std::sync::atomic::{AtomicU64, Ordering};

use super::error::BenchError;
use super::histogram::Histogram;

/// Unconfirmed messages of one publisher.
#[derive(Debug)]
pub(super) struct Window {
    /// By tag, round and round: when it was sent, or 0.
    stamps: Box<[AtomicU64]>,
    sent: AtomicU64,
    confirmed: AtomicU64,
}

impl Window {
    pub(super) fn new(width: u32) -> Self {
        Self {
            stamps: (0..width).map(|_| AtomicU64::new(0)).collect(),
            sent: AtomicU64::new(0),
            confirmed: AtomicU64::new(0),
        }
    }

    /// Messages that may be sent now.
    pub(super) fn room(&self) -> usize {
        let unconfirmed = self.sent.load(Ordering::Relaxed) - self.confirmed.load(Ordering::Acquire);
        self.stamps.len() - unconfirmed as usize
    }

    /// `count` messages are about to be sent; there is room for them.
    pub(super) fn send(&self, count: usize, now_ns: u64) {
        let sent = self.sent.load(Ordering::Relaxed);
        for tag in sent + 1..=sent + count as u64 {
            self.stamp(tag).store(now_ns.max(1), Ordering::Relaxed);
        }
        self.sent.store(sent + count as u64, Ordering::Release);
    }

    /// Whether nothing is unconfirmed.
    pub(super) fn is_empty(&self) -> bool {
        self.sent.load(Ordering::Acquire) == self.confirmed.load(Ordering::Acquire)
    }

    /// Takes in a confirm.
    pub(super) fn confirm(
        &self,
        tag: u64,
        multiple: bool,
        now_ns: u64,
        times: &mut Histogram,
    ) -> Result<(), BenchError> {
        let sent = self.sent.load(Ordering::Acquire);
        let mut confirmed = self.confirmed.load(Ordering::Relaxed);
        if tag <= confirmed || tag > sent {
            return Err(bad_confirm(tag));
        }
        let first = if multiple { confirmed + 1 } else { tag };
        for tag in first..=tag {
            let stamp = self.stamp(tag).swap(0, Ordering::Relaxed);
            if stamp != 0 {
                times.record(now_ns.saturating_sub(stamp));
            } else if !multiple {
                return Err(bad_confirm(tag));
            }
        }
        while confirmed < sent && self.stamp(confirmed + 1).load(Ordering::Relaxed) == 0 {
            confirmed += 1;
        }
        self.confirmed.store(confirmed, Ordering::Release);
        Ok(())
    }

    fn stamp(&self, tag: u64) -> &AtomicU64 {
        &self.stamps[(tag % self.stamps.len() as u64) as usize]
    }
}

#[cold]
fn bad_confirm(tag: u64) -> BenchError {
    BenchError::Wrong(format!("message {tag} was confirmed twice, or before it was sent"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_and_multiple_confirms_in_any_order() {
        let window = Window::new(4);
        let mut times = Histogram::default();
        assert_eq!(window.room(), 4);
        window.send(4, 100);
        assert_eq!(window.room(), 0);
        window.confirm(2, false, 150, &mut times).expect("out of turn");
        assert_eq!(window.room(), 0);
        window.confirm(3, true, 160, &mut times).expect("multiple");
        assert_eq!((window.room(), window.is_empty()), (3, false));
        window.send(3, 200);
        window.confirm(7, true, 300, &mut times).expect("all");
        assert!(window.is_empty());
        assert_eq!((times.count(), times.max()), (7, 200));
    }

    #[test]
    fn confirms_that_make_no_sense() {
        let window = Window::new(4);
        let mut times = Histogram::default();
        window.send(3, 1);
        assert!(window.confirm(4, false, 2, &mut times).is_err());
        window.confirm(2, false, 2, &mut times).expect("sent");
        assert!(window.confirm(2, false, 2, &mut times).is_err());
        window.confirm(1, true, 2, &mut times).expect("sent");
        assert!(window.confirm(1, true, 2, &mut times).is_err());
        assert!(window.confirm(0, true, 2, &mut times).is_err());
    }
}
