//! What came from upstream and is not acknowledged there: the window of a link that fetches.
//!
//! Always true: the upstream's tags rise; one is acknowledged when what came with it is durable here, and all
//! before it are.

use std::collections::VecDeque;

use leveret_core::journal::Batch;

/// One message that was taken over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Arrival {
    tag: u64,
    batch: Batch,
}

/// The window.
#[derive(Debug)]
pub struct Arrivals {
    ring: VecDeque<Arrival>,
    /// The upstream was asked for so many ahead of what is acknowledged.
    ahead: usize,
    /// There are no more of them, whatever it was asked for before.
    window: usize,
}

impl Arrivals {
    /// Nothing has come, and the upstream is to send no more than so many ahead.
    pub fn new(ahead: usize) -> Self {
        Self { ring: VecDeque::with_capacity(ahead), ahead, window: ahead }
    }

    /// The consumer there begins again, and is to send no more than `ahead`: beside those that are here, and
    /// those of the one before that may still be under way.
    pub fn begin_again(&mut self, ahead: usize) {
        self.window = self.ring.len() + self.ahead + ahead;
        self.ahead = ahead;
    }

    /// Whether nothing waits to be acknowledged.
    pub fn is_empty(&self) -> bool {
        self.ring.is_empty()
    }

    /// Messages that wait to be acknowledged.
    pub fn len(&self) -> usize {
        self.ring.len()
    }

    /// The message of this tag is ours when this batch is durable. `false`: the upstream sends more than it
    /// was asked for, or tags that do not rise.
    #[must_use]
    pub fn take(&mut self, tag: u64, batch: Batch) -> bool {
        let rises = self.ring.back().is_none_or(|last| last.tag < tag);
        let fits = self.ring.len() < self.window;
        if rises && fits {
            self.ring.push_back(Arrival { tag, batch });
        }
        rises && fits
    }

    /// The next tag that can be acknowledged now: of one message, or where `together`, of as many as are
    /// durable; and how many messages that are.
    pub fn next_durable(&mut self, durable: Batch, together: bool) -> Option<(u64, u64)> {
        let mut found = None;
        let mut count = 0;
        while let Some(arrival) = self.ring.front().copied() {
            if arrival.batch > durable {
                break;
            }
            self.ring.pop_front();
            count += 1;
            found = Some((arrival.tag, count));
            if !together {
                break;
            }
        }
        found
    }
}
