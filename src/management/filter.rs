//! Which rows of a listing are wanted, and how much of their histories.

use super::samples::Ranges;

/// Which rows are wanted.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only those of this virtual host.
    pub vhost: Option<Box<str>>,
    /// Only those of this user.
    pub user: Option<Box<str>>,
    /// Only those that this user may see, as each kind of thing has it.
    pub viewer: Option<Viewer>,
    /// Only bindings between these.
    pub ends: BindingEnds,
    /// Which histories are wanted beside rates.
    pub ranges: Ranges,
    /// The command line asks.
    pub is_ctl: bool,
}

/// Who sees not everything.
#[derive(Clone, Debug)]
pub struct Viewer {
    /// The user.
    pub name: Box<str>,
    /// Whether it watches what others do, in all virtual hosts.
    pub is_monitor: bool,
}

/// Who sees a thing, besides administrators.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Audience {
    /// Whoever may ask for them at all.
    All,
    /// Whoever may enter its virtual host.
    Members,
    /// The same, and monitors.
    MembersAndMonitors,
    /// Its user, and monitors.
    OwnerAndMonitors,
}

/// Between what bindings are wanted.
#[derive(Clone, Debug, Default)]
pub struct BindingEnds {
    /// Only those from this exchange.
    pub source: Option<Box<str>>,
    /// Only those to the one of this name, an exchange or not.
    pub destination: Option<(Box<str>, bool)>,
}
