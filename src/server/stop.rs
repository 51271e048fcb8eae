//! Shutdown: connections are closed, and pending entries are written.
//!
//! ```text
//!   begin_stop ─ turns until is_stopped ─ begin_flush ─ flush until it returns false ─ end_store ─ flush again
//! ```
//!
//! # Invariants
//! - A stop takes as long as clients need to reply to `connection.close`, at most [`STOP_MS`].
//! - The stop does not wait for pending writes if there is no disk space for them.

use std::io;

use leveret_core::command::ConnectionId;
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::time::Deadline;

use super::platform::Platform;
use super::state::Engine;

/// How long clients may take to reply to `connection.close`, in milliseconds.
const STOP_MS: u64 = 700;

impl<P: Platform> Engine<P> {
    /// Begins the shutdown: closes all connections, and stops when they have ended or after 700 ms.
    /// `how` is the reason, for the log. A second call stops at once.
    pub fn begin_stop(&mut self, how: &str) {
        if self.shared.stopping.is_some() {
            self.shared.stopping = Some(self.shared.now.after_ms(0));
            return;
        }
        log::info!("asked to stop {how}");
        self.shared.stopping = Some(self.shared.now.after_ms(STOP_MS));
        self.shared.broker.hold_wills();
        self.shared.platform.stop_listening();
        self.shared.admission.stop_listening();
        let fault = Fault::connection(
            ReplyCode::ShuttingDown,
            format_args!("broker forced connection closure with reason 'shutdown'"),
        );
        for index in 0..self.shared.peers.connections_seen() {
            self.force_close(ConnectionId::from_index(index), &fault);
        }
        self.shared.lists.for_capacity.clear();
        self.shared.lists.for_jobs.clear();
    }

    /// Returns whether the shutdown has begun.
    pub const fn is_stopping(&self) -> bool {
        self.shared.stopping.is_some()
    }

    /// Returns whether the shutdown has ended, so that no further turn must be run.
    pub fn is_stopped(&self) -> bool {
        self.shared.stopping.is_some_and(|at| {
            self.shared.peers.connections() == 0 && !self.bridges.is_connected() || at.is_due(self.shared.now)
        })
    }

    /// Begins to write the pending entries after the last turn. Returns whether [`Self::flush`] must be
    /// called after a sleep.
    pub fn begin_flush(&mut self) -> bool {
        let Some(store) = &mut self.store else { return false };
        self.shared.broker.write_all_retained(&mut self.shared.pending_writes);
        store.commit_writer.flush(self.shared.now);
        self.go_on_flushing()
    }

    /// Continues to write. Returns whether it must be called again.
    ///
    /// # Errors
    /// The disk failed.
    pub fn flush(&mut self) -> io::Result<bool> {
        self.take_disk_results()?;
        Ok(self.go_on_flushing())
    }

    fn go_on_flushing(&mut self) -> bool {
        let (broker, mut context) = self.shared.broker_mut();
        let has_jobs = broker.run_jobs(&mut context);
        self.start_disk_jobs();
        // There are no more turns, so unfinished jobs of the broker must be continued by the next call.
        if has_jobs && let Some(store) = &mut self.store {
            store.set_evicting(true);
        }
        self.is_flushing()
    }

    fn is_flushing(&self) -> bool {
        let Some(store) =
            self.store.as_ref().filter(|store| !store.commit_writer.is_idle(&self.shared.pending_writes))
        else {
            return false;
        };
        if store.is_stuck() {
            log::warn!("the disk is full: entries that had not been confirmed are not written");
            return false;
        }
        true
    }

    /// Returns until when to sleep before the next flush; `None` for no sleep. Only deadlines of the storage
    /// are used, because that of the shutdown is past.
    pub fn flush_deadline(&self) -> Option<Deadline> {
        let store = self.store.as_ref()?;
        let is_busy =
            store.has_work(&self.shared.broker, &self.shared.pending_writes, &self.shared.resources.messages);
        (!is_busy).then(|| store.commit_writer.deadline())
    }

    /// Ends the epoch of the store after everything was written. Returns whether [`Self::flush`] must be
    /// called again for that.
    pub fn close_store(&mut self) -> bool {
        let Some(store) =
            self.store.as_mut().filter(|store| store.commit_writer.is_idle(&self.shared.pending_writes))
        else {
            return false;
        };
        self.shared.broker.reset_watermarks(&mut self.shared.pending_writes);
        store.commit_writer.close(self.shared.now);
        self.begin_flush()
    }

    /// Logs the counters of storage since the start.
    pub fn log_counters(&self) {
        if let Some(store) = &self.store {
            store.log_counters();
        }
    }

    /// Logs how many lines about peers the rate limit suppressed.
    pub fn log_suppressed(&mut self) {
        self.shared.resources.log.report();
    }
}
