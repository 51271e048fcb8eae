//! How much a turn may read, and how much work it may cause, in steps of the broker.
//!
//! Always true: whatever is done for a peer counts, of whatever kind it is.

/// Steps of the broker for what is read in a turn: some milliseconds of work, where usual traffic takes none.
const WORK_UNITS_PER_TURN: u32 = 50_000;
/// Steps that opening a record of TLS counts as, whatever is in it.
const WORK_UNITS_PER_RECORD: u32 = 16;

/// What a turn has read and done so far.
#[derive(Debug, Default)]
pub(super) struct TurnBudget {
    /// What the broker's last calls cost.
    pub(super) work: leveret_broker::Work,
    /// Bytes read from all peers in this turn.
    bytes_read: usize,
    /// The broker's steps for them.
    work_units: u32,
    /// Nothing is read in this turn, because the last one left something to write.
    holds_back: bool,
}

impl TurnBudget {
    /// A turn begins, with something left to write or not; says whether it may read: with something left only every
    /// other turn does.
    pub(super) const fn begin(&mut self, has_to_write: bool) -> bool {
        let holds_back = !self.holds_back && has_to_write;
        (self.bytes_read, self.work_units, self.holds_back) = (0, 0, holds_back);
        !holds_back
    }

    /// Whoever waited for room may cause as much work again as what was read in this turn.
    pub(super) const fn begin_retries(&mut self) {
        self.work_units = 0;
    }

    /// Notes that so many bytes were read.
    pub(super) const fn note_read(&mut self, bytes: usize) {
        self.bytes_read += bytes;
    }

    /// Bytes read in this turn.
    pub(super) const fn bytes_read(&self) -> usize {
        self.bytes_read
    }

    /// The broker took so many steps.
    pub(super) const fn charge(&mut self, units: u32) {
        self.work_units = self.work_units.saturating_add(units);
    }

    /// Counts what the broker's last calls cost.
    pub(super) const fn charge_work(&mut self) {
        let units = self.work.take();
        self.charge(units);
    }

    /// Charges the opening of so many records of TLS.
    pub(super) const fn charge_records(&mut self, records: u32) {
        self.charge(records * WORK_UNITS_PER_RECORD);
    }

    /// Whether the turn has had as much work as it may have, whatever is left to read.
    pub(super) const fn is_over(&self) -> bool {
        self.work_units >= WORK_UNITS_PER_TURN
    }
}
