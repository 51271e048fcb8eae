//! What a start could not read, as sentences, written into the log before a damaged segment leaves it.

use std::fmt::Write as _;
use std::io;

use leveret_core::journal::definition::DAMAGE_KEY;
use leveret_core::journal::{ReportedDamage, Urgency};
use leveret_core::mem::sort_by_key;
use leveret_core::time::Now;

use super::disk::Disk;
use super::log::Log;
use super::read_around::REFUSED_IN_FILE_MAX;
use super::record::Record;
use super::report::{Report, SetAside};

/// The most ranges of a segment that a sentence names.
const RANGES_MAX: usize = 4;

impl Report {
    /// What could not be read, as sentences that are the same at every start as long as the damage is the same.
    pub fn describe_damage(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.is_lost {
            lines.push(
                "the store is lost: no queue and no message of it can be read; it began anew".to_string(),
            );
        }
        if self.newest_gone {
            lines.push(
                "the newest segment file is not there, nor the file newest: if this is a copy of a store, it is not all \
                 of it"
                    .to_string(),
            );
        }
        for unopened in &self.unopened {
            lines.push(format!(
                "the file {} cannot be opened ({})",
                unopened.name.escape_debug(),
                unopened.why.escape_debug()
            ));
        }
        for blocks in self.refused.chunk_by(|a, b| a.0 == b.0) {
            let (slot, most) = (blocks[0].0, REFUSED_IN_FILE_MAX);
            let count = match blocks.len() {
                1 => "1 block".to_string(),
                count if count > most => format!("more than {most} blocks"),
                count => format!("{count} blocks"),
            };
            lines.push(format!("the disk refuses to read {count} of {slot:08}.seg"));
        }
        let mut parts: Vec<&SetAside> = self.set_aside.iter().collect();
        sort_by_key(&mut parts, |part| (part.segment, part.slot, part.from, part.to));
        parts.dedup();
        for of_segment in parts.chunk_by(|a, b| (a.segment, a.slot) == (b.segment, b.slot)) {
            let SetAside { segment, slot, .. } = *of_segment[0];
            if segment == 0 {
                lines.push(format!("{slot:08}.seg: not a readable segment of this store; it is left alone"));
                continue;
            }
            let mut ranges: Vec<(u32, u32)> = Vec::new();
            for part in of_segment.iter().filter(|part| part.from < part.to) {
                match ranges.last_mut().filter(|(_, to)| part.from <= *to) {
                    Some((_, to)) => *to = part.to.max(*to),
                    None => ranges.push((part.from, part.to)),
                }
            }
            let mut line = format!("segment {segment} ({slot:08}.seg)");
            for (at, (from, to)) in ranges.iter().take(RANGES_MAX).enumerate() {
                let _ = write!(line, "{} {from} to {to}", if at == 0 { ": bytes" } else { "," });
            }
            if ranges.len() > RANGES_MAX {
                let _ = write!(
                    line,
                    " and {} more ranges up to {}",
                    ranges.len() - RANGES_MAX,
                    ranges[ranges.len() - 1].1
                );
            }
            line.push_str(" cannot be read");
            lines.push(line);
        }
        if lines.is_empty() && self.commits_missing > 0 {
            lines.push("commits of the log are missing".to_string());
        }
        if self.groups_damaged > 0 {
            lines.push("a large transaction that a power cut interrupted is damaged".to_string());
        }
        if self.has_unfinished_repair {
            lines.push(
                "the file mending is left of a repair that an older version of Leveret did not finish: its segment may \
                 be damaged; remove the file"
                    .to_string(),
            );
        }
        lines
    }
}

impl Log {
    /// Adds the damage that this start found to the damage that earlier starts wrote into the log.
    pub(super) fn merge_damage<D: Disk>(&mut self, disk: &mut D, report: &mut Report) -> io::Result<()> {
        let mut bytes = Vec::new();
        let written = match self.index.definitions().get(&DAMAGE_KEY[..]) {
            Some(definition) if !definition.deleted => {
                let value = self.read_definition(disk, (&DAMAGE_KEY, definition), &mut bytes)?;
                value.map_or_else(ReportedDamage::default, |(value, _)| ReportedDamage::parse(value))
            }
            _ => ReportedDamage::default(),
        };
        report.reported_damage = written.clone();
        report.reported_damage.merge(&report.describe_damage());
        report.has_new_damage = report.reported_damage != written;
        Ok(())
    }

    /// Adds the damage that this start was the first to find to the commit that gathers. Returns `false` when the commit has
    /// no room: no segment may leave the log before the damage is written.
    pub(super) fn gather_damage(&mut self, report: &Report, now: Now) -> bool {
        if !report.has_new_damage {
            return true;
        }
        let (version, value) = (self.version_of_life(), report.reported_damage.value());
        let record = Record::Defined { version, key: &DAMAGE_KEY, value: value.as_deref() };
        self.append_reserved(&record, Urgency::Awaited, now).is_ok()
    }
}
