//! Batches: what becomes durable as a whole, and how soon.

use leveret_core::batch::Batch;

use super::latency::LatencyMeter;

/// How long a change may wait for its commit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Urgency {
    /// A confirm or a reply waits for the change: it is written at once.
    Awaited,
    /// No client waits for the change: it is written within the commit window.
    Window,
    /// The change may be lost: it is written within the settle window.
    Lazy,
}

/// The open batch, the last durable one, and the urgency of the next commit.
#[derive(Debug)]
pub(super) struct Batches {
    /// The open batch, to which changes are added, and the bytes of its messages.
    pub(super) open: Batch,
    open_bytes: u64,
    /// Whether the open batch contains something that must be written.
    is_open_used: bool,
    /// Maximum bytes of the messages of a batch.
    pub(super) bytes_max: u64,
    /// The last durable batch.
    pub(super) durable: Batch,
    /// The highest urgency of the changes since [`super::PendingWrites::take_urgency`].
    pub(super) urgency: Option<Urgency>,
    pub(super) change_count: u64,
    pub(super) latency: LatencyMeter,
}

impl Batches {
    pub(super) fn new() -> Self {
        Self {
            open: Batch::numbered(1),
            open_bytes: 0,
            is_open_used: false,
            bytes_max: u64::MAX,
            durable: Batch::NONE,
            urgency: None,
            change_count: 0,
            latency: LatencyMeter::new(),
        }
    }

    /// Adds a message of `bytes` bytes to the open batch, or to a new one if it does not fit. Returns its batch.
    #[inline]
    pub(super) fn add_message(&mut self, bytes: u64, urgency: Urgency, time_ms: u64) -> Batch {
        if self.open_bytes > 0 && self.open_bytes + bytes > self.bytes_max {
            self.close();
        }
        self.open_bytes += bytes;
        if urgency == Urgency::Awaited {
            self.latency.note_awaited(self.open, time_ms);
        }
        self.open
    }

    /// Counts a change and raises the urgency to at least this one.
    pub(super) fn note_change(&mut self, urgency: Urgency) {
        self.is_open_used |= urgency != Urgency::Lazy;
        self.change_count += 1;
        self.urgency = Some(self.urgency.map_or(urgency, |noted| noted.min(urgency)));
    }

    /// Returns the last batch that a commit completes. `first_left` is the first batch of which something is left. If
    /// nothing is left, the open batch is closed, unless only lazy changes belong to it.
    pub(super) fn end_commit(&mut self, first_left: Option<Batch>) -> Batch {
        match first_left {
            Some(batch) => batch.before(),
            None => {
                if self.is_open_used {
                    self.close();
                }
                self.open.before()
            }
        }
    }

    /// Marks everything up to `batch` as durable. Returns whether the durable batch changed.
    pub(super) fn note_durable(&mut self, batch: Batch, time_ms: u64) -> bool {
        let before = self.durable;
        self.durable = self.durable.max(batch);
        self.latency.note_durable(self.durable, time_ms);
        self.durable > before
    }

    /// Begins a new batch.
    const fn close(&mut self) {
        self.open = self.open.after();
        self.open_bytes = 0;
        self.is_open_used = false;
    }
}
