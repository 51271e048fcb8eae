//! Exports every live message as one JSON object per line, for importing into another broker.
//!
//! # Invariants
//! - A message is exported once, with all queues that contain it.
//! - A message is exported only if its complete body can be read.
//! - Of a body that is stored in chunks, only one chunk is in memory at a time.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::ExportTo;
use super::InspectError;
use super::dump;
use super::names::QueueNames;
use super::report::{Inspection, queues_of};
use crate::json::{self, Base64, Object};
use crate::progress::{Progress, Total};
use leveret_management::json::Json;
use leveret_storage::{Body, FileDisk, Log, Message, Range, RangeSet};

/// The result of an export.
#[derive(Debug, Default)]
pub(super) struct Exported {
    /// Number of messages.
    pub(super) messages: u64,
    /// Bytes of the bodies of these messages.
    pub(super) bytes: u64,
    /// Number of messages that cannot be read, counted once per queue.
    pub(super) unreadable: u64,
}

/// Exports the messages of the store in `directory`, which was inspected before.
pub(super) fn run(
    inspection: &mut Inspection,
    directory: &Path,
    target: &ExportTo,
    messages: &mut dyn Write,
) -> Result<Exported, InspectError> {
    let (title, queues) = ("Export", inspection.log.index().queues());
    let live = queues.values().flat_map(|queue| queue.live_ranges()).map(|range| range.end - range.start);
    let total = Total::Messages(live.sum());
    let outcome = match target {
        ExportTo::StandardOutput => {
            let progress = Progress::beside_output(title, total);
            all(inspection, directory, &mut Sink::Stream(messages), progress)
        }
        ExportTo::File(path) => {
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).and_then(|file| {
                let progress = Progress::start(title, total);
                all(inspection, directory, &mut Sink::File(BufWriter::new(file)), progress)
            })
        }
    };
    outcome.map_err(|why| match target {
        ExportTo::StandardOutput => InspectError::Output(why),
        ExportTo::File(path) => InspectError::Export { path: path.clone(), why },
    })
}

fn all(
    inspection: &mut Inspection,
    directory: &Path,
    sink: &mut Sink<'_>,
    progress: Progress,
) -> io::Result<Exported> {
    let mut export = Export { sink, done: BTreeMap::new(), exported: Exported::default(), progress };
    export.round(&mut inspection.log, directory)?;
    if export.exported.unreadable > inspection.count_unreadable() {
        // A running broker may have moved messages meanwhile, so the unread ones are searched again.
        if let Ok((mut again, _)) = Log::read_only(&mut FileDisk::open_read_only(directory)) {
            export.round(&mut again, directory)?;
        }
    }
    export.progress.step("syncing");
    export.sink.end()?;
    Ok(export.exported)
}

/// The destination of the lines: a file or a stream.
enum Sink<'s> {
    File(BufWriter<File>),
    Stream(&'s mut dyn Write),
}

impl Sink<'_> {
    fn out(&mut self) -> &mut dyn Write {
        match self {
            Self::File(file) => file,
            Self::Stream(stream) => stream,
        }
    }

    /// Returns the position of the next line.
    fn mark(&mut self) -> io::Result<u64> {
        match self {
            Self::File(file) => file.stream_position(),
            Self::Stream(_) => Ok(0),
        }
    }

    /// Removes everything that was written after the position. If the output is a stream, this is not
    /// possible; the line then remains incomplete, so that it is not valid JSON.
    fn take_back(&mut self, mark: u64) -> io::Result<()> {
        match self {
            Self::File(file) => {
                file.flush()?;
                file.get_ref().set_len(mark)?;
                file.seek(SeekFrom::Start(mark)).map(drop)
            }
            Self::Stream(stream) => stream.write_all(b"\n"),
        }
    }

    fn end(&mut self) -> io::Result<()> {
        match self {
            Self::File(file) => {
                file.flush()?;
                file.get_ref().sync_all()
            }
            Self::Stream(stream) => stream.flush(),
        }
    }
}

/// The source of messages.
struct MessageSource {
    names: QueueNames,
    disk: FileDisk,
    chunk: Vec<u8>,
}

impl MessageSource {
    /// Returns a chunk of a large body.
    fn chunk(&mut self, log: &Log, body: u64, index: u32) -> Option<&[u8]> {
        log.read_chunk(&mut self.disk, body, index, &mut self.chunk)
    }

    /// Returns whether a body can be read completely.
    fn has_body(&mut self, log: &Log, body: &Body<'_>) -> bool {
        let Body::Chunked { body, chunks, bytes } = *body else { return true };
        let lengths = (0..chunks).map(|index| self.chunk(log, body, index).map(|part| part.len() as u64));
        lengths.sum::<Option<u64>>() == Some(bytes)
    }

    /// Writes a body; returns false if a part of it was missing.
    fn write_body(&mut self, log: &Log, object: &mut Object<'_, '_>, body: &Body<'_>) -> bool {
        object.number("payload_bytes", bytes_of(body));
        let encoding = match *body {
            Body::Inline(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) => {
                    object.text("payload", text);
                    "string"
                }
                Err(_) => {
                    object.base64("payload", bytes);
                    "base64"
                }
            },
            Body::Chunked { body, chunks, .. } => {
                let mut base64 = Base64::open(object.field("payload"));
                for index in 0..chunks {
                    let Some(bytes) = self.chunk(log, body, index) else { return false };
                    base64.put(bytes);
                }
                base64.close();
                "base64"
            }
        };
        object.text("payload_encoding", encoding);
        true
    }
}

const fn bytes_of(body: &Body<'_>) -> u64 {
    match body {
        Body::Inline(bytes) => bytes.len() as u64,
        Body::Chunked { bytes, .. } => *bytes,
    }
}

struct Export<'e, 's> {
    sink: &'e mut Sink<'s>,
    /// The exported messages of each queue.
    done: BTreeMap<u64, RangeSet>,
    exported: Exported,
    progress: Progress,
}

impl Export<'_, '_> {
    /// Exports messages that were not exported yet, queue by queue. A message in several queues is exported
    /// with the first one.
    fn round(&mut self, log: &mut Log, directory: &Path) -> io::Result<()> {
        let mut disk = FileDisk::open_read_only(directory);
        let names = QueueNames::of(log, &mut disk)?;
        let mut source =
            MessageSource { names, disk: FileDisk::open_read_only(directory), chunk: Vec::new() };
        for queue in queues_of(log) {
            log.for_each_message(&mut disk, queue, |log, _, message| self.take(&mut source, log, message))?;
        }
        self.exported.unreadable = 0;
        for queue in queues_of(log) {
            let mut done = self.done.get(&queue).cloned().unwrap_or_default();
            for range in log.index().queues().get(&queue).into_iter().flat_map(|known| known.live_ranges()) {
                done.insert(range, |part| self.exported.unreadable += part.end - part.start);
            }
        }
        Ok(())
    }

    fn take(&mut self, source: &mut MessageSource, log: &Log, message: &Message<'_>) -> io::Result<()> {
        let targets = self.targets(log, message);
        if targets.is_empty() {
            return Ok(());
        }
        if !source.has_body(log, &message.body) || !self.write(source, log, message, &targets)? {
            return Ok(());
        }
        // A message counts once for each of its queues, as in the total.
        self.progress.add(bytes_of(&message.body), targets.len() as u64);
        for (queue, offset) in targets {
            let range = Range { start: offset, end: offset + 1 };
            self.done.entry(queue).or_default().insert(range, |_| {});
        }
        self.exported.messages += 1;
        self.exported.bytes += bytes_of(&message.body);
        Ok(())
    }

    /// Returns the queues that still contain the message, without those with which it was exported before.
    fn targets(&self, log: &Log, message: &Message<'_>) -> Vec<(u64, u64)> {
        let is_new = |queue, offset| !self.done.get(&queue).is_some_and(|done| done.contains(offset));
        log.live_targets(message).filter(|&(queue, offset)| is_new(queue, offset)).collect()
    }

    /// Writes the line of a message. Returns false, and writes nothing, if a part of its body was missing.
    fn write(
        &mut self,
        source: &mut MessageSource,
        log: &Log,
        message: &Message<'_>,
        targets: &[(u64, u64)],
    ) -> io::Result<bool> {
        let mark = match message.body {
            Body::Inline(_) => 0,
            Body::Chunked { .. } => self.sink.mark()?,
        };
        let out = self.sink.out();
        let mut is_whole = true;
        json::write_to(out, |json| {
            let mut object = Object::open(json);
            object.bytes("exchange", message.exchange);
            object.bytes("routing_key", message.key);
            write_queues(object.field("queues"), source, log, targets);
            dump::write_properties(&mut object, message.properties);
            is_whole = source.write_body(log, &mut object, &message.body);
            if is_whole {
                object.close();
                json.raw(b"\n");
            }
        })?;
        if !is_whole {
            self.sink.take_back(mark)?;
        }
        Ok(is_whole)
    }
}

/// Writes each queue with the position of the message in it.
fn write_queues(json: &mut Json<'_>, source: &MessageSource, log: &Log, targets: &[(u64, u64)]) {
    json.raw(b"[");
    let mut is_first = true;
    for &(queue, offset) in targets {
        json.comma(&mut is_first);
        let mut object = Object::open(json);
        source.names.write(&mut object, queue);
        object.number("offset", offset);
        let known = log.index().queues().get(&queue);
        object.truth("redelivered", known.is_some_and(|known| offset < known.delivered_below()));
        object.close();
    }
    json.raw(b"]");
}
