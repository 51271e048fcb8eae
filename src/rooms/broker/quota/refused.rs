//! The faults for a pool that is full, or of which the client has used up his share.

use crate::error::{Fault, ReplyCode, Scope};

/// A fault that closes the connection, for there is no channel yet that it could close.
pub(super) fn of_connection(fault: Fault) -> Fault {
    Fault { scope: Scope::Connection, ..fault }
}

/// 506: `who` ("connection", "virtual host", "user") has used up its share of the pool that this key sizes.
pub(super) fn has_its_share(who: &str, key: &str) -> Fault {
    Fault::new(
        ReplyCode::ResourceError,
        format_args!(
            "this {who} has its share of {key}, the rest is for others: raise it in the configuration"
        ),
    )
}
