//! Shutdown: connections are closed, and pending entries are written.
//!
//! ```text
//!   begin_stop ─ turns until is_stopped ─ begin_flush ─ flush until it returns false ─ end_store ─ flush again
//! ```
//!
//! # Invariants
//! - A stop takes as long as clients need to answer `connection.close`, and at most [`STOP_MS`].
//! - A store that finds no disk space is not waited for.

use std::io;

use leveret_core::command::ConnectionId;
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::time::Deadline;

use super::platform::Platform;
use super::state::Engine;

/// How long clients get to answer `connection.close`, in milliseconds.
const STOP_MS: u64 = 700;

impl<P: Platform> Engine<P> {
    /// Begins the shutdown: closes all connections, and stops when they have ended or after 700 ms. `how` names
    /// the reason for the log. A second call stops at once.
    pub fn begin_stop(&mut self, how: &str) {
        if self.shared.stopping.is_some() {
            self.shared.stopping = Some(self.shared.now.after_ms(0));
            return;
        }
        log::info!("asked to stop {how}");
        self.shared.stopping = Some(self.shared.now.after_ms(STOP_MS));
        self.shared.platform.stop_listening();
        self.shared.admission.stop_listening();
        let fault = Fault::connection(
            ReplyCode::ConnectionForced,
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

    /// Returns whether no further turn is to be run.
    pub fn is_stopped(&self) -> bool {
        self.shared.stopping.is_some_and(|at| {
            self.shared.peers.connections() == 0 && !self.bridges.is_connected() || at.is_due(self.shared.now)
        })
    }

    /// Begins to write pending entries after the last turn. If it returns `true`, [`Self::flush`] must be called
    /// after a sleep.
    pub fn begin_flush(&mut self) -> bool {
        let Some(store) = &mut self.store else { return false };
        store.keeper.flush(self.shared.now);
        self.go_on_flushing()
    }

    /// Continues to write. If it returns `true`, it must be called again.
    ///
    /// # Errors
    /// Returns the error of the disk if it failed.
    pub fn flush(&mut self) -> io::Result<bool> {
        self.take_disk_results()?;
        Ok(self.go_on_flushing())
    }

    fn go_on_flushing(&mut self) -> bool {
        let (broker, mut context) = self.shared.broker_mut();
        let has_jobs = broker.run_jobs(&mut context);
        self.start_disk_jobs();
        // There are no more turns, so an unfinished job also requires the next call.
        if has_jobs && let Some(store) = &mut self.store {
            store.set_evicting(true);
        }
        self.is_flushing()
    }

    fn is_flushing(&self) -> bool {
        let Some(store) =
            self.store.as_ref().filter(|store| !store.keeper.is_idle(&self.shared.pending_writes))
        else {
            return false;
        };
        if store.is_stuck() {
            log::warn!("the disk is full: entries that had not been confirmed are not written");
            return false;
        }
        true
    }

    /// Returns until when to sleep before the next flush. `None`: do not sleep. Only storage matters here: the
    /// deadline of the shutdown is long past.
    pub fn flush_deadline(&self) -> Option<Deadline> {
        let store = self.store.as_ref()?;
        let is_busy =
            store.has_work(&self.shared.broker, &self.shared.pending_writes, &self.shared.resources.messages);
        (!is_busy).then(|| store.keeper.deadline())
    }

    /// Ends the epoch of the store when everything is written. If it returns `true`, there is more to flush for that.
    pub fn close_store(&mut self) -> bool {
        let Some(store) =
            self.store.as_mut().filter(|store| store.keeper.is_idle(&self.shared.pending_writes))
        else {
            return false;
        };
        self.shared.broker.reset_watermarks(&mut self.shared.pending_writes);
        store.keeper.close(self.shared.now);
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
