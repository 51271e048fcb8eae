//! The parts of the store that could not be read, remembered in the store until an operator acknowledges them.
//!
//! A board restarts with nobody on site, the broker's log may be in memory, and a damaged segment leaves the disk when its
//! last message is consumed. So a start writes what it could not read as a definition into the log itself. A later start
//! adds what it finds, and `leveretctl acknowledge_damage` marks all of it as seen.
//!
//! ```text
//! key   | 8 | 0 |
//! value | flags: 1 acknowledged | count u16 | CRC32C of each sentence, count u32 | one sentence per line, UTF-8 |
//! ```
//!
//! Little endian. Only the first sentences are kept as text; the sums tell of all of them whether they are new.
//!
//! Always true: the value takes at most [`SUMS_MAX`] sums and [`TEXT_BYTES_MAX`] bytes of text.

/// The most sentences that are remembered; of more the oldest are forgotten.
const SUMS_MAX: usize = 256;
/// The most bytes of the sentences that are kept as text, line breaks included.
const TEXT_BYTES_MAX: usize = 2048;
const ACKNOWLEDGED: u8 = 1;

/// Sentences about what could not be read.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ReportedDamage {
    /// Sums of all sentences, oldest first.
    sums: Vec<u32>,
    /// The first of them as text.
    lines: Vec<Box<str>>,
    is_acknowledged: bool,
}

impl ReportedDamage {
    /// Reads the value of the definition; what makes no sense is as if it were not there.
    pub fn parse(value: &[u8]) -> Self {
        let parsed = || {
            let (flags, rest) = value.split_first()?;
            let (count, rest) = rest.split_first_chunk::<2>()?;
            let (sums, text) = rest.split_at_checked(4 * usize::from(u16::from_le_bytes(*count)))?;
            let sums = sums.as_chunks::<4>().0.iter().map(|sum| u32::from_le_bytes(*sum)).collect();
            let lines = String::from_utf8_lossy(text).lines().map(Box::from).collect();
            Some(Self { sums, lines, is_acknowledged: flags & ACKNOWLEDGED != 0 })
        };
        parsed().unwrap_or_default()
    }

    /// The value of the definition; `None` when there is nothing to remember.
    pub fn value(&self) -> Option<Vec<u8>> {
        if self.sums.is_empty() {
            return None;
        }
        let mut value = vec![u8::from(self.is_acknowledged) * ACKNOWLEDGED];
        value.extend_from_slice(&(self.sums.len() as u16).to_le_bytes());
        self.sums.iter().for_each(|sum| value.extend_from_slice(&sum.to_le_bytes()));
        value.extend_from_slice(self.lines.join("\n").as_bytes());
        Some(value)
    }

    /// The sentences that are kept as text, oldest first.
    pub fn lines(&self) -> &[Box<str>] {
        &self.lines
    }

    /// How many sentences there are, kept as text or not.
    pub fn count(&self) -> usize {
        self.sums.len()
    }

    /// Whether an operator has not acknowledged them yet.
    pub fn is_alarm(&self) -> bool {
        !self.sums.is_empty() && !self.is_acknowledged
    }

    /// Marks all of them as seen.
    pub fn acknowledge(&mut self) {
        self.is_acknowledged = true;
    }

    /// Adds a sentence without a line break; returns whether it is a new one.
    pub fn add(&mut self, line: &str) -> bool {
        let sum = crc32c::crc32c(line.as_bytes());
        if self.sums.contains(&sum) {
            return false;
        }
        if self.sums.len() == SUMS_MAX {
            self.sums.remove(0);
        }
        self.sums.push(sum);
        let bytes = self.lines.iter().map(|line| line.len() + 1).sum::<usize>();
        if bytes + line.len() <= TEXT_BYTES_MAX {
            self.lines.push(line.into());
        }
        self.is_acknowledged = false;
        true
    }

    /// Takes in what a start found: sentences about segments that were acknowledged and no longer hold are dropped. A start
    /// does not find messages that could not be delivered, so those sentences stay.
    pub fn merge(&mut self, found: &[String]) {
        if self.is_acknowledged {
            let holds =
                |line: &str| line.starts_with(UNDELIVERED) || found.iter().any(|found| **found == *line);
            let (kept, gone): (Vec<_>, Vec<_>) = self.lines.drain(..).partition(|line| holds(line));
            let gone: Vec<u32> = gone.iter().map(|line| crc32c::crc32c(line.as_bytes())).collect();
            self.lines = kept;
            self.sums.retain(|sum| !gone.contains(sum));
        }
        for line in found {
            self.add(line);
        }
    }
}

/// What a sentence about messages begins with that could not be delivered.
pub const UNDELIVERED: &str = "messages ";

#[cfg(test)]
mod tests {
    use super::*;

    fn found(lines: &[&str]) -> Vec<String> {
        lines.iter().map(|line| line.to_string()).collect()
    }

    fn read_back(damage: &ReportedDamage) -> ReportedDamage {
        let read = ReportedDamage::parse(&damage.value().expect("there are some"));
        assert_eq!(read, *damage);
        read
    }

    #[test]
    fn an_acknowledged_loss_is_no_alarm_until_there_is_another() {
        let mut damage = ReportedDamage::default();
        assert!(damage.value().is_none() && !damage.is_alarm());
        damage.merge(&found(&["a", "b"]));
        assert!(damage.is_alarm());
        let mut damage = read_back(&damage);
        // What left the disk before anybody saw it stays.
        damage.merge(&found(&["b"]));
        assert!(damage.is_alarm() && damage.lines().len() == 2);
        damage.acknowledge();
        let mut damage = read_back(&damage);
        damage.merge(&found(&["b"]));
        assert!(!damage.is_alarm() && damage.lines() == [Box::from("b")]);
        damage.merge(&found(&["b", "c"]));
        assert!(damage.is_alarm());
        damage.acknowledge();
        damage.merge(&[]);
        assert_eq!(damage.value(), None);
    }

    #[test]
    fn messages_that_could_not_be_delivered_are_no_alarm_again_after_a_start() {
        let mut damage = ReportedDamage::default();
        let line = format!("{UNDELIVERED}3 to 4 of queue 'q' could not be read back");
        assert!(damage.add(&line) && damage.is_alarm());
        damage.acknowledge();
        damage.merge(&[]);
        assert!(!damage.add(&line) && !damage.is_alarm());
        assert!(damage.add("messages 5 to 6 of queue 'q' could not be read back") && damage.is_alarm());
    }

    #[test]
    fn however_many_there_are_they_take_a_bounded_number_of_bytes_and_the_next_is_an_alarm() {
        let mut many: Vec<String> =
            (0..200).map(|number| format!("segment {number} cannot be read")).collect();
        let mut damage = ReportedDamage::default();
        damage.merge(&many);
        assert_eq!(damage.count(), 200);
        damage.acknowledge();
        damage.merge(&many);
        assert!(!damage.is_alarm());
        // Those that are kept as text have left the disk: the others are not new.
        many.drain(..50);
        damage.merge(&many);
        assert!(!damage.is_alarm());
        many.push("segment 300 cannot be read".to_string());
        damage.merge(&many);
        assert!(damage.is_alarm());
        for number in 0..1000 {
            damage.add(&format!("file {number} cannot be read"));
        }
        let most = 3 + 4 * SUMS_MAX + TEXT_BYTES_MAX;
        assert!(damage.value().is_some_and(|value| value.len() <= most));
    }

    #[test]
    fn what_makes_no_sense_is_nothing() {
        for value in [&[][..], &[1], &[1, 9, 0, 1, 2]] {
            assert_eq!(ReportedDamage::parse(value), ReportedDamage::default());
        }
    }
}
