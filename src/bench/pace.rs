//! Sending at a rate, and what time a message counts as sent.
//!
//! Always true: message n of a publisher is due at a time that depends on nothing but n. When the broker
//! held the publisher up past it, the message counts as sent when it was due, so that a stall shows in the
//! times of all messages it delayed. When the publisher itself woke up late, it counts as sent when it was:
//! our own scheduling is not the broker's.

use std::fs;
use std::thread;
use std::time::Duration;

use super::run::{Run, nanos};

/// A publisher's timetable.
#[derive(Debug)]
pub(super) struct Pace {
    /// Of message 0.
    first_ns: u64,
    interval_ns: f64,
    /// When the last write ended.
    free_ns: u64,
}

impl Pace {
    /// `rate` messages a second over `of` publishers, who take turns.
    pub(super) fn new(rate: u64, publisher: u16, of: u16) -> Self {
        let between = 1e9 / rate as f64;
        Self {
            first_ns: (between * f64::from(publisher)) as u64,
            interval_ns: between * f64::from(of),
            free_ns: 0,
        }
    }

    fn due_ns(&self, number: u64) -> u64 {
        self.first_ns + (self.interval_ns * number as f64) as u64
    }

    /// Messages due now, `sent` of them being gone; sleeps until there is one, but not for long.
    pub(super) fn wait(&self, run: &Run, sent: u64) -> usize {
        /// Longer sleeps would not notice that the run was given up.
        const SLEEP_MAX: Duration = Duration::from_millis(100);
        let now = run.now_ns();
        let due = self.due_ns(sent);
        if now < due {
            thread::sleep(Duration::from_nanos(due - now).min(SLEEP_MAX));
            return usize::from(run.now_ns() >= due);
        }
        let due_until_now = (now - self.first_ns) as f64 / self.interval_ns;
        (due_until_now as u64 + 1).saturating_sub(sent) as usize
    }

    /// When a message counts as sent that is written now.
    pub(super) fn sent_ns(&self, number: u64, now_ns: u64) -> u64 {
        let due = self.due_ns(number);
        if due < self.free_ns { due } else { now_ns }
    }

    /// A write has ended.
    pub(super) fn wrote(&mut self, run: &Run) {
        self.free_ns = nanos(run.now());
    }
}

/// Lets this thread's sleeps end on time; the system adds 50 µs otherwise to save power.
pub(super) fn wake_on_time() {
    // Where the kernel has no such file, sleeps are a little longer: nothing to tell anybody.
    if let Ok(thread) = fs::read_link("/proc/thread-self")
        && let Some(id) = thread.file_name()
    {
        let _ = fs::write(std::path::Path::new("/proc").join(id).join("timerslack_ns"), "1");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn publishers_take_turns() {
        let due = |publisher: u16, number| Pace::new(1000, publisher, 4).due_ns(number);
        assert_eq!([due(0, 0), due(1, 0), due(0, 1), due(3, 2)], [0, 1_000_000, 4_000_000, 11_000_000]);
    }

    #[test]
    fn a_stall_of_the_broker_counts_and_our_own_does_not() {
        let mut pace = Pace::new(1000, 0, 1);
        assert_eq!(pace.sent_ns(5, 5_700_000), 5_700_000);
        pace.free_ns = 7_500_000;
        assert_eq!(pace.sent_ns(6, 7_600_000), 6_000_000);
        assert_eq!(pace.sent_ns(8, 8_100_000), 8_100_000);
    }
}
