//! Parameters as they are set, and as an operator sees them.
//!
//! Why it exists: setting and listing parameters, and the components, use the same fields.
//!
//! Always true: a parameter is shown as it was set, and can be set so again.

/// The longest value, in bytes of JSON.
pub const PARAMETER_BYTES_MAX: usize = 2048;

/// The component whose parameters are shovels: each takes a place of `bridges_max`.
pub const SHOVEL: &str = "shovel";

/// Checks whether a component takes a value, and tells what the value needs.
///
/// The error is in RabbitMQ's words, without what is secret in the value.
pub type ParameterCheck = fn(&ParameterView<'_>) -> Result<ParameterNeeds, String>;

/// What the value of a parameter needs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ParameterNeeds {
    /// The virtual host here that the component would connect to; its setter needs permissions there.
    pub vhost: String,
    /// The part of the value that only a user with the tag `administrator` may set, if any.
    pub of_administrator: Option<&'static str>,
}

/// A parameter as it is set and shown.
#[derive(Clone, Copy, Debug)]
pub struct ParameterView<'a> {
    /// The virtual host; `None`: the parameter is global, and has no component.
    pub vhost: Option<&'a str>,
    /// The component that the parameter configures.
    pub component: &'a str,
    /// The name of the parameter.
    pub name: &'a str,
    /// The value: JSON, which may hold passwords.
    pub value: &'a [u8],
}

impl<'a> ParameterView<'a> {
    /// The name that the parameter is found by.
    pub(super) const fn full_name(&self) -> ParameterName<'a> {
        ParameterName { vhost: self.vhost, component: self.component, name: self.name }
    }
}

/// The full name of a parameter.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct ParameterName<'a> {
    /// The virtual host; `None`: the parameter is global.
    pub(crate) vhost: Option<&'a str>,
    pub(crate) component: &'a str,
    pub(crate) name: &'a str,
}

/// Who sets a parameter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setter<'a> {
    /// The name of the user; `None`: the operator of this machine sets the parameter.
    pub(crate) user: Option<&'a str>,
    /// The user has the tag `administrator`, or is the operator of this machine.
    pub(crate) is_administrator: bool,
    /// The virtual host that the component would connect to exists, and the user has permissions there.
    pub(crate) may_connect: bool,
}
