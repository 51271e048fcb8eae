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
use crate::engine::login_throttle::LoginThrottle;
use crate::engine::peer_id::PeerId;
use crate::engine::peers::Peers;
use crate::engine::platform::Visitor;

/// What the doors see of the house behind them.
pub(in crate::engine) struct House<'e, S> {
    pub(in crate::engine) now: Now,
    pub(in crate::engine) limits: &'e Limits,
    pub(in crate::engine) peers: &'e Peers<S>,
    /// What is known of addresses that sent passwords, and whose login waits for it.
    pub(in crate::engine) throttle: &'e LoginThrottle,
    /// Who has a login that is known.
    pub(in crate::engine) broker: &'e Broker,
    pub(in crate::engine) journal: &'e Journal,
    pub(in crate::engine) tokens: &'e Tokens,
}

/// What is to be done next.
pub(in crate::engine) enum Step<S> {
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
