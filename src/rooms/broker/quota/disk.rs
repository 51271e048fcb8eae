//! How much of `disk_limit` a virtual host may fill with its messages.
//!
//! Why it exists: the log is one, and a tenant whose queues nobody empties would take all of it; then the
//! confirms of everybody else's publishers stay away, too, and nobody can declare or be added any more.
//!
//! Always true: with one virtual host there are no shares; with more, a quarter of what the log may hold is
//! kept in equal parts for virtual hosts whose messages take less than their part (`Division`), as of the
//! memory for messages: by virtual host alone, for a message outlives whoever sent it. While less room is
//! left than is kept for others, the publishers of a virtual host that has used up its part wait, or are
//! refused where they must not wait, and meanwhile the cleaner makes room as if what is kept were in use. The
//! bytes of each virtual host are counted anew with every commit and before somebody waits, and only while at
//! most half of the log is free.

use crate::command::VhostId;
use crate::error::Fault;
use crate::journal::{Batch, Journal, Mode};
use crate::mem::Division;

use super::refused::has_its_share;

/// The shares of the log, divided among virtual hosts.
#[derive(Debug)]
pub(crate) struct LogShares {
    division: Division,
    /// Bytes that the messages of each virtual host take in the log; kept only while shares matter.
    held: Vec<u64>,
    /// The batch that was durable when the bytes were counted; `None` while there is plenty of room.
    weighed: Option<Batch>,
    /// The batch that was durable when somebody waited for room behind the parts kept for others.
    kept_at: Option<Batch>,
    /// Rises when less may be kept for some virtual host, so that a waiting publisher may go on.
    room_made: u64,
}

impl LogShares {
    pub(crate) fn with_capacity(vhosts: usize) -> Self {
        Self {
            division: Division::default(),
            held: vec![0; vhosts],
            weighed: None,
            kept_at: None,
            room_made: 0,
        }
    }

    /// Counts the bytes that the messages of each virtual host take in the log, if that matters now: `vhosts`
    /// are all virtual hosts, `queues` the virtual host of each queue with its bytes in the log.
    pub(crate) fn weigh(
        &mut self,
        journal: &mut Journal,
        is_divided: bool,
        vhosts: impl Iterator<Item = VhostId> + Clone,
        queues: impl Iterator<Item = (VhostId, u64)>,
    ) {
        let (room, most) = (journal.disk_room(), journal.disk_bytes_max());
        let is_shared = is_divided && journal.mode() == Mode::On;
        if !is_shared || room > most / 2 {
            self.weighed = None;
            if journal.kept_room() > 0 {
                journal.keep_room(0);
            }
            return;
        }
        let durable = journal.durable();
        if self.weighed == Some(durable) {
            return;
        }
        self.held.fill(0);
        for (vhost, bytes) in queues {
            self.held[vhost.index()] += bytes;
        }
        let division = Division::new(most, vhosts.map(|vhost| self.held[vhost.index()]));
        self.room_made += u64::from(division != self.division);
        (self.division, self.weighed) = (division, Some(durable));
    }

    /// Has the bytes counted anew, because a virtual host has come or gone, or a publisher is about to wait.
    pub(crate) const fn forget(&mut self) {
        self.weighed = None;
    }

    /// Whether a virtual host may add messages of this many bytes to the log, and leaves the others the parts
    /// kept for them.
    #[inline]
    pub(crate) fn leaves_room(&self, journal: &Journal, vhost: VhostId, bytes: u64) -> bool {
        let held = self.held[vhost.index()];
        self.weighed.is_none()
            || self.division.is_own_part(held, bytes)
            || journal.disk_room() >= bytes + self.division.kept_for_others(held)
    }

    /// Counts messages of a virtual host that are to be written, of this many bytes.
    pub(crate) fn count(&mut self, vhost: VhostId, bytes: u64) {
        if self.weighed.is_some() {
            let held = &mut self.held[vhost.index()];
            let keeps_less = self.division.take(*held, bytes);
            *held += bytes;
            self.room_made += u64::from(keeps_less);
        }
    }

    /// Notes that a publisher waits whose virtual host has used up its share: the cleaner is to make room
    /// behind the parts kept for others. Of several virtual hosts the one counts for which most is kept,
    /// until the next commit: each asking for its own would count as room made for the other, in turn and for
    /// ever.
    pub(crate) fn want_room(&mut self, journal: &mut Journal, vhost: VhostId) {
        let kept = self.division.kept_for_others(self.held[vhost.index()]);
        let durable = journal.durable();
        let is_first = self.kept_at.replace(durable) != Some(durable);
        journal.keep_room(if is_first { kept } else { kept.max(journal.kept_room()) });
    }

    /// Rises when room is made that a publisher refused for his share may wait for.
    pub(crate) const fn room_made(&self) -> u64 {
        self.room_made
    }

    /// 506, for a publisher who must not wait: the rest of the disk is kept for others.
    pub(crate) fn is_used_up() -> Fault {
        has_its_share("virtual host", "disk_limit")
    }
}
