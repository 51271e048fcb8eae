//! Runtime parameters as records: whose they are, and what they say.
//!
//! Always true: a value has a bounded size, and is in no text for people.

use crate::command::VhostId;
use crate::mem::Slab;

/// The longest value, in bytes of JSON.
pub const PARAMETER_BYTES_MAX: usize = 2048;
/// A parameter with the longest names and value, each a piece of its own.
pub(super) const PARAMETER_BYTES: usize =
    Slab::<Parameter>::record_bytes() + PARAMETER_BYTES_MAX + 2 * 256 + 3 * 16;

/// Parameters without a place that can still be cleared.
pub(super) const LEFT_OUT_MAX: usize = 64;

/// The component whose parameters are shovels: each takes a place of `bridges_max`.
pub const SHOVEL: &str = "shovel";

/// Says whether a component takes a value, and what that asks for.
///
/// The error is in RabbitMQ's words, without what is secret in the value.
pub type ParameterCheck = fn(&ParameterView<'_>) -> Result<ParameterNeeds, String>;

/// What a parameter asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ParameterNeeds {
    /// The virtual host here that it would connect to.
    pub vhost: String,
    /// What in it is only for who has the tag `administrator`, if anything is.
    pub of_administrator: Option<&'static str>,
}

/// A parameter as somebody says it, or sees it.
#[derive(Clone, Copy, Debug)]
pub struct ParameterView<'a> {
    /// The virtual host; `None`: it is global, and has no component.
    pub vhost: Option<&'a str>,
    /// Whose it is.
    pub component: &'a str,
    /// Its name.
    pub name: &'a str,
    /// What it says: JSON, which may hold passwords.
    pub value: &'a [u8],
}

/// One parameter.
pub(super) struct Parameter {
    /// `None`: it is global.
    pub(super) vhost: Option<VhostId>,
    pub(super) component: Box<str>,
    pub(super) name: Box<str>,
    pub(super) value: Box<[u8]>,
}

impl Parameter {
    fn is_shovel(&self) -> bool {
        self.vhost.is_some() && &*self.component == SHOVEL
    }
}

/// All parameters.
pub(super) struct Parameters {
    pub(super) records: Slab<Parameter>,
    /// Grows with each change.
    pub(super) version: u64,
    pub(super) check: ParameterCheck,
    /// Places for shovels.
    pub(super) shovels_max: usize,
    /// Hashes of the virtual hosts, components and names of those that the log has, and for which there was
    /// no room at the start: [`LEFT_OUT_MAX`] at most, and memory for them only if there are some.
    pub(super) left_out: Vec<u64>,
    /// The log may have others, which could not be read or are beyond that.
    pub(super) is_in_doubt: bool,
}

/// What a broker says whose loop knows no components.
fn check_none(said: &ParameterView<'_>) -> Result<ParameterNeeds, String> {
    Err(format!("component {} not found", said.component))
}

impl Parameters {
    pub(super) fn with_capacity(parameters: usize) -> Self {
        Self {
            records: Slab::with_capacity(parameters),
            version: 0,
            check: check_none,
            shovels_max: 0,
            left_out: Vec::new(),
            is_in_doubt: false,
        }
    }

    pub(super) fn find(&self, vhost: Option<VhostId>, component: &str, name: &str) -> Option<usize> {
        let is_it = |it: &Parameter| it.vhost == vhost && (&*it.component, &*it.name) == (component, name);
        self.records.iter().find(|(_, parameter)| is_it(parameter)).map(|(index, _)| index)
    }

    pub(super) fn shovels(&self) -> usize {
        self.records.iter().filter(|(_, it)| it.is_shovel()).count()
    }

    /// How many a virtual host has, of shovels or of all.
    pub(super) fn of_vhost(&self, vhost: VhostId, shovels: bool) -> usize {
        let is_its = |it: &Parameter| it.vhost == Some(vhost) && (!shovels || it.is_shovel());
        self.records.iter().filter(|(_, it)| is_its(it)).count()
    }
}
