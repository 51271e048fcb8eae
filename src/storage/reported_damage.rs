//! Reports about parts of the store that could not be read. They are stored in the log until an operator
//! acknowledges them.
//!
//! An operator may not see the log lines about damage: boards restart unattended, and the log file may be in
//! memory. Also, a damaged segment is deleted when its last message is consumed. So recovery appends the
//! reports to the log as a definition, and each later recovery adds new ones. `leveretctl acknowledge_damage`
//! marks all reports as acknowledged.
//!
//! ```text
//! key   | 8 | 0 |
//! value | flags: 1 acknowledged, 2 filtered | count u16 | CRC32C of each report, count u32 | filter | text |
//! filter| only if filtered: number of reports in it u32 | FILTER_BYTES                                      |
//! text  | one report per line, UTF-8                                                                        |
//! ```
//!
//! Numbers are little endian. Only the first reports are kept as text. The newest have a checksum, by which a
//! repeated report is recognized. Older ones are in a Bloom filter: each sets six bits, so that any number of reports
//! is recognized. The filter takes a new report for a repeated one with a chance of 1 in 1,000 if 2,000 are in it, and
//! of 1 in 45 if 4,000 are. Such a report raises no alarm.
//!
//! # Invariants
//! - The value has at most [`CHECKSUMS_MAX`] checksums, one filter, and [`TEXT_BYTES_MAX`] bytes of text.

/// Maximum number of reports with a checksum. If there are more, the oldest go into the filter.
const CHECKSUMS_MAX: usize = 256;
/// Bytes of the filter.
const FILTER_BYTES: usize = 4096;
/// Bits of the filter that each report sets.
const FILTER_HASHES: u32 = 6;
/// Maximum bytes of the reports kept as text, line breaks included.
const TEXT_BYTES_MAX: usize = 2048;
const ACKNOWLEDGED: u8 = 1;
const FILTERED: u8 = 2;

/// Prefix of reports about messages that could not be delivered.
pub const UNDELIVERED: &str = "messages ";

/// Reports about parts of the store that could not be read. A report is one line of text.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ReportedDamage {
    /// Checksums of the newest reports, oldest first.
    checksums: Vec<u32>,
    /// The filter with all older reports; empty if there are none.
    filter: Vec<u8>,
    /// Number of reports in the filter.
    filtered: u32,
    /// The first reports as text.
    lines: Vec<Box<str>>,
    is_acknowledged: bool,
}

impl ReportedDamage {
    /// Parses the value of the definition. An invalid value is treated as if there were no reports.
    pub fn parse(value: &[u8]) -> Self {
        let parsed = || {
            let (flags, rest) = value.split_first()?;
            let (count, rest) = rest.split_first_chunk::<2>()?;
            let (checksums, rest) = rest.split_at_checked(4 * usize::from(u16::from_le_bytes(*count)))?;
            let (filtered, filter, text) = match flags & FILTERED {
                0 => (0, &[][..], rest),
                _ => {
                    let (filtered, rest) = rest.split_first_chunk::<4>()?;
                    let (filter, text) = rest.split_at_checked(FILTER_BYTES)?;
                    (u32::from_le_bytes(*filtered), filter, text)
                }
            };
            let checksums =
                checksums.as_chunks::<4>().0.iter().map(|checksum| u32::from_le_bytes(*checksum)).collect();
            let lines = String::from_utf8_lossy(text).lines().map(Box::from).collect();
            let is_acknowledged = flags & ACKNOWLEDGED != 0;
            Some(Self { checksums, filter: filter.to_vec(), filtered, lines, is_acknowledged })
        };
        parsed().unwrap_or_default()
    }

    /// Returns the value of the definition; `None` if there are no reports.
    pub fn value(&self) -> Option<Vec<u8>> {
        if self.count() == 0 {
            return None;
        }
        let is_filtered = !self.filter.is_empty();
        let mut value =
            vec![u8::from(self.is_acknowledged) * ACKNOWLEDGED + u8::from(is_filtered) * FILTERED];
        value.extend_from_slice(&(self.checksums.len() as u16).to_le_bytes());
        self.checksums.iter().for_each(|checksum| value.extend_from_slice(&checksum.to_le_bytes()));
        if is_filtered {
            value.extend_from_slice(&self.filtered.to_le_bytes());
            value.extend_from_slice(&self.filter);
        }
        value.extend_from_slice(self.lines.join("\n").as_bytes());
        Some(value)
    }

    /// Returns the reports kept as text, oldest first.
    pub fn lines(&self) -> &[Box<str>] {
        &self.lines
    }

    /// Returns the number of reports, with or without text.
    pub fn count(&self) -> usize {
        self.checksums.len() + self.filtered as usize
    }

    /// Returns whether there are reports that an operator has not acknowledged.
    pub fn is_alarm(&self) -> bool {
        self.count() > 0 && !self.is_acknowledged
    }

    /// Marks all reports as acknowledged.
    pub fn acknowledge(&mut self) {
        self.is_acknowledged = true;
    }

    /// Adds a report, a text without a line break. Returns whether it is new.
    pub fn add(&mut self, line: &str) -> bool {
        let checksum = crc32c::crc32c(line.as_bytes());
        if self.checksums.contains(&checksum) || self.is_filtered(checksum) {
            return false;
        }
        if self.checksums.len() == CHECKSUMS_MAX {
            let oldest = self.checksums.remove(0);
            self.filter.resize(FILTER_BYTES, 0);
            filter_bits(oldest).for_each(|(byte, bit)| self.filter[byte] |= bit);
            self.filtered += 1;
        }
        self.checksums.push(checksum);
        let bytes = self.lines.iter().map(|line| line.len() + 1).sum::<usize>();
        if bytes + line.len() <= TEXT_BYTES_MAX {
            self.lines.push(line.into());
        }
        self.is_acknowledged = false;
        true
    }

    fn is_filtered(&self, checksum: u32) -> bool {
        !self.filter.is_empty() && filter_bits(checksum).all(|(byte, bit)| self.filter[byte] & bit != 0)
    }

    /// Merges the reports that a recovery `found`.
    ///
    /// Removes acknowledged reports about segments that this recovery did not find again. Reports about
    /// messages that could not be delivered stay, because recovery does not search for these messages.
    pub fn merge(&mut self, found: &[String]) {
        if self.is_acknowledged {
            let holds =
                |line: &str| line.starts_with(UNDELIVERED) || found.iter().any(|found| **found == *line);
            let (kept, gone): (Vec<_>, Vec<_>) = self.lines.drain(..).partition(|line| holds(line));
            let gone: Vec<u32> = gone.iter().map(|line| crc32c::crc32c(line.as_bytes())).collect();
            self.lines = kept;
            self.checksums.retain(|checksum| !gone.contains(checksum));
        }
        for line in found {
            self.add(line);
        }
    }
}

/// Returns the bits of a report in the filter: the byte, and the bit in it.
fn filter_bits(checksum: u32) -> impl Iterator<Item = (usize, u8)> {
    // Two parts of the checksum that do not overlap: the first bit, and the distance between bits.
    let (first, step) = (checksum, (checksum >> 15) | 1);
    (0..FILTER_HASHES).map(move |number| {
        let bit = first.wrapping_add(number.wrapping_mul(step)) as usize % (8 * FILTER_BYTES);
        (bit / 8, 1 << (bit % 8))
    })
}

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
    fn acknowledged_damage_is_no_alarm_until_there_is_more() {
        let mut damage = ReportedDamage::default();
        assert!(damage.value().is_none() && !damage.is_alarm());
        damage.merge(&found(&["a", "b"]));
        assert!(damage.is_alarm());
        let mut damage = read_back(&damage);
        // A report stays although its segment left the disk before it was acknowledged.
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
    fn acknowledged_undelivered_messages_are_no_alarm_after_a_restart() {
        let mut damage = ReportedDamage::default();
        let line = format!("{UNDELIVERED}3 to 4 of queue 'q' could not be read back");
        assert!(damage.add(&line) && damage.is_alarm());
        damage.acknowledge();
        damage.merge(&[]);
        assert!(!damage.add(&line) && !damage.is_alarm());
        assert!(damage.add("messages 5 to 6 of queue 'q' could not be read back") && damage.is_alarm());
    }

    #[test]
    fn the_value_is_bounded_and_a_new_report_beyond_the_bound_still_raises_the_alarm() {
        let mut many: Vec<String> =
            (0..200).map(|number| format!("segment {number} cannot be read")).collect();
        let mut damage = ReportedDamage::default();
        damage.merge(&many);
        assert_eq!(damage.count(), 200);
        damage.acknowledge();
        damage.merge(&many);
        assert!(!damage.is_alarm());
        // The segments of the reports with text have left the disk. The others are not new.
        many.drain(..50);
        damage.merge(&many);
        assert!(!damage.is_alarm());
        many.push("segment 300 cannot be read".to_string());
        damage.merge(&many);
        assert!(damage.is_alarm());
        for number in 0..1000 {
            damage.add(&format!("file {number} cannot be read"));
        }
        let most = 3 + 4 * CHECKSUMS_MAX + 4 + FILTER_BYTES + TEXT_BYTES_MAX;
        assert!(damage.value().is_some_and(|value| value.len() <= most));
    }

    #[test]
    fn no_acknowledged_report_comes_again_however_many_there_are() {
        let mut many: Vec<String> =
            (0..2_000).map(|number| format!("segment {number} cannot be read")).collect();
        let mut damage = ReportedDamage::default();
        damage.merge(&many);
        assert!(damage.is_alarm());
        assert!((1_990..=2_000).contains(&damage.count()), "{}", damage.count());
        damage.acknowledge();
        for start in 0..3 {
            damage = read_back(&damage);
            damage.merge(&many);
            assert!(!damage.is_alarm(), "start {start}");
            // Segments leave the disk.
            many.drain(..100);
        }
        let is_new = |number: &u32| damage.clone().add(&format!("file {number} cannot be read"));
        assert!((0..1_000).filter(is_new).count() > 980, "new damage raises the alarm");
    }

    #[test]
    fn an_invalid_value_counts_as_absent() {
        for value in [&[][..], &[1], &[1, 9, 0, 1, 2], &[3, 0, 0, 1, 0, 0, 0, 7]] {
            assert_eq!(ReportedDamage::parse(value), ReportedDamage::default());
        }
    }
}
