//! The operator's socket, and what is spoken with one of its clients; what is done with them stands in
//! `operators`.

use super::listener::Listener;
use super::peer_id::PeerId;
use crate::admin::admin_session::AdminSession;
use crate::admin::request_context::{Orders, Process};
use crate::time::{Deadline, Now};

/// A client that neither says nor takes anything for so long is gone.
pub(super) const IDLE_MS: u64 = 60_000;

/// The socket, and what its clients share.
pub(super) struct AdminSocket {
    pub(super) is_open: bool,
    /// Whether somebody may be waiting outside.
    pub(super) listener: Listener,
    pub(super) process: Process,
    pub(super) own_uid: u32,
    pub(super) orders: Orders,
    /// The client for whom the store's files are held still.
    pub(super) holder: Option<PeerId>,
}

impl AdminSocket {
    /// A socket at which nobody gets in yet.
    pub(super) fn closed(process: Process, own_uid: u32) -> Self {
        Self {
            is_open: false,
            listener: Listener::new(false),
            process,
            own_uid,
            orders: Orders::default(),
            holder: None,
        }
    }
}

/// What is spoken with one client.
#[derive(Debug)]
pub(super) struct AdminConnection {
    pub(super) session: AdminSession,
    /// It will say nothing more; what it said is still answered.
    pub(super) has_ended: bool,
    pub(super) idle_at: Deadline,
}

impl AdminConnection {
    pub(super) const fn deadline(&self) -> Deadline {
        self.idle_at
    }

    /// It got on, or has us to wait for.
    pub(super) fn note_progress(&mut self, now: Now) {
        self.idle_at = now.after_ms(IDLE_MS);
    }

    /// It said its last, and everything is answered.
    pub(super) fn is_done(&self) -> bool {
        let is_idle =
            !self.session.has_output() && !self.session.has_request() && !self.session.awaits_disk();
        self.has_ended && is_idle
    }
}
