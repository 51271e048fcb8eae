//! How it is told that there is no more, or no more for who asks.

use crate::error::{Fault, ReplyCode, Scope};

/// A fault that closes the connection, for there is no channel yet that it could close.
pub(super) fn of_connection(fault: Fault) -> Fault {
    Fault { scope: Scope::Connection, ..fault }
}

/// 506: `who` ("connection", "virtual host", "user") has its share of what this key sizes.
pub(super) fn has_its_share(who: &str, key: &str) -> Fault {
    Fault::new(
        ReplyCode::ResourceError,
        format_args!(
            "this {who} has its share of {key}, the rest is for others: raise it in the configuration"
        ),
    )
}
