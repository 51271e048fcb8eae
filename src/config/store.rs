//! The section `[store]`.

/// How what outlives the process is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Store {
    /// The most that the segments of the log take on the disk, in bytes; `None`: half of what was free.
    pub disk_limit_bytes: Option<u64>,
    /// Every message to a durable queue is persistent, whatever its delivery_mode.
    pub persist_all: bool,
    /// Where there is no store, none is begun: the start fails.
    pub require_store: bool,
    /// How long persistent messages that nobody awaits may gather before they are synced, in milliseconds:
    /// so much a power cut may take.
    pub commit_window_ms: u32,
    /// How long awaited ones gather once the sync budget is used up, in milliseconds.
    pub confirm_window_ms: u32,
    /// How long acknowledgements alone may gather, in milliseconds: after a power cut their messages come
    /// again.
    pub settle_window_ms: u32,
    /// Syncs a second that the card may do for ever; 0 is without limit.
    pub syncs_per_s: u32,
    /// Syncs that may be done at once after a rest.
    pub sync_burst: u32,
    /// Bytes that may be written to the card before it is worn out; 0 when nobody says.
    pub flash_endurance_bytes: u64,
    /// An alarm is raised when it lasts fewer years than this; 0 for never.
    pub flash_years_min: u32,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            disk_limit_bytes: None,
            persist_all: false,
            require_store: false,
            commit_window_ms: 1_000,
            confirm_window_ms: 50,
            settle_window_ms: 5_000,
            syncs_per_s: 0,
            sync_burst: 200,
            flash_endurance_bytes: 0,
            flash_years_min: 2,
        }
    }
}
