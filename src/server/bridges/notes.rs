//! What of bridges outlives a restart: who is paused, and what was counted.
//!
//! ```text
//! forward 0 8000 12 3 2 "plant"
//! direction, paused, moved, repeats, connected, failed, name
//!
//! day 52800 1200000 3600000 "plant"
//! bytes of this day and of the one before, milliseconds that are gone of it, name
//!
//! inflow 1200 9600 "plant"
//! messages of this day and of the one before that came in to be forwarded, name
//!
//! cost forward 51200 1600 0 40000 160 90000 2400 0 60000 240 "plant"
//! direction, then of this day and of the one before: bytes sent, received, repeated, and of bodies, and
//! messages; name
//! ```
//!
//! Always true: it is written when somebody pauses or resumes a bridge, at the end, whenever a sixteenth of a
//! day's budget was used, and otherwise once an hour at most, for the sake of the flash (with a budget some
//! times in the first hour, too); numbers that a program does not know stand behind those that it does; what
//! cannot be read is as if it were not there.

use std::fmt::Write as _;

use leveret_bridge::Price;

use super::registry::{Bridges, NOTED_EVERY_MS};
use super::state::{Bridge, Counts};
use crate::platform::Platform;
use crate::shared::Shared;

/// When it is for the first time if a day has a budget, in milliseconds; every pause is twice the one
/// before, up to [`NOTED_EVERY_MS`]. So a board that is cut from its power forgets half of a life at most,
/// and its day ends.
const NOTED_FIRST_MS: u64 = 60_000;

/// What a line that begins so says of a bridge of this name: the first of its numbers.
fn read<const COUNT: usize>(line: &str, prefix: &str, name: &str) -> Option<[u64; COUNT]> {
    let (said, named) = line.strip_prefix(prefix)?.split_once('"')?;
    if format!("\"{named}") != format!("{name:?}") {
        return None;
    }
    let mut words = said.split_ascii_whitespace();
    let mut numbers = [0; COUNT];
    for number in &mut numbers {
        *number = words.next()?.parse().ok()?;
    }
    Some(numbers)
}

/// What the first line that says it says.
fn find<const COUNT: usize>(notes: &str, prefix: &str, name: &str) -> Option<[u64; COUNT]> {
    notes.lines().find_map(|line| read(line, prefix, name))
}

fn write(text: &mut String, prefix: &str, numbers: &[u64], name: &str) {
    text.push_str(prefix);
    for number in numbers {
        // Writing into a String cannot fail.
        let _ = write!(text, "{number} ");
    }
    let _ = writeln!(text, "{name:?}");
}

impl Bridge {
    fn write_notes(&self, text: &mut String, now: leveret_core::time::Now, has_day: bool) {
        let (head, name) = (&self.head, &*self.head.config.name);
        for link in &self.links {
            let what = link.direction.name();
            let Counts { moved, repeats, connected, failed } = link.state.counts;
            let numbers = [u64::from(head.is_paused), moved, repeats, connected, failed];
            write(text, &format!("{what} "), &numbers, name);
            if has_day {
                let days = [link.state.today, link.state.yesterday];
                let numbers: Vec<u64> = days.iter().flat_map(Price::numbers).collect();
                write(text, &format!("cost {what} "), &numbers, name);
            }
        }
        if has_day {
            write(text, "day ", &head.day.numbers(now), name);
            write(text, "inflow ", &head.inflow.numbers(), name);
        }
    }

    fn read_notes(&mut self, notes: &str, now: leveret_core::time::Now) {
        let name = self.head.config.name.clone();
        if let Some(day) = find(notes, "day ", &name) {
            self.head.day.restore(now, day);
        }
        if let Some(inflow) = find(notes, "inflow ", &name) {
            self.head.inflow.restore(inflow);
        }
        let mut was_paused = false;
        for link in &mut self.links {
            let what = link.direction.name();
            if let Some(numbers) = find(notes, &format!("cost {what} "), &name) {
                let days: [u64; 2 * Price::NUMBERS] = numbers;
                if let [today, yesterday] = days.as_chunks().0 {
                    link.state.today = Price::from_numbers(*today);
                    link.state.yesterday = Price::from_numbers(*yesterday);
                }
            }
            let numbers = find(notes, &format!("{what} "), &name);
            if let Some([is_paused, moved, repeats, connected, failed]) = numbers {
                link.state.counts = Counts { moved, repeats, connected, failed };
                was_paused |= is_paused == 1;
            }
        }
        if was_paused {
            self.pause();
        }
    }
}

impl Bridges {
    /// What is to be written down; `None`: there are no bridges.
    #[cold]
    pub(crate) fn notes<P: Platform>(&mut self, shared: &Shared<P>) -> Option<String> {
        self.places.iter_mut().for_each(|bridge| bridge.note_inflow(&shared.broker));
        self.notes_with_days(shared, |_| true)
    }

    /// The same, with the days of those bridges alone.
    fn notes_with_days<P: Platform>(
        &self,
        shared: &Shared<P>,
        has_day: impl Fn(&Bridge) -> bool,
    ) -> Option<String> {
        let mut text = String::new();
        for bridge in self.places.iter().filter(|bridge| !bridge.head.is_leaving) {
            bridge.write_notes(&mut text, shared.now, has_day(bridge));
        }
        (!text.is_empty()).then_some(text)
    }

    /// Takes up what was written down; the bridges are there already, and nothing has been done with them.
    #[cold]
    pub(crate) fn restore(&mut self, notes: &str, now: leveret_core::time::Now) {
        self.places.iter_mut().for_each(|bridge| bridge.read_notes(notes, now));
    }

    /// A bridge begins: what it counts is to be written down, too.
    pub(super) fn plan_notes(&mut self, has_budget: bool, now: leveret_core::time::Now) {
        if has_budget {
            self.note_pause_ms = NOTED_FIRST_MS;
        }
        self.common.note_due = self.common.note_due.earlier(now.after_ms(self.note_pause_ms));
    }

    /// Has written down what changed, if it is time.
    pub(super) fn write_notes<P: Platform>(&mut self, shared: &mut Shared<P>) {
        if !self.common.note_due.is_due(shared.now) {
            return;
        }
        self.note_pause_ms = (2 * self.note_pause_ms).min(NOTED_EVERY_MS);
        self.common.note_due = shared.now.after_ms(self.note_pause_ms);
        // The day goes on whatever happens; where it is only counted, it is no reason to write.
        let reason = self.notes_with_days(shared, |bridge| bridge.head.config.day_bytes_max.is_some());
        if reason != self.noted {
            shared.worker.note = self.notes(shared);
            self.noted = reason;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_by_the_bridge_that_it_is_of() {
        let line = "forward 1 8000 12 3 2 \"a \\\"b\\n\"";
        assert_eq!(read(line, "forward ", "a \"b\n"), Some([1, 8000, 12, 3, 2]));
        assert_eq!(read::<5>(line, "fetch ", "a \"b\n"), None);
        assert_eq!(read::<5>(line, "forward ", "a"), None);
        let torn =
            ["", "forward", "forward 1 2", "forward x 8000 12 3 2 \"a\"", "forward 1 2 3 \"a\"", &line[..20]];
        assert_eq!(torn.map(|torn| read::<5>(torn, "forward ", "a")), [None; 6]);
    }

    /// Programs before this one wrote down how many messages were parked, by six causes.
    #[test]
    fn what_an_older_program_wrote_behind_it_is_left_out() {
        let line = "forward 1 8000 12 3 2 0 0 10 0 0 7 \"plant\"";
        assert_eq!(read(line, "forward ", "plant"), Some([1, 8000, 12, 3, 2]));
        for name in ["a", "1 2 3 4 5 6 7 8 9"] {
            let line = format!("day 52800 1200000 3600000 {name:?}");
            assert_eq!(read(&line, "day ", name), Some([52_800, 1_200_000, 3_600_000]));
            assert_eq!(read::<3>(&line, "day ", "b"), None);
        }
    }
}
