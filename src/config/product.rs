//! Who the broker says it is.

use leveret_core::command::RABBITMQ_VERSION;

use super::units::{Compat, Label};

/// Who the broker says it is in connection.start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Product {
    /// `product` in the server's properties.
    pub name: String,
    /// `version` in the server's properties.
    pub version: String,
}

/// What the layers say about product and version: an explicit one goes before `compat`, whichever came last.
#[derive(Default)]
pub(super) struct Announced {
    pub(super) compat: Option<Compat>,
    pub(super) product: Option<Label>,
    pub(super) version: Option<Label>,
}

impl Announced {
    pub(super) fn product(self) -> Product {
        let (name, version) = match self.compat {
            // Celery's client sets its prefetch right only where it is told so, and nobody configures that.
            Some(Compat::RabbitMq) | None => ("RabbitMQ", RABBITMQ_VERSION),
            Some(Compat::None) => ("Leveret", env!("CARGO_PKG_VERSION")),
        };
        Product {
            name: self.product.map_or_else(|| name.to_string(), |label| label.0),
            version: self.version.map_or_else(|| version.to_string(), |label| label.0),
        }
    }
}
