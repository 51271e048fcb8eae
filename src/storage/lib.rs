//! OWNS DISK. The append log: messages, settlements and definitions in one order, durable by commits.
//!
//! | file | what it holds |
//! |------|---------------|
//! | `log`, `gathering`, `settling`, `settings`, `place` | what is appended and gathers for a commit; how a store behaves; where something lies, and its turn |
//! | `due`, `schedule`, `sync_budget` | when a commit is due and how much it may take; the syncs that the card can stand |
//! | `build`, `active_segment` | from what gathers to a commit job, and from its outcome to "durable"; opening and sealing segments |
//! | `space`, `slots` | how much may be written, and who may use the last of it; the files |
//! | `clean`, `cleaning`, `reckoning`, `carries`, `doubling` | the cleaner: copy what is live, carry what is settled, leave the rest out; definitions lie in two erase blocks |
//! | `names` | what queues are called, in footers, for when their definitions are lost |
//! | `access`, `access_state`, `access_digest`, `access_file` | whether what is said of users and permissions is all of it; the same once more, beside the log |
//! | `newest_note` | the newest segment's header once more, beside the log |
//! | `recover`, `reader`, `newest`, `listing`, `headless`, `sync_proof`, `chain`, `report` | starting: what lies on the disk becomes a log again |
//! | `damage` | what could not be read, remembered until an operator acknowledges it |
//! | `salvage`, `damaged_end` | what of a damaged commit is still served, and of those at the end of a segment |
//! | `read_around` | reading a disk that refuses single blocks |
//! | `inspection` | reading a store without changing it |
//! | `index`, `index_weight`, `segment_index`, `definition_index`, `large_body`, `queue_index`, `runs`, `ranges`, `settled`, `spans` | which segment holds which part of each queue, and what is settled |
//! | `fetch`, `read_back`, `pins` | reading a queue's messages back; files that stay as they are while they are read or copied |
//! | `keeper` | from the journal into the log, a commit at a time |
//! | `group`, `large_group` | what must become durable together, and is more than one commit holds |
//! | `jobs` | what the helper threads do |
//! | `alignment`, `in_place` | whether the partition wears the card more than it must; whether room that is made ready stays |
//! | `format` | the version of the format |
//! | `record`, `commit`, `segment`, `footer`, `parts`, `varint` | the bytes, drawn in each file |
//! | `record_walk`, `identity` | from bytes to records and into the index; who a store is |
//! | `counters`, `spares`, `zeroes` | what was done so far; buffers that go round, and that grow by zeroes |
//! | `disk`, `file_disk` | what is asked of a disk, and files |
//!
//! # The format
//!
//! ```text
//! directory | lock | access.a | access.b | newest | 00000000.seg | ...  segments of one size, recycled
//! segment   | header: who, which, the list of live segments | commit | commit | ... | footer |
//! commit    | header: life, number, length, whose, CRC32C | record | record | ... | zeros to 4 KiB |
//! record    | type | length | CRC32C | payload |
//! ```
//!
//! # The life of a commit
//!
//! Records are encoded into the buffer that gathers; settled offsets are kept as sets and encoded when the
//! commit is built. A full segment is sealed first: footer, sync; header of the next, sync. Then the commit
//! is written in one piece and synced, by a helper. Only then its records enter the index, and everything up
//! to its position is durable. The next commit is handed out after that, never before.
//!
//! # What always holds
//!
//! - A block that was synced is not written again before its segment is recycled.
//! - Facts form a set that only grows: reading them twice or in another order changes nothing, so copies,
//!   repeated commits and recovery need no rules of their own.
//! - A settlement is dropped only when every segment with something that it kills has durably left the log;
//!   a segment's file is used again only when a durable commit says that the segment has left.
//! - Damage costs the records that it touched, and of a commit with a group, or with a damaged head, all.
//!   All that is lost is told, but for the end of the log after a kill: there, commits of which one head or
//!   none is left look like one that was not finished.
//! - A failed write or sync is final, but for a write for which the file system has no room, and for the
//!   files of access beside the log.
//! - No clock, no thread: time is handed in, jobs are handed out.

#![warn(clippy::unwrap_used)]

mod access;
mod commit;
mod commit_builder;
mod commit_schedule;
mod commit_writer;
mod compaction;
mod damage;
mod disk;
mod file_disk;
mod footer;
mod group;
mod index;
mod inspection;
mod jobs;
mod log;
mod newest_segment;
mod parts;
mod queue_index;
mod queue_names;
mod read_back;
mod reader;
mod record;
mod recovery;
mod runs;
mod segment;
mod settled;
mod space;
mod varint;

// The ground floor, by the names that everybody has for it.

pub use access::forget as forget_access;
pub use commit::BLOCK_BYTES;
pub use commit_writer::{Keeper, Read, ReadOutcome, Write, WriteDone, buffer_bytes};
pub use disk::{ACCESS_SLOTS, Disk, NEWEST_SLOT, REPAIR_SLOT, Unopened, is_beside_the_log, is_full};
pub use file_disk::{FileDisk, LOCK_NAME, make_directory};
pub use file_disk::{Misaligned, misaligned};
pub use file_disk::{NotInPlace, not_in_place};
pub use index::DefinitionIndex;
pub use index::Segment;
pub use index::{DEFINITION_BYTES, Index, QUEUE_STANDING_BYTES};
pub use inspection::{FoundRecord, SegmentFound};
pub use jobs::{CommitDone, CommitJob, EndJob, PrepareDone, PrepareJob, ReadDone, ReadJob};
pub use leveret_core::journal::Urgency;
pub use log::Settings;
pub use log::{Counters, SyncTimes};
pub use log::{Failed, Log, Refused};
pub use log::{Place, Position};
pub use newest_segment::forget as forget_newest;
pub use parts::BodyPart;
pub use queue_index::QueueIndex;
pub use queue_names::Names;
pub use read_back::Fetched;
pub use read_back::PinnedFile;
pub use read_back::{FETCH_BYTES, FetchDone, FetchJob};
pub use record::{
    Body, CHUNK_BODY_BYTES, Message, RECORD_OVERHEAD_BYTES_MAX, Range, Ranges, Record, RecordError, Target,
    Targets,
};
pub use recovery::OpenError;
pub use recovery::{Access, AccessDefinition, AccessReport, Report, Restored, SetAside};
pub use runs::{Run, Runs};
pub use segment::FORMAT;
pub use segment::Identity;
pub use segment::{SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};
pub use settled::RangeSet;
pub use settled::SettledSet;
pub use space::SEGMENTS_RESERVED;
pub use space::Space;
