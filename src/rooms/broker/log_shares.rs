//! What a virtual host may fill of `disk_limit` with its messages.
//!
//! Why it exists: the log is one, and a tenant whose queues nobody empties would take all of it; then the
//! confirms of everybody else's publishers stay away, too, and nobody can declare or be added any more.
//!
//! Always true: with one virtual host there are no shares; with more, a quarter of what the log may hold is
//! kept in equal parts for those whose messages take less of it than that (`Division`), as of the memory for
//! messages: by virtual host alone, for a message outlives whoever sent it. While less room is left than is
//! kept for others, the publishers of a virtual host that has its part wait, or are refused where they must
//! not wait, and meanwhile the cleaner makes room as if what is kept were in use. What each has is counted
//! anew with every commit and before somebody waits, and only while at most half of the log is free.

use crate::command::VhostId;
use crate::error::Fault;
use crate::journal::{Journal, Mode};
use crate::mem::Division;

use super::Broker;
use super::divisions::LogShares;
use super::holders::has_its_share;

impl Broker {
    /// Counts what the messages of each virtual host take in the log, if that matters now.
    pub(super) fn weigh_log(&mut self, journal: &mut Journal) {
        let (room, most) = (journal.disk_room(), journal.disk_bytes_max());
        let is_shared = self.divisions.any && journal.mode() == Mode::On;
        if !is_shared || room > most / 2 {
            self.log_shares.weighed = None;
            if journal.kept_room() > 0 {
                journal.keep_room(0);
            }
            return;
        }
        let durable = journal.durable();
        if self.log_shares.weighed == Some(durable) {
            return;
        }
        self.access.forget_held_of_log();
        for (_, queue) in self.queues.iter().filter(|(_, queue)| !queue.dying) {
            self.access.vhost_held_mut(queue.vhost).log_bytes += queue.log_bytes();
        }
        let division = Division::new(most, self.access.vhosts_held().map(|held| held.log_bytes));
        let room_made = self.log_shares.room_made + u64::from(division != self.log_shares.division);
        let kept_at = self.log_shares.kept_at;
        self.log_shares = LogShares { division, weighed: Some(durable), kept_at, room_made };
    }

    /// A virtual host has come or gone, or somebody is about to wait: it is counted anew.
    pub(super) const fn forget_log_shares(&mut self) {
        self.log_shares.weighed = None;
    }

    /// Whether a virtual host may add messages that take so many bytes of the log, and leaves the others
    /// what is kept for them.
    #[inline]
    pub(super) fn leaves_log(&self, journal: &Journal, vhost: VhostId, bytes: u64) -> bool {
        let LogShares { division, weighed, .. } = &self.log_shares;
        let held = self.access.vhost_held(vhost).log_bytes;
        weighed.is_none()
            || division.is_own_part(held, bytes)
            || journal.disk_room() >= bytes + division.kept_for_others(held)
    }

    /// Messages of a virtual host that take so many bytes are to be written.
    pub(super) fn count_in_log(&mut self, vhost: VhostId, bytes: u64) {
        if self.log_shares.weighed.is_some() {
            let held = self.access.vhost_held_mut(vhost);
            let keeps_less = self.log_shares.division.take(held.log_bytes, bytes);
            held.log_bytes += bytes;
            self.log_shares.room_made += u64::from(keeps_less);
        }
    }

    /// A publisher of a virtual host that has its share waits: the cleaner is to make room behind what is
    /// kept for others. Of several virtual hosts it is the one for which most is kept, until the next commit:
    /// each asking for its own would count as room made for the other, in turn and for ever.
    pub(super) fn want_log_room(&mut self, journal: &mut Journal, vhost: VhostId) {
        let held = self.access.vhost_held(vhost).log_bytes;
        let kept = self.log_shares.division.kept_for_others(held);
        let durable = journal.durable();
        let is_first = self.log_shares.kept_at.replace(durable) != Some(durable);
        journal.keep_room(if is_first { kept } else { kept.max(journal.kept_room()) });
    }

    /// 506 for who must not wait: the rest of the disk is for others.
    pub(super) fn has_its_log(&self) -> Fault {
        has_its_share("virtual host", "disk_limit")
    }
}
