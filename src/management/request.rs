//! One request, who asks, and the names that stand in its path; and what it takes to be answered.
//!
//! Always true: who came by the control socket is the operator, who may do everything; over the network nobody
//! asks who is not a user with a tag that lets him in.

use leveret_broker::Broker;
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::journal::Batch;
use leveret_core::mem::Messages;

use super::http::{REQUEST_BYTES_MAX, Request, Status};
use super::json::Json;
use super::listing::Listing;
use super::listing::{Filter, Viewer};
use super::management::said;
use super::messages::Looking;
use super::messages::QueueGet;
use super::metrics::Exposition;
use super::request_context::RequestContext;
use super::samples::Ranges;
use super::web_page::Page;

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

// How a request is answered: what whoever asks is told, before it is bytes.
//
// Always true: a mistake is answered with what is wrong, in the two fields that RabbitMQ's API has for it.

/// Bytes that may wait to be taken by one client.
pub const OUTPUT_BYTES_MAX: usize = 64 << 10;
/// Bytes of a body that is written at once: half of what may wait, so that its head has room beside it.
const BODY_BYTES_MAX: usize = OUTPUT_BYTES_MAX / 2;

/// How a request is answered.
#[derive(Debug)]
pub enum Answer {
    /// With this status and body, at once.
    Now(Status, Vec<u8>),
    /// The same, when this batch is durable.
    Durable(Batch, Status, Vec<u8>),
    /// It was made, when this batch is durable, and is to be found there from now on.
    Made(Batch, String),
    /// When all that was said of what exists is durable, whatever messages wait for.
    Changed(Status, Vec<u8>),
    /// The same, and the client goes on at this address.
    ChangedGoOn(String),
    /// With what the store consists of, once this is durable.
    Hold(Batch),
    /// A file of the page.
    Page(&'static Page),
    /// The client has it.
    KnownPage(&'static Page),
    /// With messages that are taken from a queue.
    Get(Box<QueueGet>),
    /// With messages that are looked at, once they are read from the disk.
    Look(Box<Looking>),
    /// When the body of the request is here and decoded, with what comes of that.
    Upload(Box<dyn Upload>),
    /// An answer of many rows, written as room comes.
    List(Box<Listing>),
    /// Metrics: what stands first, and rows that are written as room comes.
    Metrics(Vec<u8>, Box<Exposition>),
}

/// A request whose body is longer than a request buffer, or takes more than one step.
///
/// ```text
/// body ─take, 16 KiB a turn─→ message pool ─step, one part a turn─→ answer
/// ```
pub trait Upload: core::fmt::Debug {
    /// Takes the next bytes of the body; `left`: so many are still to come, these included.
    ///
    /// # Errors
    /// The body is refused with this answer.
    fn take(&mut self, bytes: &[u8], left: usize, context: &mut RequestContext<'_>) -> Result<(), Answer>;
    /// Goes on by a bounded part once the whole body is here; `None`: there is more to do.
    ///
    /// # Errors
    /// The body is refused with this answer.
    fn step(&mut self, context: &mut RequestContext<'_>) -> Result<Option<Answer>, Answer>;
    /// Frees what the body takes of the message pool: it is answered, or its client is gone.
    fn release(&mut self, messages: &mut Messages);
}

/// An answer, or the refusal where it is known that there is none.
pub(super) type Answered = Result<Answer, Answer>;

/// A small JSON body.
pub fn body(write: impl FnOnce(&mut Json<'_>)) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut Json::new(&mut out, BODY_BYTES_MAX));
    out
}

/// A body that says what is wrong.
#[cold]
pub fn problem(error: &str, reason: &str) -> Vec<u8> {
    body(|json| said(json, &[("error", error), ("reason", reason)]))
}

pub(super) const fn done(status: Status) -> Answer {
    Answer::Now(status, Vec::new())
}

#[cold]
pub(super) fn bad_request(reason: &str) -> Answer {
    Answer::Now(Status::BadRequest, problem("bad_request", reason))
}

/// The same of what was found wrong with what was said.
#[cold]
pub(super) fn bad(why: String) -> Answer {
    bad_request(&why)
}

/// What a request without enough rights is told.
#[cold]
pub(super) fn unauthorized(reason: &str) -> Answer {
    Answer::Now(Status::Unauthorized, problem("not_authorised", reason))
}

#[cold]
pub(super) fn not_found(reason: &str) -> Answer {
    Answer::Now(Status::NotFound, problem("Object Not Found", reason))
}

#[cold]
pub(super) fn refused(fault: &Fault) -> Answer {
    let (status, error) = match fault.code {
        ReplyCode::NotFound => (Status::NotFound, "Object Not Found"),
        ReplyCode::PreconditionFailed => (Status::PreconditionFailed, "precondition_failed"),
        ReplyCode::ResourceError => (Status::Unavailable, "resource_error"),
        _ => (Status::BadRequest, "bad_request"),
    };
    Answer::Now(status, problem(error, &fault.text))
}

/// What a fault over AMQP is over HTTP.
#[cold]
pub(super) fn refusal(fault: &Fault) -> Answer {
    let text = fault.text.split_once(" - ").map_or(&*fault.text, |(_, text)| text);
    match fault.code {
        ReplyCode::NotFound => Answer::Now(Status::NotFound, problem("not_found", text)),
        ReplyCode::AccessRefused | ReplyCode::NotAllowed => unauthorized(text),
        ReplyCode::ResourceError => Answer::Now(Status::Unavailable, problem("unavailable", text)),
        _ => bad_request(text),
    }
}

/// Says that a body is longer than it may be.
#[cold]
pub(super) fn too_large(why: &str) -> Answer {
    Answer::Now(Status::TooLarge, problem("too_large", why))
}

/// Says that a request that takes no long body has one.
#[cold]
pub(super) fn request_too_large() -> Answer {
    too_large(&format!("this request may have at most {REQUEST_BYTES_MAX} bytes, its head included"))
}

/// Says that the pool has no room for a body.
#[cold]
pub(super) fn no_room() -> Answer {
    let why = "the message pool (messages_max, body_bytes_max) has no room for the body of this request now: \
               try again later";
    Answer::Now(Status::Unavailable, problem("unavailable", why))
}
