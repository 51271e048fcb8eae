//! Parameters as somebody says them, and as an operator sees them.
//!
//! Why it exists: who sets a parameter, who lists parameters and who owns a component speak of the same.
//!
//! Always true: what is seen is what was said, and can be said again.

/// The longest value, in bytes of JSON.
pub const PARAMETER_BYTES_MAX: usize = 2048;

/// The component whose parameters are shovels: each takes a place of `bridges_max`.
pub const SHOVEL: &str = "shovel";

/// Says whether a component takes a value, and what the value asks for.
///
/// The error is in RabbitMQ's words, without what is secret in the value.
pub type ParameterCheck = fn(&ParameterView<'_>) -> Result<ParameterNeeds, String>;

/// What a parameter asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ParameterNeeds {
    /// The virtual host here that the component would connect to.
    pub vhost: String,
    /// What in the value is only for who has the tag `administrator`, if anything is.
    pub of_administrator: Option<&'static str>,
}

/// A parameter as somebody says it, or sees it.
#[derive(Clone, Copy, Debug)]
pub struct ParameterView<'a> {
    /// The virtual host; `None`: the parameter is global, and has no component.
    pub vhost: Option<&'a str>,
    /// The component that goes by the parameter.
    pub component: &'a str,
    /// The name of the parameter.
    pub name: &'a str,
    /// The value: JSON, which may hold passwords.
    pub value: &'a [u8],
}

impl<'a> ParameterView<'a> {
    /// By what the parameter is found.
    pub(super) const fn full_name(&self) -> ParameterName<'a> {
        ParameterName { vhost: self.vhost, component: self.component, name: self.name }
    }
}

/// By what a parameter is found.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct ParameterName<'a> {
    /// The virtual host; `None`: the parameter is global.
    pub(crate) vhost: Option<&'a str>,
    pub(crate) component: &'a str,
    pub(crate) name: &'a str,
}

/// Who sets a parameter, and among whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setter<'a> {
    /// The name of the user; `None`: the operator of this machine sets the parameter.
    pub(crate) user: Option<&'a str>,
    /// The user has the tag `administrator`, or is the operator of this machine.
    pub(crate) is_administrator: bool,
    /// The virtual host that the component would connect to exists, and the user has permissions there.
    pub(crate) may_connect: bool,
    /// Virtual hosts that share all places.
    pub(crate) vhosts: usize,
}
