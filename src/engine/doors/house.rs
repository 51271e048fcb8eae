//! What passes between the doors and the house behind them.
//!
//! Always true: the doors see the house as it is when they are asked, and change nothing in it.

use crate::broker::Broker;
use crate::command::ConnectionId;
use crate::journal::Journal;
use crate::limits::Limits;
use crate::requests::tokens::Tokens;
use crate::time::Now;

use super::waiting_visitors::WaitingVisitor;
use crate::login_throttle::LoginThrottle;
use crate::peer_id::PeerId;
use crate::peers::Peers;
use crate::platform::Visitor;

/// What the doors see of the house behind them.
pub(crate) struct House<'e, S> {
    pub(crate) now: Now,
    pub(crate) limits: &'e Limits,
    pub(crate) peers: &'e Peers<S>,
    /// What is known of addresses that sent passwords, and whose login waits for it.
    pub(crate) throttle: &'e LoginThrottle,
    /// Who has a login that is known.
    pub(crate) broker: &'e Broker,
    pub(crate) journal: &'e Journal,
    pub(crate) tokens: &'e Tokens,
}

/// What is to be done next.
pub(crate) enum Step<S> {
    /// A newcomer has a handshake place, when these connections, if any, are closed for it.
    Admit {
        visitor: Visitor<S>,
        with_tls: bool,
        /// The address of the visitor has wasted no place lately.
        is_unspent: bool,
        /// Another's, for what all share, and maybe one of its own address, for its share.
        instead_of: [Option<ConnectionId>; 2],
    },
    /// A client of the management API has this place.
    Enter(PeerId, WaitingVisitor<S>),
    /// A client of the management API is to go, and its place is free in the next turn.
    GiveUp(PeerId),
}
