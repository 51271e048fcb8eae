//! What passes between the loop and the disk: what the helpers did, what they are handed, and who waited for it.
//!
//! Always true: a failure is final, for nothing that was not durable before is confirmed; whoever waits for the disk is
//! told of every commit.

use std::io;

use leveret_core::log_limiter::{LogKind, LogSource};

use super::bridges::Call;
use super::peer::Waiting;
use super::platform::Platform;
use super::state::Engine;

/// A commit that takes so long is recorded, in microseconds.
const SLOW_COMMIT_US: u64 = 1_000_000;

/// After this many commits that waited for the sync budget the log says so, once.
const COMMITS_OVER_BUDGET_TOLD: u64 = 100;

impl<P: Platform> Engine<P> {
    /// Takes what the helpers did. A failure is final: nothing that was not durable before is confirmed.
    pub(super) fn take_from_disk(&mut self) -> io::Result<()> {
        let Some(store) = &mut self.store else { return Ok(()) };
        let shared = &mut self.shared;
        let written = shared.platform.take_written();
        let is_written = written.is_some();
        if let Some((done, took_us)) = written {
            if done.is_commit() {
                store.note_sync(took_us);
                if took_us >= SLOW_COMMIT_US {
                    let text = format_args!("the disk took {} ms for a commit", took_us / 1000);
                    shared.supplies.log.record(shared.now, log::Level::Warn, text);
                }
            }
            let was_full = shared.journal.is_file_system_full();
            store.take_write(&mut shared.journal, &mut shared.supplies.messages, done, shared.now)?;
            log_full(was_full, shared.journal.is_file_system_full());
        }
        if let Some(outcome) = shared.platform.take_read() {
            let (broker, mut context) = shared.broker_mut();
            let more = store.take_read(broker, &mut context, outcome);
            more.into_iter().for_each(|more| shared.platform.start_read(more));
        }
        self.note_durable(is_written);
        Ok(())
    }

    pub(super) fn hand_to_disk(&mut self) {
        let Some(store) = &mut self.store else { return };
        let shared = &mut self.shared;
        let (broker, mut context) = shared.broker_mut();
        store.note_spilling(broker.spill(&mut context));
        if let Some(job) = store.next_read(broker, context.messages_mut()) {
            shared.platform.start_read(job);
        }
        let (queues, now) = (shared.broker.queues(), shared.now);
        if queues.has_deadlines() && store.log().time_deadline().is_due(now) {
            store.keeper.say_time(queues.has_stored_deadline(), now);
        }
        // After the reads, which may find that a segment can leave: that takes a commit.
        let (journal, messages) = (&mut shared.journal, &mut shared.supplies.messages);
        if let Some(job) = store.keeper.next_write(journal, messages, now) {
            shared.platform.start_write(job);
        }
        if !store.has_told_budget && store.log().over_budget().0 >= COMMITS_OVER_BUDGET_TOLD {
            store.has_told_budget = true;
            let text = format_args!(
                "confirms wait for the sync budget: a publisher that waits for each confirm gets at most \
                 syncs_per_second of them a second; keep several messages unconfirmed, or raise it"
            );
            shared.supplies.log.log(now, log::Level::Info, LogSource::Anybody, LogKind::Shortage, text);
        }
        if let Some(bytes) = store.keeper.log_mut().take_index_overflow() {
            let text = format_args!(
                "what memory knows of the log takes {bytes} bytes: persistent messages wait until some are \
                 consumed; raise index_bytes_max, or segment_bytes for a new store"
            );
            shared.supplies.log.warn(now, LogSource::Anybody, LogKind::Shortage, text);
        }
        self.note_durable(false);
    }

    /// Tells those who wait for the disk what is durable now. Operators' clients wait for more than messages,
    /// so they look after every write.
    fn note_durable(&mut self, is_written: bool) {
        self.shared.broker.queues_mut().note_durable(&self.shared.journal);
        let durable = self.shared.journal.durable();
        if core::mem::replace(&mut self.shared.lists.durable_told, durable) == durable && !is_written {
            return;
        }
        for _ in 0..self.shared.lists.for_disk.len() {
            let Some(id) = self.shared.lists.for_disk.pop() else { break };
            let Some(connection) = id.connection() else {
                // What it waits for is put together where it is written.
                self.shared.list_to_write(id);
                continue;
            };
            let Some(peer) = self.shared.peers.get_mut(id) else { continue };
            if peer.session.is_bridge() {
                self.tell_bridge(connection, Call::Durable);
                self.shared.after_session(id);
                continue;
            }
            let mut context = self.shared.supplies.context(
                self.shared.now,
                &self.shared.broker,
                &self.shared.journal,
                connection,
            );
            peer.session.amqp().note_durable(&mut context);
            if matches!(peer.waiting, Waiting::Disk(batch) if batch <= durable) {
                self.shared.answer_held(connection);
            }
            self.shared.after_session(id);
        }
    }
}

/// Says that the file system has become full, or has room again.
pub fn log_full(was_full: bool, is_full: bool) {
    match (was_full, is_full) {
        (false, true) => log::warn!(
            "the file system of the data directory is full, before disk_limit is reached: publishers of \
             persistent messages wait as soon as what is ready is used, and go on when there is room"
        ),
        (true, false) => log::info!("the file system of the data directory has room again: it goes on"),
        _ => {}
    }
}
