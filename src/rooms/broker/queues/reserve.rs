//! Whether queues have room for one more message: entries, their share of the memory, the log.
//!
//! Always true: nothing is changed here; a publisher waits only for what others can free.

use super::queue::Queue;
use super::state::Queues;
use crate::broker::Context;
use crate::broker::faults::{out_of, out_of_disk, unwritable};
use crate::broker::quota::{LogShares, Quota, owner_of};
use crate::broker::shortage::{Pool, Shortage};
use crate::command::{QueueId, VhostId};
use crate::error::Fault;
use crate::journal::{Journal, Mode, NoRoom};
use crate::mem::{MessageFlags, MessageId, Messages, Share};

/// What keeps a message, in itself valid, from being published.
pub(crate) enum Hindrance {
    /// The missing room will be freed by others: the publisher waits.
    Wait(Shortage),
    Fault(Fault),
}

/// The publisher who asks for room.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    /// The virtual host of the target queues.
    pub(crate) vhost: VhostId,
    /// The part of the pools that the publisher may use.
    pub(crate) share: Share,
    /// Whether the publisher can be made to wait; not in the middle of a commit.
    pub(crate) may_wait: bool,
}

impl Queues {
    /// Whether every target queue takes the message now; changes nothing.
    pub(crate) fn reserve(
        &self,
        cx: &Context<'_>,
        quota: &Quota,
        message: MessageId,
        targets: &[QueueId],
        claim: Claim,
    ) -> Result<(), Hindrance> {
        let share = claim.share;
        let needed = targets.iter().filter(|&&queue| self.needs_chunk(queue)).count();
        let reserve = match share {
            Share::Ordinary => self.settings.chunks_reserve,
            Share::Transaction | Share::Reserve | Share::ReadBack => 0,
        };
        if needed > self.fan_out_max() {
            return Err(Hindrance::Fault(out_of("queue_entries_max")));
        }
        // All target queues are in the virtual host of the channel.
        let owner = || owner_of(claim.vhost);
        let fits = self.pool.may_take(owner, needed, reserve);
        let within_share =
            share == Share::Reserve || targets.iter().all(|&queue| self.within_share(cx.messages, queue));
        match (fits && within_share, share) {
            (true, _) => self.reserve_log(cx, quota, message, targets, claim),
            (false, Share::Ordinary) => Err(Hindrance::Wait(match fits {
                true => self.crowded_queue(cx.messages, targets),
                false => self.lacks_entries(claim.vhost, needed + reserve),
            })),
            (false, Share::Transaction | Share::Reserve | Share::ReadBack) => {
                Err(Hindrance::Fault(out_of("queue_entries_max")))
            }
        }
    }

    /// Whether the log takes the message now, if it is to be logged. Everybody can wait for the next commit;
    /// for room on the disk only a publisher that holds nothing others wait for.
    fn reserve_log(
        &self,
        cx: &Context<'_>,
        quota: &Quota,
        message: MessageId,
        targets: &[QueueId],
        claim: Claim,
    ) -> Result<(), Hindrance> {
        let logged = self.logged_targets(cx, message, targets);
        if logged == 0 {
            return Ok(());
        }
        let bytes = cx.messages.stream_len(message) as u64;
        if !cx.journal.fits_commit(bytes, cx.messages.body_len(message).into(), logged) {
            return Err(Hindrance::Fault(out_of("commit_bytes_max")));
        }
        let holds_up = claim.share == Share::Reserve && claim.may_wait;
        if holds_up && cx.journal.mode() == Mode::Unwritable {
            // Others wait for what the publisher holds, and the disk will not recover by itself.
            return Err(Hindrance::Fault(unwritable()));
        }
        let room = cx.journal.admit(bytes + self.kept_for_letters(cx.journal), logged);
        let most = cx.journal.queue_bytes_max();
        let within = targets.iter().all(|&queue| self.in_all(queue, Queue::log_bytes) + bytes <= most);
        let vhost = claim.vhost;
        let leaves_enough = quota.disk().leaves_room(cx.journal, vhost, bytes * logged as u64);
        match room {
            Ok(()) if within && leaves_enough => Ok(()),
            // For a commit all room was made sure of before.
            _ if !claim.may_wait => Ok(()),
            Err(NoRoom::Commit) if cx.journal.mode() == Mode::Unwritable => {
                Err(Hindrance::Wait(Shortage::Unwritable))
            }
            Err(NoRoom::Commit) => Err(Hindrance::Wait(Shortage::Commit)),
            Ok(()) if within && claim.share == Share::Ordinary => {
                Err(Hindrance::Wait(Shortage::VhostDisk(vhost)))
            }
            Ok(()) if within => Err(Hindrance::Fault(LogShares::is_used_up())),
            Ok(()) if claim.share == Share::Ordinary => Err(Hindrance::Wait(self.longest_in_log(targets))),
            Err(NoRoom::Disk) if claim.share == Share::Ordinary => {
                Err(Hindrance::Wait(disk_shortage(cx.journal)))
            }
            Ok(()) | Err(NoRoom::Disk) => Err(Hindrance::Fault(out_of_disk(cx.journal))),
        }
    }

    /// Why queue entries are missing: all are used, or the rest is kept for other virtual hosts.
    #[cold]
    fn lacks_entries(&self, vhost: VhostId, chunks: usize) -> Shortage {
        match chunks <= self.pool.chunks_free() {
            true => Shortage::VhostMemory(Pool::Entries, vhost),
            false => Shortage::Pool(Pool::Entries),
        }
    }

    /// Leaves out the queues that refuse the message for their length limit, and, for a message that expires
    /// at once, those where no consumer waits for it (`is_taken_at_once`) and which have no dead letters.
    /// Says how many stay, in front of those that refuse and dead-letter it, and whether a length limit
    /// refused it.
    pub(crate) fn keep_willing(
        &self,
        messages: &Messages,
        message: MessageId,
        targets: &mut Vec<QueueId>,
        is_taken_at_once: impl Fn(QueueId) -> bool,
    ) -> (usize, bool) {
        let due = messages.flags(message).has(MessageFlags::DUE_AT_ONCE);
        let (mut kept, mut end, mut refused) = (0, 0, false);
        for at in 0..targets.len() {
            let queue = targets[at];
            let refuses = self.refuses(messages, queue, message);
            refused |= refuses;
            let due = due || self.at(queue).settings.message_ttl_ms == 0;
            let stays = !refuses && (!due || self.goes_on_though_due(queue) || is_taken_at_once(queue));
            let is_buried = refuses && self.buries_refused(queue);
            if stays || is_buried {
                targets.swap(end, at);
                end += 1;
            }
            if stays {
                targets.swap(kept, end - 1);
                kept += 1;
            }
        }
        targets.truncate(end);
        (kept, refused)
    }

    /// Whether a message that expires at once goes on from a queue as a dead letter, or is delayed first.
    fn goes_on_though_due(&self, queue: QueueId) -> bool {
        self.at(queue).sleeps_for.is_some() || self.has_dead_letters(queue)
    }
}

/// Why the log has no room at all, when it has none.
#[cold]
pub fn disk_shortage(journal: &Journal) -> Shortage {
    match journal.room_key() {
        _ if journal.mode() != Mode::On => Shortage::Unwritable,
        _ if journal.is_file_system_full() => Shortage::FileSystem,
        "disk_limit" => Shortage::DiskLimit,
        _ => Shortage::Index,
    }
}
