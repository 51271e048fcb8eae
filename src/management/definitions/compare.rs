//! Compares defined objects with those of the broker: what an import would do.
//!
//! # Invariants
//! - Nothing is changed.
//! - An object is the same if [`apply`](super::apply) would change nothing.
//! - Objects that the same file defines count as existing for the objects behind them.

use std::collections::BTreeSet;

use leveret_broker::{Broker, Context, Declared};
use leveret_core::definition::VhostLimits;

use super::{Item, Password, is_applied};

/// The difference between a defined object and the broker.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Comparison {
    /// There is no such object; the import creates it.
    New,
    /// The import changes nothing.
    Same,
    /// The object exists with other properties; the text says what the import does.
    Different(&'static str),
    /// The import fails at this object; the text says why.
    Impossible(String),
}

/// The kind, virtual host and name of an object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Subject {
    /// The kind: `queue`, `exchange` and so on.
    pub kind: &'static str,
    /// The virtual host; `None` for users and global parameters.
    pub vhost: Option<String>,
    /// The name.
    pub name: String,
}

impl Subject {
    /// Returns what names an object.
    pub fn of(item: &Item) -> Self {
        let (kind, vhost, name) = match item {
            Item::Vhost(it) => ("vhost", None, it.name.clone()),
            Item::User(it) => ("user", None, it.name.clone()),
            Item::Permission(it) => ("permission", Some(&it.vhost), it.user.clone()),
            Item::TopicPermission(it) => {
                ("topic permission", Some(&it.vhost), format!("{}, {}", it.user, it.exchange))
            }
            Item::Limits(vhost, _) => ("limits", Some(vhost), vhost.clone()),
            Item::Policy(it) => ("policy", Some(&it.vhost), it.name.clone()),
            Item::Parameter(it) => ("parameter", it.vhost.as_ref(), it.name.clone()),
            Item::Exchange(it) => ("exchange", Some(&it.vhost), it.name.clone()),
            Item::Queue(it) => ("queue", Some(&it.vhost), it.name.clone()),
            Item::Binding(it) => {
                let name = format!("{} to {} {}", it.source, it.destination_type, it.destination);
                ("binding", Some(&it.vhost), name)
            }
        };
        Self { kind, vhost: vhost.cloned(), name }
    }
}

/// A comparison of a whole file, object by object.
#[derive(Debug, Default)]
pub struct DefinitionComparer {
    /// Virtual hosts, users, exchanges and queues that the import creates: kind, virtual host and name.
    created: BTreeSet<(&'static str, String, String)>,
}

/// Maximum number of new virtual hosts, users, exchanges and queues in a file. After that many, no new object of any
/// kind is compared.
const CREATED_MAX: usize = 10_000;
/// The text for an object that the import changes.
const IS_CHANGED: &str = "it exists with other properties, and the import changes them";
/// The text for an object that the import leaves as it is.
const IS_KEPT: &str = "it exists with other properties, and the import does not change them";

impl DefinitionComparer {
    /// Compares an object. The objects that it needs must have been compared before.
    pub fn compare(&mut self, broker: &mut Broker, context: &mut Context<'_>, item: &Item) -> Comparison {
        if let Some(missing) = self.missing(broker, item) {
            return Comparison::Impossible(missing);
        }
        let comparison = compare(broker, context, item);
        if comparison == Comparison::New && self.created.len() >= CREATED_MAX {
            return Comparison::Impossible(format!("more than {CREATED_MAX} new objects are not compared"));
        }
        if comparison == Comparison::New {
            let Subject { kind, vhost, name } = Subject::of(item);
            if ["vhost", "user", "exchange", "queue"].contains(&kind) {
                self.created.insert((kind, vhost.unwrap_or_default(), name));
            }
        }
        comparison
    }

    fn is_created(&self, kind: &'static str, vhost: &str, name: &str) -> bool {
        self.created.contains(&(kind, vhost.to_string(), name.to_string()))
    }

    /// Returns the text about an object that this one needs, and that exists neither in the broker nor in the file.
    fn missing(&self, broker: &Broker, item: &Item) -> Option<String> {
        let (vhost, user) = match item {
            Item::Vhost(_) | Item::User(_) => return None,
            Item::Permission(it) => (Some(&it.vhost), Some(&it.user)),
            Item::TopicPermission(it) => (Some(&it.vhost), Some(&it.user)),
            Item::Limits(vhost, _) => (Some(vhost), None),
            Item::Policy(it) => (Some(&it.vhost), None),
            Item::Parameter(it) => (it.vhost.as_ref(), None),
            Item::Exchange(it) => (Some(&it.vhost), None),
            Item::Queue(it) => (Some(&it.vhost), None),
            Item::Binding(it) => (Some(&it.vhost), None),
        };
        let has_vhost = |name: &String| {
            self.is_created("vhost", "", name) || broker.access().vhosts().any(|view| view.name == name)
        };
        let has_user = |name: &String| {
            self.is_created("user", "", name) || broker.access().users().any(|view| view.name == name)
        };
        if let Some(vhost) = vhost.filter(|vhost| !has_vhost(vhost)) {
            return Some(format!("no virtual host '{vhost}'"));
        }
        if let Some(user) = user.filter(|user| !has_user(user)) {
            return Some(format!("no user '{user}'"));
        }
        let Item::Binding(it) = item else { return None };
        let vhost = it.vhost.as_str();
        let has = |kind, name: &str| {
            let exists = match kind {
                "queue" => broker.queue_depth(vhost, name).is_some(),
                _ => broker.has_exchange(vhost, name),
            };
            exists || self.is_created(kind, vhost, name)
        };
        let destination_kind = if it.destination_type == "exchange" { "exchange" } else { "queue" };
        [("exchange", &it.source), (destination_kind, &it.destination)]
            .into_iter()
            .find(|(kind, name)| !has(kind, name))
            .map(|(kind, name)| format!("no {kind} '{name}' in vhost '{vhost}'"))
    }
}

/// Compares an object whose needs are met.
fn compare(broker: &mut Broker, context: &mut Context<'_>, item: &Item) -> Comparison {
    if is_applied(broker, item) {
        return Comparison::Same;
    }
    let exists = match item {
        Item::Vhost(it) => broker.access().vhosts().any(|view| view.name == it.name),
        Item::User(user) => {
            let exists = broker.access().users().any(|view| view.name == user.name);
            if exists && matches!(user.password, Password::Clear(_)) {
                return Comparison::Different("it exists, and the import sets its password");
            }
            exists
        }
        Item::Permission(it) => {
            broker.access().permissions().any(|view| (view.user, view.vhost) == (&*it.user, &*it.vhost))
        }
        Item::TopicPermission(it) => broker
            .access()
            .topic_permissions()
            .any(|view| (view.user, view.vhost, view.exchange) == (&*it.user, &*it.vhost, &*it.exchange)),
        Item::Limits(vhost, _) => {
            let limits = broker.access().vhosts().find(|view| view.name == vhost).map(|view| view.limits);
            limits.is_some_and(|limits| limits != VhostLimits::default())
        }
        Item::Policy(it) => broker
            .views()
            .policies()
            .any(|view| (view.vhost, view.kind, view.name) == (&*it.vhost, it.kind, &*it.name)),
        Item::Parameter(it) => broker.views().parameters().any(|view| {
            (view.vhost, view.component, view.name) == (it.vhost.as_deref(), &*it.component, &*it.name)
        }),
        Item::Exchange(_) | Item::Queue(_) | Item::Binding(_) => {
            return compare_topology(broker, context, item);
        }
    };
    if exists { Comparison::Different(IS_CHANGED) } else { Comparison::New }
}

fn compare_topology(broker: &mut Broker, context: &mut Context<'_>, item: &Item) -> Comparison {
    let compared = match item {
        Item::Exchange(it) => broker.compare_exchange_definition(context, &it.vhost, &it.declaration()),
        Item::Queue(it) => broker.compare_queue_definition(context, &it.vhost, &it.declaration()),
        Item::Binding(it) => {
            let exists = broker.has_binding(&it.named());
            Ok(exists.then_some(Declared::Done))
        }
        _ => Ok(None),
    };
    match compared {
        Ok(None) => Comparison::New,
        Ok(Some(Declared::Done)) => Comparison::Same,
        Ok(Some(Declared::Differs)) => Comparison::Different(IS_KEPT),
        Err(fault) => Comparison::Impossible(fault.text.into()),
    }
}
