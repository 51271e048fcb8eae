//! Which rows of a listing are wanted, and how much of their histories.

use super::samples::Ranges;

/// Which rows are wanted.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only those of this virtual host.
    pub vhost: Option<Box<str>>,
    /// Only those of this user.
    pub user: Option<Box<str>>,
    /// Only those that this user may see: of its virtual hosts, and its own connections.
    pub viewer: Option<Box<str>>,
    /// Only bindings between these.
    pub ends: BindingEnds,
    /// Which histories are wanted beside rates.
    pub ranges: Ranges,
}

/// Between what bindings are wanted.
#[derive(Clone, Debug, Default)]
pub struct BindingEnds {
    /// Only those from this exchange.
    pub source: Option<Box<str>>,
    /// Only those to the one of this name, an exchange or not.
    pub destination: Option<(Box<str>, bool)>,
}
