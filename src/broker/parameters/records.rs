//! Runtime parameters as records.
//!
//! Always true: a value has a bounded size, and is shown in no text for people.

use super::views::{ParameterName, ParameterView, SHOVEL};
use leveret_core::command::VhostId;

/// One parameter.
pub(super) struct Parameter {
    /// The virtual host; `None`: the parameter is global.
    pub(super) vhost: Option<VhostId>,
    pub(super) component: Box<str>,
    pub(super) name: Box<str>,
    pub(super) value: Box<[u8]>,
}

impl Parameter {
    /// Whether the parameter has this name, in the virtual host of this id.
    pub(super) fn is(&self, vhost: Option<VhostId>, name: ParameterName<'_>) -> bool {
        self.vhost == vhost && (&*self.component, &*self.name) == (name.component, name.name)
    }

    pub(super) fn is_shovel(&self) -> bool {
        self.vhost.is_some() && &*self.component == SHOVEL
    }

    /// The parameter as an operator sees it, in a virtual host of this name.
    pub(super) const fn view<'a>(&'a self, vhost: Option<&'a str>) -> ParameterView<'a> {
        ParameterView { vhost, component: &self.component, name: &self.name, value: &self.value }
    }
}
