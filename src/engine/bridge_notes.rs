//! What of bridges outlives a restart: who is paused, and what was counted.
//!
//! ```text
//! forward 0 8000 12 3 2 0 0 10 0 0 0 "plant"
//! direction, paused, moved, repeats, connected, failed, parked by cause, name
//!
//! day 52800 1200000 3600000 "plant"
//! bytes of this day and of the one before, milliseconds that are gone of it, name
//!
//! inflow 1200 9600 "plant"
//! messages of this day and of the one before that came in to be forwarded, name
//!
//! price forward 51200 1600 40000 0 0 480 160 90000 2400 60000 0 0 960 240 "plant"
//! direction, then of this day and of the one before: bytes sent, received, payload, of repeats, of
//! handshakes and heartbeats, and messages; name
//! ```
//!
//! Always true: it is written when somebody pauses or resumes a bridge, at the end, whenever a sixteenth of a
//! day's budget was used, and otherwise once an hour at most, for the sake of the flash (with a budget some
//! times in the first hour, too); what cannot be read
//! is as if it were not there, so an older or a newer program takes the lines that it knows.

use std::fmt::Write as _;

use crate::bridge::Price;
use crate::log_limiter::{LogKind, LogSource};

use super::bridge_link::Direction;
use super::bridge_state::{Bridge, Counts, LinkState, NOTED_EVERY_MS, PARKED_KINDS};
use super::platform::Platform;
use super::state::Engine;

/// Numbers in a line.
const NUMBERS: usize = 5 + PARKED_KINDS.len();

impl Counts {
    fn numbers(&self, is_paused: bool) -> [u64; NUMBERS] {
        let mut all = [0; NUMBERS];
        let first = [u64::from(is_paused), self.moved, self.repeats, self.connected, self.failed];
        all[..5].copy_from_slice(&first);
        all[5..].copy_from_slice(&self.parked);
        all
    }
}

fn line(bridge: &Bridge, direction: Direction, state: &LinkState, text: &mut String) {
    text.push_str(direction.name());
    for number in state.counts.numbers(bridge.is_paused) {
        // Writing into a String cannot fail.
        let _ = write!(text, " {number}");
    }
    let _ = writeln!(text, " {:?}", bridge.config.name);
}

/// What a line says of a bridge of this name; `None`: it is another's, or no such line.
fn read(line: &str, direction: Direction, name: &str) -> Option<[u64; NUMBERS]> {
    let mut words = line.splitn(NUMBERS + 2, ' ');
    let is_its = words.next() == Some(direction.name());
    let mut numbers = [0; NUMBERS];
    for number in &mut numbers {
        *number = words.next()?.parse().ok()?;
    }
    (is_its && words.next()? == format!("{name:?}")).then_some(numbers)
}

/// What a line that begins so says of a bridge of this name.
fn read_numbers<const COUNT: usize>(line: &str, prefix: &str, name: &str) -> Option<[u64; COUNT]> {
    let mut words = line.strip_prefix(prefix)?.splitn(COUNT + 1, ' ');
    let mut numbers = [0; COUNT];
    for number in &mut numbers {
        *number = words.next()?.parse().ok()?;
    }
    (words.next()? == format!("{name:?}")).then_some(numbers)
}

/// What a line says of the day of a bridge of this name.
fn read_day(line: &str, name: &str) -> Option<[u64; 3]> {
    read_numbers(line, "day ", name)
}

/// How a line begins that has a link's price.
const fn price_prefix(direction: Direction) -> &'static str {
    match direction {
        Direction::Forward => "price forward ",
        Direction::Fetch => "price fetch ",
    }
}

/// This day's, and the one's before.
fn read_price(line: &str, direction: Direction, name: &str) -> Option<[Price; 2]> {
    let numbers: [u64; 2 * Price::NUMBERS] = read_numbers(line, price_prefix(direction), name)?;
    let (today, yesterday) = numbers.as_chunks().0.split_first()?;
    Some([Price::from_numbers(*today), Price::from_numbers(*yesterday.first()?)])
}

fn price_line(bridge: &Bridge, direction: Direction, state: &LinkState, text: &mut String) {
    text.push_str(price_prefix(direction));
    for number in [state.today, state.yesterday].iter().flat_map(Price::numbers) {
        let _ = write!(text, "{number} ");
    }
    let _ = writeln!(text, "{:?}", bridge.config.name);
}

impl<P: Platform> Engine<P> {
    /// What is to be written down of bridges; `None`: there are none.
    #[cold]
    pub fn bridge_notes(&mut self) -> Option<String> {
        (0..self.bridges.places.len()).for_each(|place| self.note_inflow(place));
        self.notes(|_| true)
    }

    /// The same, with the days of those bridges alone.
    fn notes(&self, has_day: impl Fn(&Bridge) -> bool) -> Option<String> {
        let mut text = String::new();
        for bridge in self.bridges.places.iter().filter(|bridge| !bridge.is_leaving) {
            for direction in Direction::BOTH {
                if let Some(state) = &bridge.links[direction as usize] {
                    line(bridge, direction, state, &mut text);
                }
            }
            if has_day(bridge) {
                let [used, yesterday, gone_ms] = bridge.day.numbers(self.now);
                let _ = writeln!(text, "day {used} {yesterday} {gone_ms} {:?}", bridge.config.name);
                let [today, yesterday] = bridge.inflow.numbers();
                let _ = writeln!(text, "inflow {today} {yesterday} {:?}", bridge.config.name);
                for direction in Direction::BOTH {
                    if let Some(state) = &bridge.links[direction as usize] {
                        price_line(bridge, direction, state, &mut text);
                    }
                }
            }
        }
        (!text.is_empty()).then_some(text)
    }

    /// Takes up what was written down; the bridges are there already, and nothing has been done with them.
    #[cold]
    pub fn restore_bridges(&mut self, notes: &str) {
        for bridge in &mut self.bridges.places {
            let name = bridge.config.name.clone();
            if let Some([used, yesterday, gone_ms]) = notes.lines().find_map(|line| read_day(line, &name)) {
                bridge.day.restore(self.now, used, yesterday, gone_ms);
            }
            if let Some(inflow) = notes.lines().find_map(|line| read_numbers(line, "inflow ", &name)) {
                bridge.inflow.restore(inflow);
            }
            for direction in Direction::BOTH {
                let noted = notes.lines().find_map(|line| read(line, direction, &name));
                let Some(state) = &mut bridge.links[direction as usize] else { continue };
                if let Some(prices) = notes.lines().find_map(|line| read_price(line, direction, &name)) {
                    [state.today, state.yesterday] = prices;
                }
                let Some(noted) = noted else { continue };
                let [is_paused, moved, repeats, connected, failed, parked @ ..] = noted;
                state.counts = Counts { moved, repeats, parked, connected, failed };
                if is_paused == 1 {
                    bridge.pause();
                }
            }
        }
    }

    /// Has written down what changed, if it is time.
    pub(super) fn note_bridges(&mut self) {
        if self.bridges.note_due.is_due(self.now) {
            let pause_ms = (2 * self.bridges.note_pause_ms).min(NOTED_EVERY_MS);
            self.bridges.note_pause_ms = pause_ms;
            self.bridges.note_due = self.now.after_ms(pause_ms);
            // The day goes on whatever happens; where it is only counted, it is no reason to write.
            let reason = self.notes(|bridge| bridge.config.day_bytes_max.is_some());
            if reason != self.bridges.noted {
                self.worker.note = self.bridge_notes();
                self.bridges.noted = reason;
            }
        }
    }

    /// That was done, or could not be.
    #[cold]
    pub(super) fn take_noted(&mut self, noted: Result<(), String>) {
        if let Err(why) = noted {
            let text = format_args!("what was done with bridges cannot be written down: {why}");
            self.supplies.log.warn(self.now, LogSource::Anybody, LogKind::Bridge, text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_by_the_bridge_that_it_is_of() {
        let line = "forward 1 8000 12 3 2 0 0 10 0 0 7 \"a \\\"b\\n\"";
        let numbers = [1, 8000, 12, 3, 2, 0, 0, 10, 0, 0, 7];
        assert_eq!(read(line, Direction::Forward, "a \"b\n"), Some(numbers));
        assert_eq!(read(line, Direction::Fetch, "a \"b\n"), None);
        assert_eq!(read(line, Direction::Forward, "a"), None);
        for torn in ["", "forward", "forward 1 2", "forward x 8000 12 3 2 0 0 10 0 0 7 \"a\"", &line[..20]] {
            assert_eq!(read(torn, Direction::Forward, "a"), None, "{torn}");
        }
    }

    #[test]
    fn the_line_of_a_day_is_nothing_to_a_program_that_reads_links_only() {
        for name in ["a", "1 2 3 4 5 6 7 8 9"] {
            let line = format!("day 52800 1200000 3600000 {name:?}");
            assert_eq!(read_day(&line, name), Some([52_800, 1_200_000, 3_600_000]));
            assert_eq!((read_day(&line, "b"), read(&line, Direction::Forward, name)), (None, None));
        }
        for torn in ["", "day", "day 1 2", "day 1 x 3 \"a\"", "forward 1 2 3 \"a\""] {
            assert_eq!(read_day(torn, "a"), None, "{torn}");
        }
    }
}
