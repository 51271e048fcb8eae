//! One request with its user and the names in its path, and the ways to answer it.
//!
//! # Invariants
//! - A request from the control socket is the operator's, who may do everything.
//! - Over the network a request is answered only for a user with a tag that grants access, except for rows that
//!   demand no login.
//! - The answer to an error says what is wrong, in the two fields of RabbitMQ's API (`error` and `reason`).

use leveret_broker::Broker;
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::mem::Messages;
use leveret_core::pending_writes::Batch;

use super::http::{REQUEST_BYTES_MAX, Request, Status};
use super::json::Json;
use super::listing::Listing;
use super::listing::{Filter, Viewer};
use super::management::text_object;
use super::messages::PendingBrowse;
use super::messages::QueueGet;
use super::metrics::Exposition;
use super::request_context::RequestContext;
use super::samples::Ranges;
use super::web_page::Page;

/// The most names in a path.
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
    /// Looks a user up. Returns `None` if it does not exist or has no tag that grants access.
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

/// The demand of a request over the network on its user, besides a tag that grants access. The virtual host is the one
/// in the path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Demand {
    /// Nothing, not even a login.
    NoLogin,
    /// Cannot be met over the network: only the operator may send the request, over the control socket.
    Operator,
    /// A tag that grants access, no matter which.
    AnyTag,
    /// The tag `monitoring`.
    Monitor,
    /// The tag `administrator`.
    Administrator,
    /// The tag `policymaker`.
    Policymaker,
    /// The tag `policymaker`, and permissions in the virtual host unless the user is an administrator.
    PolicymakerInVhost,
    /// Permissions in the virtual host, whatever the user's tags.
    Permissions,
    /// Permissions in the virtual host, unless the user is an administrator.
    Member,
    /// Permissions in the virtual host, unless the user is a monitor.
    Watcher,
}

/// One request as it is answered.
pub(super) struct Call<'c> {
    pub(super) request: &'c Request<'c>,
    /// The user over the network. `None`: the operator at the control socket, or a client of a request without a
    /// login.
    pub(super) user: Option<&'c User>,
    /// For each word in braces of the row's pattern: the word and the path segment in its place.
    pub(super) names: heapless::Vec<(&'static str, &'c str), NAMES_MAX>,
}

impl<'c> Call<'c> {
    /// Returns the path segment for a word in braces, if the pattern has it.
    pub(super) fn optional_name(&self, word: &str) -> Option<&'c str> {
        self.names.iter().find(|(known, _)| *known == word).map(|(_, name)| *name)
    }

    /// Returns the path segment for a word in braces that the pattern has.
    pub(super) fn name(&self, word: &str) -> &'c str {
        debug_assert!(self.optional_name(word).is_some(), "the pattern has {word}");
        self.optional_name(word).unwrap_or_default()
    }

    /// Checks that the user meets a demand.
    ///
    /// # Errors
    /// The user does not meet it, or the virtual host does not exist.
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
            Demand::Policymaker | Demand::PolicymakerInVhost if !user.is_policymaker => {
                Err(unauthorized(no_policymaker))
            }
            Demand::NoLogin
            | Demand::Operator
            | Demand::AnyTag
            | Demand::Monitor
            | Demand::Administrator
            | Demand::Policymaker => Ok(()),
            Demand::PolicymakerInVhost => in_vhost(user.is_administrator, no_policymaker),
            // An administrator needs the same permissions as over AMQP, and gets RabbitMQ's error text.
            Demand::Permissions if user.is_administrator => in_vhost(false, "Access refused."),
            Demand::Permissions => in_vhost(false, no_member),
            Demand::Member => in_vhost(user.is_administrator, no_member),
            Demand::Watcher => in_vhost(user.is_monitor, no_member),
        }
    }

    /// Returns a filter for the rows that the request selects and its user may see.
    pub(super) fn filter(&self) -> Filter {
        let viewer = self.user.filter(|user| !user.is_administrator).map(User::viewer);
        let ranges = Ranges::from_query(self.request);
        // In paths of parameters the component stands where other paths have a user.
        let user = self.optional_name("user").or(self.optional_name("component")).map(Into::into);
        let (vhost, is_ctl) = (self.optional_name("vhost").map(Into::into), self.user.is_none());
        Filter { vhost, user, viewer, ranges, is_ctl, ..Filter::default() }
    }

    /// Returns a filter for the connections that the user may close. A monitor may see the connections of others, but
    /// not close them.
    pub(super) fn closable(&self) -> Filter {
        let filter = self.filter();
        let viewer = filter.viewer.map(|viewer| Viewer { is_monitor: false, ..viewer });
        Filter { viewer, ..filter }
    }

    /// Returns a filter for the virtual hosts in which the user has permissions, even if it is an administrator.
    pub(super) fn accessible(&self) -> Filter {
        Filter { viewer: self.user.map(User::viewer), ..self.filter() }
    }

    /// Answers that the virtual host does not exist, in rabbitmqctl's words or as the management API does.
    #[cold]
    pub(super) fn no_such_vhost(&self, vhost: &str) -> Answer {
        if self.user.is_some() {
            return not_found("Not Found");
        }
        let why = format!("Virtual host '{vhost}' does not exist");
        Answer::Now(Status::NotFound, problem("no_such_vhost", &why))
    }
}

/// Returns whether the virtual host exists.
pub(super) fn exists(context: &RequestContext<'_>, vhost: &str) -> bool {
    context.broker.access().vhosts().any(|view| view.name == vhost)
}

/// Returns an exchange's name. In a path the default exchange, whose name is empty, is called `amq.default`.
pub(super) fn default_named(exchange: &str) -> &str {
    if exchange == "amq.default" { "" } else { exchange }
}

/// The most bytes that may wait for one client to read them.
pub const OUTPUT_BYTES_MAX: usize = 64 << 10;
/// The most bytes of a body that is written at once: half of the output limit, which leaves space for the response's
/// head.
const BODY_BYTES_MAX: usize = OUTPUT_BYTES_MAX / 2;

/// How a request is answered.
#[derive(Debug)]
pub enum Answer {
    /// Sends this status and body at once.
    Now(Status, Vec<u8>),
    /// Sends this status and body when this batch is durable.
    Durable(Batch, Status, Vec<u8>),
    /// Sends `201 Created` when this batch is durable, with the path of the new object.
    Created(Batch, String),
    /// Sends this status and body when all definitions that have been appended are durable, whatever messages wait
    /// for.
    Changed(Status, Vec<u8>),
    /// Like `Changed`, and redirects the client to this address.
    ChangedRedirect(String),
    /// Sends the list of the store's files once this batch is durable.
    PinStore(Batch),
    /// Sends a file of the web page.
    Page(&'static Page),
    /// Tells the client that its copy of a file of the web page is up to date.
    KnownPage(&'static Page),
    /// Sends messages that are taken from a queue.
    Get(Box<QueueGet>),
    /// Sends messages of a queue that remain in it, once they have been read from the disk.
    Browse(Box<PendingBrowse>),
    /// Sends the result of the upload when the request's body has been received and decoded.
    Upload(Box<dyn Upload>),
    /// Sends a list, row by row as output space becomes free.
    List(Box<Listing>),
    /// Sends metrics: the text at the start, then rows as output space becomes free.
    Metrics(Vec<u8>, Box<Exposition>),
}

/// A request whose body is longer than a request buffer, or which takes more than one step.
///
/// ```text
/// body ─take, 16 KiB a turn─→ message pool ─step, one part a turn─→ answer
/// ```
pub trait Upload: core::fmt::Debug {
    /// Takes the next bytes of the body. `left` is the number of bytes still to come, including these.
    ///
    /// # Errors
    /// The body is refused with this answer.
    fn take(&mut self, bytes: &[u8], left: usize, context: &mut RequestContext<'_>) -> Result<(), Answer>;
    /// Continues with a bounded amount of work once the whole body is here. Returns `None` if there is more to do.
    ///
    /// # Errors
    /// The body is refused with this answer.
    fn step(&mut self, context: &mut RequestContext<'_>) -> Result<Option<Answer>, Answer>;
    /// Frees the message pool's memory that the body takes: the request was answered, or its client is gone.
    fn release(&mut self, messages: &mut Messages);
}

/// An answer; an error is an answer that refuses the request.
pub(super) type Answered = Result<Answer, Answer>;

/// Returns a small JSON body.
pub fn body(write: impl FnOnce(&mut Json<'_>)) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut Json::new(&mut out, BODY_BYTES_MAX));
    out
}

/// Returns a body that describes an error.
#[cold]
pub fn problem(error: &str, reason: &str) -> Vec<u8> {
    body(|json| text_object(json, &[("error", error), ("reason", reason)]))
}

pub(super) const fn done(status: Status) -> Answer {
    Answer::Now(status, Vec::new())
}

#[cold]
pub(super) fn bad_request(reason: &str) -> Answer {
    Answer::Now(Status::BadRequest, problem("bad_request", reason))
}

/// Answers `400 Bad Request` with this error text.
#[cold]
pub(super) fn bad(why: String) -> Answer {
    bad_request(&why)
}

/// Answers that the user lacks rights.
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

/// Translates an AMQP error into an HTTP answer.
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

/// Answers that the body is too long.
#[cold]
pub(super) fn too_large(why: &str) -> Answer {
    Answer::Now(Status::TooLarge, problem("too_large", why))
}

/// Answers that the body is too long for a request that takes no long body.
#[cold]
pub(super) fn request_too_large() -> Answer {
    too_large(&format!("this request may have at most {REQUEST_BYTES_MAX} bytes, its head included"))
}

/// Answers that the message pool has no memory left for the body.
#[cold]
pub(super) fn pool_full() -> Answer {
    let why = "the message pool (messages_max, body_bytes_max) has no room for the body of this request now: \
               try again later";
    Answer::Now(Status::Unavailable, problem("unavailable", why))
}
