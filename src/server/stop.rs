//! The end: everybody is told to go, and what is not written yet is written.
//!
//! ```text
//! begin_stop ─ turns until is_stopped ─ begin_flush ─ flush until it is done ─ end_store ─ flush again
//! ```
//!
//! Always true: a stop takes as long as peers need to take their `connection.close`, and no longer than
//! [`STOP_MS`]; a store that finds no room on the disk is not waited for.

use std::io;

use leveret_core::command::ConnectionId;
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::time::Deadline;

use super::platform::Platform;
use super::state::Engine;

/// How long a stop may take: clients get so much time to take their connection.close.
const STOP_MS: u64 = 700;

impl<P: Platform> Engine<P> {
    /// Tells everybody to go, and stops when they have gone or after a while; `how` says on whose wish. Asked
    /// a second time, it stops at once.
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
            self.put_one_out(ConnectionId::from_index(index), &fault);
        }
        self.shared.lists.for_room.clear();
        self.shared.lists.for_jobs.clear();
    }

    /// Whether it is about to stop.
    pub const fn is_stopping(&self) -> bool {
        self.shared.stopping.is_some()
    }

    /// Whether no turn is to be taken any more.
    pub fn is_stopped(&self) -> bool {
        self.shared.stopping.is_some_and(|at| {
            self.shared.peers.connections() == 0 && !self.bridges.is_connected() || at.is_due(self.shared.now)
        })
    }

    /// Begins to write what has not been written when the turns have ended; `true`: [`Self::flush`] is to be
    /// called, after a sleep.
    pub fn begin_flush(&mut self) -> bool {
        let Some(store) = &mut self.store else { return false };
        store.keeper.flush(self.shared.now);
        self.go_on_flushing()
    }

    /// Goes on with that; `true`: once more.
    ///
    /// # Errors
    /// The disk failed.
    pub fn flush(&mut self) -> io::Result<bool> {
        self.take_from_disk()?;
        Ok(self.go_on_flushing())
    }

    fn go_on_flushing(&mut self) -> bool {
        let (broker, mut context) = self.shared.broker_mut();
        let has_jobs = broker.run_jobs(&mut context);
        self.hand_to_disk();
        // Nobody asks for turns any more, so a job that is not over is as good a reason for the next call.
        if has_jobs && let Some(store) = &mut self.store {
            store.note_spilling(true);
        }
        self.is_flushing()
    }

    fn is_flushing(&self) -> bool {
        let Some(store) = self.store.as_ref().filter(|store| !store.keeper.is_idle(&self.shared.journal))
        else {
            return false;
        };
        if store.is_stuck() {
            log::warn!("the disk is full: what had not been confirmed yet is not written");
            return false;
        }
        true
    }

    /// Until when to sleep before that; `None`: not at all. Of all that a turn waits for, only the store
    /// matters: the stop itself has been due for long.
    pub fn flush_sleeps_until(&self) -> Option<Deadline> {
        let store = self.store.as_ref()?;
        let is_busy =
            store.has_work(&self.shared.broker, &self.shared.journal, &self.shared.supplies.messages);
        (!is_busy).then(|| store.keeper.deadline())
    }

    /// Ends the store's life when everything is written; `true`: there is more to flush for that.
    pub fn end_store(&mut self) -> bool {
        let Some(store) = self.store.as_mut().filter(|store| store.keeper.is_idle(&self.shared.journal))
        else {
            return false;
        };
        self.shared.broker.reset_watermarks(&mut self.shared.journal);
        store.keeper.close(self.shared.now);
        self.begin_flush()
    }

    /// Logs what the store has done since the start.
    pub fn log_counters(&self) {
        if let Some(store) = &self.store {
            store.log_counters();
        }
    }

    /// Logs what was held back of peers' lines.
    pub fn log_held_back(&mut self) {
        self.shared.supplies.log.report();
    }
}
