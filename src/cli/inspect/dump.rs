//! Every record, one a line, as `name=value` words: for `grep`, and for whoever looks for one message.
//!
//! Always true: what strangers sent is escaped, so a line stays a line; bodies are cut, so it stays short.

use std::fmt::{self, Write as _};
use std::io::{self, Write};

use super::names::{Defined, Quoted};
use leveret_core::journal::Definition;
use leveret_storage::{Body, Disk, FoundRecord, Log, Message, Record, Targets};

/// The most bytes of a body, and of a definition, that are shown.
const SHOWN_BYTES_MAX: usize = 48;
/// The most targets, and ranges, that are shown.
const SHOWN_PARTS_MAX: usize = 8;

/// Writes a line for each record of commits that can be read.
pub(super) fn write<D: Disk>(out: &mut dyn Write, log: &Log, disk: &mut D) -> io::Result<()> {
    log.for_each_record(disk, |found| writeln!(out, "{}", Line { found, log })).map(|_| ())
}

/// A record as a line.
struct Line<'a> {
    found: &'a FoundRecord<'a>,
    log: &'a Log,
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FoundRecord { place, commit, life, is_of_damaged_commit, record } = self.found;
        write!(f, "record segment={} at={} bytes={}", place.segment, place.at, place.bytes)?;
        write!(f, " commit={commit} life={life}")?;
        if *is_of_damaged_commit {
            f.write_str(" commit_damaged")?;
        }
        match record {
            Record::Message(message) => self.message(f, message),
            Record::Chunk { body, index, bytes } => {
                write!(f, " chunk body={body} index={index} data={} {}", bytes.len(), Cut(bytes))
            }
            Record::Settled { queue, ranges } => {
                write!(f, " settled queue={queue} offsets=")?;
                let shown = ranges.iter().map(|range| match range.end - range.start {
                    1 => range.start.to_string(),
                    _ => format!("{}-{}", range.start, range.end - 1),
                });
                parts(f, shown)
            }
            Record::Gone { queue } => write!(f, " gone queue={queue}"),
            Record::Defined { version, key, value: Some(value) } => {
                if let Some(definition) = Definition::parse(key, value) {
                    return write!(f, " defined version={version} {}", Defined(definition));
                }
                let (key, shown) = (Quoted(key), Cut(value));
                write!(f, " defined version={version} key={key} value={} {shown}", value.len())
            }
            Record::Defined { version, key, value: None } => {
                write!(f, " undefined version={version} key={}", Quoted(key))
            }
            Record::DeliveredWatermark { queue, offset } => {
                write!(f, " marked queue={queue} delivered_below={offset}")
            }
            Record::WatermarkReset { queue, offset, watermark } => {
                write!(f, " rested queue={queue} delivered_below={offset} watermark={watermark}")
            }
            Record::Left { segment } => write!(f, " left segment={segment}"),
            Record::Optional { kind, payload } => write!(f, " kind={kind} bytes={}", payload.len()),
        }
    }
}

impl Line<'_> {
    fn message(&self, f: &mut fmt::Formatter<'_>, message: &Message<'_>) -> fmt::Result {
        write!(f, " message live={}/{} to=", self.live(message.targets), message.targets.len())?;
        let shown = message.targets.iter().map(|target| match target.lane {
            0 => format!("{}:{}", target.queue, target.offset),
            lane => format!("{}:{}/{lane}", target.queue, target.offset),
        });
        parts(f, shown)?;
        let (exchange, key) = (Quoted(message.exchange), Quoted(message.key));
        write!(f, " exchange={exchange} key={key} enqueued_ms={}", message.enqueued_ms)?;
        if let Some(expiration) = message.expiration_ms {
            write!(f, " expiration_ms={expiration}")?;
        }
        write!(f, " properties={}", message.properties.len())?;
        match message.body {
            Body::Inline(body) => write!(f, " body={} {}", body.len(), Cut(body)),
            Body::Chunked { body, chunks, bytes } => {
                write!(f, " body={bytes} in={body} chunks={chunks}")
            }
        }
    }

    /// How many queues have the message, and have it from this segment.
    fn live(&self, targets: Targets<'_>) -> usize {
        let segment = self.found.place.segment;
        targets.iter().filter(|target| self.log.is_live_in(target, segment)).count()
    }
}

/// Writes the first few of many things.
fn parts(f: &mut fmt::Formatter<'_>, mut all: impl Iterator<Item = String>) -> fmt::Result {
    for (at, part) in all.by_ref().take(SHOWN_PARTS_MAX).enumerate() {
        if at > 0 {
            f.write_char(',')?;
        }
        f.write_str(&part)?;
    }
    match all.count() {
        0 => Ok(()),
        more => write!(f, ",+{more}"),
    }
}

/// The start of some bytes, escaped.
struct Cut<'a>(&'a [u8]);

impl fmt::Display for Cut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.len() <= SHOWN_BYTES_MAX {
            return Quoted(self.0).fmt(f);
        }
        // Not within a letter, if it is text.
        let mut end = SHOWN_BYTES_MAX;
        while end > SHOWN_BYTES_MAX - 3 && self.0[end] & 0xc0 == 0x80 {
            end -= 1;
        }
        write!(f, "{}...", Quoted(&self.0[..end]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_cut_and_escaped() {
        assert_eq!(Cut(b"a\n\"\x1b[1m").to_string(), r#""a\n\"\u{1b}[1m""#);
        assert_eq!(Cut(b"\xff\0").to_string(), r#""\xff\x00""#);
        assert_eq!(Cut("é".repeat(30).as_bytes()).to_string(), format!("\"{}\"...", "é".repeat(24)));
        let odd = format!("x{}", "é".repeat(30));
        assert_eq!(Cut(odd.as_bytes()).to_string(), format!("\"x{}\"...", "é".repeat(23)));
    }
}
