//! The append log, and the buffer of everything that waits to be written to it. The log stores messages, settlements
//! and definitions. Each commit makes a number of them durable together.
//!
//! | file | content |
//! |------|---------|
//! | `pending_writes` | the pending-write buffer: messages, settlements and definitions that wait for their commit |
//! | `log` | [`Log`]: appending, positions, settlements that wait; settings and counters |
//! | `commit_builder` | the pending commit and the active segment; commit jobs and their results; reused buffers |
//! | `commit_schedule` | when a commit is due and how many bytes it may take; the sync budget |
//! | `commit_writer` | from the pending-write buffer (`pending_writes`) into the log, one commit at a time |
//! | `group` | transactions and other records that become durable together, even if they exceed one commit |
//! | `disk_jobs` | the jobs of the helper threads: writing and syncing a commit, reading, preparing a segment |
//! | `space` | the segment files, and the space that publishers and the compactor may use |
//! | `compaction` | the compactor: copies live records, removes segments; two copies of each definition |
//! | `index`, `queue_index` | the in-memory index of segments, definitions, large bodies and queues |
//! | `runs`, `settled` | compressed sets of live and settled offsets |
//! | `read_back` | reading a queue's messages; keeping files unchanged while they are read or copied |
//! | `recovery` | from the files of a stopped store to a log; the report of a start |
//! | `damaged_commit` | the good records of damaged commits |
//! | `reported_damage` | reports of damage, stored until an operator acknowledges them |
//! | `damage` | describing damage for the operator; reading around blocks that the disk refuses |
//! | `access` | whether users and permissions are complete; their copies beside the log |
//! | `queue_names` | queue names in footers, for lost definitions |
//! | `inspection` | reading a store without changing it |
//! | `record`, `commit`, `segment`, `footer`, `parts`, `varint` | the formats, with a layout in each file |
//! | `disk`, `file_disk` | the interface of a disk, and its implementation with files |
//!
//! # The format
//!
//! ```text
//! directory | lock | access.a | access.b | newest | 00000000.seg | ...  segments of one size, recycled
//! segment   | header: store, sequence, list of live segments | commit | commit | ... | footer |
//! commit    | header: epoch, number, length, store, CRC32C | record | record | ... | zeros to 4 KiB |
//! record    | type | length | CRC32C | payload |
//! ```
//!
//! A *slot* is the number of a file; a segment keeps its sequence number, but its file is reused. An *epoch* is one run
//! of the broker on this store; epochs are numbered from 1. A *live* record is still needed: a message that is not
//! settled, the newest definition of an object, or a chunk of a live message. A *settlement* means that a queue no
//! longer needs messages: they were acknowledged, expired or dropped. A *group* is a set of records that become durable
//! together, such as a transaction.
//!
//! # How a commit is made
//!
//! Records are encoded into the pending commit. While space is scarce, settled offsets are kept as sets instead, and
//! encoded when the commit is built. A helper thread writes the commit with one call and syncs it. If the active
//! segment is full, the helper thread first seals it: it writes and syncs the footer, then the header of the next
//! segment. After the sync of the commit, its records are applied to the index, and everything up to its position is
//! durable. Only then is the next commit built.
//!
//! # Invariants
//!
//! - A block that was synced is not written again before its segment is recycled.
//! - Applying records twice or in another order gives the same index. So copies, repeated commits and recovery need
//!   no special rules.
//! - A settlement is dropped only when every segment with a record that it settles has been removed from the log
//!   durably.
//! - A segment's file is reused only when a durable commit records that the segment was removed.
//! - Damage to a commit loses only the damaged records. But a commit is lost as a whole if it contains a group, or if
//!   its header is damaged.
//! - All losses are reported, with one exception. After a kill, damaged commits at the end of the log look like one
//!   unfinished commit if at most one of their headers is left.
//! - A failed write or sync of a segment file is final: the log writes nothing any more. The exception is a write for
//!   which the file system has no space.
//! - The broker can continue without the access files and the header copy beside the log, if they cannot be written.
//! - The log has no clock and no threads: time is passed in, and jobs are handed out.

#![warn(clippy::unwrap_used)]

mod access;
mod commit;
mod commit_builder;
mod commit_schedule;
mod commit_writer;
mod compaction;
mod context;
mod damage;
mod damaged_commit;
mod disk;
mod disk_jobs;
pub mod faults;
mod file_disk;
mod footer;
mod group;
mod index;
mod inspection;
mod log;
mod parts;
mod pending_writes;
mod queue_index;
mod queue_names;
mod read_back;
mod record;
mod recovery;
mod reported_damage;
mod runs;
mod segment;
mod settled;
mod space;
mod varint;

pub use access::forget as invalidate_access_copies;
pub use commit::BLOCK_BYTES;
pub use commit_writer::{CommitWriter, Read, ReadOutcome, Write, WriteDone, buffer_bytes};
pub use context::Context;
pub use disk::{ACCESS_SLOTS, Disk, NEWEST_SLOT, REPAIR_SLOT, UnopenedFile, is_beside_the_log, is_full};
pub use disk_jobs::{CommitDone, CommitJob, EndJob, PrepareDone, PrepareJob, ReadDone, ReadJob};
pub use file_disk::{FileDisk, LOCK_NAME, make_directory};
pub use file_disk::{Misaligned, misaligned};
pub use file_disk::{NotInPlace, not_in_place};
pub use index::DefinitionIndex;
pub use index::Segment;
pub use index::{DEFINITION_BYTES, EMPTY_QUEUE_BYTES, Index};
pub use inspection::{FoundRecord, SegmentSummary};
pub use log::Counters;
pub use log::Settings;
pub use log::{AppendRefused, Failed, Log};
pub use log::{LogPosition, RecordLocation};
pub use parts::BodyPart;
pub use pending_writes::{
    Appended, IndexCapacity, LATENCY_BOUNDS_MS, LatencyHistogram, LogEntry, Mode, NoCapacity, PART_BYTES,
    PendingWrites, Settled, SplitDefinition, Urgency, is_group, is_transient,
};
pub use queue_index::QueueIndex;
pub use queue_names::Names;
pub use read_back::FetchResult;
pub use read_back::PinnedFile;
pub use read_back::{FETCH_BYTES, FetchDone, FetchJob};
pub use record::{
    Body, CHUNK_BODY_BYTES, Message, RECORD_OVERHEAD_BYTES_MAX, Range, Ranges, Record, RecordError, Target,
    Targets,
};
pub use recovery::OpenError;
pub use recovery::header_copy::forget as invalidate_header_copy;
pub use recovery::{Access, AccessCorrection, AccessDefinition, AccessReport, Report, SetAside};
pub use reported_damage::{ReportedDamage, UNDELIVERED};
pub use runs::{Run, Runs};
pub use segment::FORMAT;
pub use segment::Identity;
pub use segment::{SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};
pub use settled::RangeSet;
pub use settled::SettledSet;
pub use space::SEGMENTS_RESERVED;
pub use space::Space;
