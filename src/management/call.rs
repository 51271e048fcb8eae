//! One request, who asks, and the names that stand in its path; and what it takes to be answered.
//!
//! Always true: who came by the control socket is the operator, who may do everything; over the network nobody
//! asks who is not a user with a tag that lets him in.

use leveret_broker::Broker;

use super::answer::{Answer, not_found, problem, unauthorized};
use super::filter::{Filter, Viewer};
use super::http::{Request, Status};
use super::request_context::RequestContext;
use super::samples::Ranges;

/// Names in a path at most.
pub(super) const NAMES_MAX: usize = 5;

/// A user who is logged in over the network.
pub(super) struct User {
    pub(super) name: String,
    pub(super) tags: String,
    pub(super) is_monitor: bool,
    is_policymaker: bool,
    is_administrator: bool,
}

impl User {
    /// A user; `None`: it has no tag that lets it in here.
    pub(super) fn of(broker: &Broker, name: &str) -> Option<Self> {
        let view = broker.access().users().find(|view| view.name == name)?;
        let has = |tag| view.tags.split(',').any(|other| other == tag);
        let is_administrator = has("administrator");
        let is_monitor = is_administrator || has("monitoring");
        let is_policymaker = is_administrator || has("policymaker");
        let may_enter = is_monitor || is_policymaker || has("management");
        let (name, tags) = (name.to_string(), view.tags.to_string());
        may_enter.then_some(Self { name, tags, is_monitor, is_policymaker, is_administrator })
    }

    fn viewer(&self) -> Viewer {
        Viewer { name: self.name.as_str().into(), is_monitor: self.is_monitor }
    }
}

/// What a request takes over the network, besides a tag that lets its user in. The virtual host is the one in
/// the path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Demand {
    /// Not even a login.
    Nobody,
    /// It is not asked over the network: the operator asks, at the control socket.
    Operator,
    Nothing,
    /// The tag `monitoring`.
    Monitor,
    Administrator,
    /// The tag `policymaker`.
    Policymaker,
    /// The same, and permissions in the virtual host unless it is an administrator.
    PolicymakerThere,
    /// Permissions in the virtual host, whatever tags there are.
    Permissions,
    /// The same, unless it is an administrator.
    Member,
    /// The same, unless it is a monitor.
    Watcher,
}

/// One request as it is answered.
pub(super) struct Call<'c> {
    pub(super) request: &'c Request<'c>,
    /// Who asks over the network; `None`: the operator, by the control socket, or somebody who needs no login.
    pub(super) user: Option<&'c User>,
    /// What stands in the path for the words in braces of its pattern.
    pub(super) names: heapless::Vec<(&'static str, &'c str), NAMES_MAX>,
}

impl<'c> Call<'c> {
    /// What stands for a word in braces, if the pattern has it.
    pub(super) fn has(&self, word: &str) -> Option<&'c str> {
        self.names.iter().find(|(known, _)| *known == word).map(|(_, name)| *name)
    }

    /// What stands for a word in braces that the pattern has.
    pub(super) fn name(&self, word: &str) -> &'c str {
        debug_assert!(self.has(word).is_some(), "the pattern has {word}");
        self.has(word).unwrap_or_default()
    }

    /// Whether its user may ask for this.
    ///
    /// # Errors
    /// He may not, or there is no such virtual host.
    pub(super) fn allow(&self, context: &RequestContext<'_>, demand: Demand) -> Result<(), Answer> {
        let Some(user) = self.user else { return Ok(()) };
        let in_vhost = |is_exempt: bool, why: &str| {
            let vhost = self.name("vhost");
            if !exists(context, vhost) {
                return Err(not_found("Not Found"));
            }
            match is_exempt || context.broker.access().has_permission(&user.name, vhost) {
                true => Ok(()),
                false => Err(unauthorized(why)),
            }
        };
        let no_member = "User not authorised to access virtual host";
        let no_policymaker = "User not authorised to access object";
        match demand {
            Demand::Monitor if !user.is_monitor => Err(unauthorized("Not monitor user")),
            Demand::Administrator if !user.is_administrator => Err(unauthorized("Not administrator user")),
            Demand::Policymaker | Demand::PolicymakerThere if !user.is_policymaker => {
                Err(unauthorized(no_policymaker))
            }
            Demand::Nobody
            | Demand::Operator
            | Demand::Nothing
            | Demand::Monitor
            | Demand::Administrator
            | Demand::Policymaker => Ok(()),
            Demand::PolicymakerThere => in_vhost(user.is_administrator, no_policymaker),
            // An administrator asks as over AMQP, and is told so in RabbitMQ's words.
            Demand::Permissions if user.is_administrator => in_vhost(false, "Access refused."),
            Demand::Permissions => in_vhost(false, no_member),
            Demand::Member => in_vhost(user.is_administrator, no_member),
            Demand::Watcher => in_vhost(user.is_monitor, no_member),
        }
    }

    /// The rows that are meant and that its user sees.
    pub(super) fn filter(&self) -> Filter {
        let viewer = self.user.filter(|user| !user.is_administrator).map(User::viewer);
        let ranges = Ranges::asked(self.request);
        // A component of parameters stands where others have a user.
        let user = self.has("user").or(self.has("component")).map(Into::into);
        let (vhost, is_ctl) = (self.has("vhost").map(Into::into), self.user.is_none());
        Filter { vhost, user, viewer, ranges, is_ctl, ..Filter::default() }
    }

    /// Connections that its user may close: a monitor only watches what is others'.
    pub(super) fn closes(&self) -> Filter {
        let filter = self.filter();
        let viewer = filter.viewer.map(|viewer| Viewer { is_monitor: false, ..viewer });
        Filter { viewer, ..filter }
    }

    /// What is in virtual hosts that its user may enter, also if it is an administrator.
    pub(super) fn enters(&self) -> Filter {
        Filter { viewer: self.user.map(User::viewer), ..self.filter() }
    }

    /// That there is no such virtual host: in rabbitmqctl's words, or as the management API has it.
    #[cold]
    pub(super) fn no_such_vhost(&self, vhost: &str) -> Answer {
        if self.user.is_some() {
            return not_found("Not Found");
        }
        let why = format!("Virtual host '{vhost}' does not exist");
        Answer::Now(Status::NotFound, problem("no_such_vhost", &why))
    }
}

/// Whether there is such a virtual host.
pub(super) fn exists(context: &RequestContext<'_>, vhost: &str) -> bool {
    context.broker.access().vhosts().any(|view| view.name == vhost)
}

/// A path cannot name what has no name.
pub(super) fn default_named(exchange: &str) -> &str {
    if exchange == "amq.default" { "" } else { exchange }
}
