//! What a parameter has to be, for a bridge to come of it.
//!
//! Always true: what is taken here, [`parse`] makes a bridge of at every start.

use crate::admin::definitions::table_of;
use crate::broker::{ParameterNeeds, ParameterView, SHOVEL};
use crate::config::shovel::End;
use crate::config::shovel_parameter::parse;
use crate::config::upstream::Upstream;
use crate::fields::Value;

/// Whether a component takes a value, and what it would ask for. Files are this machine's, and who reads the
/// error may learn what is there, or use its key; and some users may log in from this machine only.
pub(in crate::engine) fn check(said: &ParameterView<'_>) -> Result<ParameterNeeds, String> {
    if said.component != SHOVEL {
        return Err(format!("component {} not found", said.component));
    }
    let bridge = parse(said.vhost.unwrap_or_default(), said.name, said.value)?;
    if bridge.feeds_itself() {
        return Err(format!("src-queue {} is where this shovel puts what is refused", bridge.parked));
    }
    for end in bridge.shovel.iter().flat_map(|shovel| [&shovel.source, &shovel.destination]) {
        arguments_of(end)?;
    }
    let of_administrator = if bridge.tls.ca_file.is_some() || bridge.tls.identity.is_some() {
        Some("name files of this machine (cacertfile, certfile, keyfile)")
    } else if bridge.upstream.iter().any(Upstream::is_this_machine) {
        Some("connect to this machine itself")
    } else {
        None
    };
    Ok(ParameterNeeds { vhost: bridge.vhost, of_administrator })
}

/// What an end's queue is declared with where there is none.
pub(super) fn arguments_of(end: &End) -> Result<Vec<u8>, String> {
    if end.arguments.is_empty() {
        return Ok(Vec::new());
    }
    table_of(&Value::parse(end.arguments.as_bytes())?)
}
