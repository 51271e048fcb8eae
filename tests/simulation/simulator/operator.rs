//! A simulated operator: it changes users, permissions and policies over the management socket, one request
//! after the other.
//!
//! A deleted user must not come back, and users must not be locked out, even after power cuts.
//!
//! # Invariants
//! - An answered change is there at every later start.
//! - An unanswered change may be there completely or not at all.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use leveret_broker::Broker;

use super::ledger::Ledger;
use super::life::Life;
use super::plan::Habit;
use leveret_test_support::random::Random;
use leveret_test_support::simulated_server::{Line, Memory, Shape};

use leveret_server::Engine;

/// Users and virtual hosts that no client uses.
const USERS: [&str; 3] = ["one", "two", "three"];
const VHOSTS: [&str; 2] = ["first", "second"];
const TAGS: [&str; 3] = ["", "monitoring", "administrator"];
const PATTERNS: [&str; 3] = ["", ".*", "^a"];
/// A life sends a request in one of this many steps.
const ONE_IN: u64 = 25;
/// A life with queues for policies changes a policy in one of this many steps.
const POLICY_ONE_IN: u64 = 20;

/// The access definitions that the simulated operator changes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Access {
    /// Tags and password hash of each user.
    users: BTreeMap<String, (String, String)>,
    vhosts: BTreeSet<String>,
    /// By virtual host and user: the configure pattern.
    permissions: BTreeMap<(String, String), String>,
}

impl Access {
    /// Returns the part of a broker's access definitions that the operator changes.
    fn of(broker: &Broker) -> Self {
        let is_one = |name: &str| USERS.contains(&name);
        let users = broker.access().users().filter(|user| is_one(user.name));
        let permissions = broker.access().permissions().filter(|permission| is_one(permission.user));
        let vhosts = broker.access().vhosts().filter(|vhost| VHOSTS.contains(&vhost.name));
        Self {
            users: users.map(|u| (u.name.into(), (u.tags.to_string(), u.hash.export().1))).collect(),
            vhosts: vhosts.map(|vhost| vhost.name.into()).collect(),
            permissions: permissions.map(|p| ((p.vhost.into(), p.user.into()), p.configure.into())).collect(),
        }
    }

    fn has_ends(&self, vhost: &str, user: &str) -> bool {
        self.vhosts.contains(vhost) && self.users.contains_key(user)
    }
}

/// The knowledge of clients about the access definitions, over all lives.
#[derive(Clone, Debug, Default)]
pub struct Accesses {
    known: Access,
    /// The state after the unanswered request, if it happens.
    asked: Option<Access>,
    /// All earlier states: a device that ignores syncs may bring them back.
    past: BTreeSet<Access>,
}

impl Accesses {
    /// Resets the state after a start. Returns what is wrong.
    pub fn begin(&mut self, broker: &Broker, is_excused: bool, may_be_old: bool) -> Option<String> {
        let found = Access::of(broker);
        let asked = self.asked.take();
        let is_possible = found == self.known || asked.as_ref() == Some(&found);
        let is_possible = is_possible || is_excused || may_be_old && self.past.contains(&found);
        let complaint = format!("access is {found:?}, and was {:?} or {asked:?}", self.known);
        self.past.extend([core::mem::replace(&mut self.known, found)].into_iter().chain(asked));
        (!is_possible).then_some(complaint)
    }

    /// Notes the answer to the current request.
    fn settle(&mut self, has_happened: bool) {
        if let Some(asked) = self.asked.take().filter(|_| has_happened) {
            self.past.insert(core::mem::replace(&mut self.known, asked));
        }
    }
}

/// The operator's program.
#[derive(Debug)]
pub struct Operator {
    pub line: Rc<RefCell<Line>>,
    heard: Vec<u8>,
    /// The kind of its unanswered request.
    waits_for: Option<Change>,
}

/// The kind of object that a request changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    Access,
    Policy,
}

impl Operator {
    pub fn connect(engine: &mut Engine<Memory>) -> Self {
        let line = Rc::new(RefCell::new(Line::new(Shape::WIDE)));
        engine.platform_mut().arrive_operator(&line, 0);
        Self { line, heard: Vec::new(), waits_for: None }
    }

    pub fn is_held(&self) -> bool {
        self.line.borrow().is_held
    }

    /// Returns whether all its requests are answered.
    pub fn is_at_rest(&self) -> bool {
        self.waits_for.is_none() || !self.is_held()
    }

    /// Requests a random change, and notes the expected result in the ledger.
    fn ask(&mut self, ledger: &mut Ledger, random: &mut Random) {
        let accesses = &mut ledger.accesses;
        let mut access = accesses.known.clone();
        let (user, vhost) = (random.one_of(&USERS), random.one_of(&VHOSTS));
        let (tags, pattern) = (random.one_of(&TAGS), random.one_of(&PATTERNS));
        let (user_of, place) = (user.to_string(), (vhost.to_string(), user.to_string()));
        let (verb, path, body) = match random.below(10) {
            0..3 => {
                // Every text of this length is a valid password hash.
                let hash = random.one_of(&["A", "B", "C", "D"]).repeat(48);
                let body = format!(
                    "{{\"password_hash\":\"{hash}\",\"tags\":\"{tags}\",\
                     \"hashing_algorithm\":\"rabbit_password_hashing_sha256\"}}"
                );
                access.users.insert(user_of, (tags.into(), hash));
                ("PUT", format!("users/{user}"), body)
            }
            3 => {
                access.users.remove(user);
                access.permissions.retain(|(_, other), _| other != user);
                ("DELETE", format!("users/{user}"), String::new())
            }
            4..6 => {
                access.vhosts.insert(vhost.into());
                ("PUT", format!("vhosts/{vhost}"), String::new())
            }
            6 => {
                access.vhosts.remove(vhost);
                access.permissions.retain(|(other, _), _| other != vhost);
                ("DELETE", format!("vhosts/{vhost}"), String::new())
            }
            7 | 8 => {
                if access.has_ends(vhost, user) {
                    access.permissions.insert(place, pattern.into());
                }
                let body = format!("{{\"configure\":\"{pattern}\",\"write\":\".*\",\"read\":\".*\"}}");
                ("PUT", format!("permissions/{vhost}/{user}"), body)
            }
            _ => {
                access.permissions.remove(&place);
                ("DELETE", format!("permissions/{vhost}/{user}"), String::new())
            }
        };
        accesses.asked = Some(access);
        self.send(Change::Access, (verb, &path, &body));
    }

    /// Sends a request whose expected result is already in the ledger.
    pub fn send(&mut self, change: Change, (verb, path, body): (&str, &str, &str)) {
        let length = body.len();
        let request = format!("{verb} /api/{path} HTTP/1.1\r\nContent-Length: {length}\r\n\r\n{body}");
        self.line.borrow_mut().write_up(request.as_bytes());
        self.waits_for = Some(change);
    }

    /// Reads the answers that have arrived.
    pub fn step(&mut self, ledger: &mut Ledger) -> bool {
        let mut line = self.line.borrow_mut();
        let moved = line.arrive() | (line.read_down(usize::MAX, &mut self.heard) > 0);
        drop(line);
        while let Some((status, length)) = answer_in(&self.heard) {
            self.heard.drain(..length);
            let change = self.waits_for.take();
            let has_happened = match (status, change) {
                (201 | 204, _) => true,
                // The object does not exist, there is no capacity for it, or its deletion is still under way.
                (404 | 503, _) => false,
                (other, _) => {
                    ledger.complain(format!("a request of an operator was refused with {other}: {change:?}"));
                    false
                }
            };
            match change {
                Some(Change::Policy) => ledger.policies.settle(has_happened),
                Some(Change::Access) | None => ledger.accesses.settle(has_happened),
            }
        }
        moved
    }
}

/// Returns status and length of a complete answer at the beginning of the bytes.
fn answer_in(bytes: &[u8]) -> Option<(u16, usize)> {
    let text = String::from_utf8_lossy(bytes);
    let head = text.find("\r\n\r\n")? + 4;
    let status = text.get(9..12)?.parse().ok()?;
    let field = text[..head].lines().filter_map(|line| line.split_once(':'));
    let length = field.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let body: usize = length.map(|(_, value)| value.trim().parse().unwrap_or(0)).sum();
    (bytes.len() >= head + body).then_some((status, head + body))
}

impl Life<'_> {
    /// Lets the operator act, by chance.
    pub fn operate(&mut self) {
        let is_unwritable = self.run.ledger.is_unwritable;
        let random = &mut self.chance("operator");
        if !random.once_in(ONE_IN) || self.engine.is_stopping() || is_unwritable {
            return;
        }
        self.call_operator();
        if let Some(operator) = self.operator.as_mut().filter(|operator| operator.waits_for.is_none()) {
            operator.ask(&mut self.run.ledger, random);
            self.run.counts.operated += 1;
        }
    }

    /// Connects a new operator if the old connection has ended: the broker closes idle ones.
    ///
    /// The result of a request on an ended connection is unknown until the next start.
    fn call_operator(&mut self) {
        let is_gone = |operator: &Operator| !operator.is_held() && operator.waits_for.is_none();
        if self.operator.as_ref().is_none_or(is_gone) {
            self.operator = Some(Operator::connect(&mut self.engine));
        }
    }

    /// Lets the operator change a policy, if the run has queues with policies.
    pub fn police(&mut self) {
        let Habit::Deaths(chain) = self.run.plan.hazards.habit else { return };
        let is_unwritable = self.run.ledger.is_unwritable;
        let random = &mut self.chance("policy");
        if !random.once_in(POLICY_ONE_IN) || self.engine.is_stopping() || is_unwritable {
            return;
        }
        if let Some(wanted) = self.run.ledger.policies.think_of(chain, random) {
            self.call_operator();
            if let Some(operator) = self.operator.as_mut().filter(|operator| operator.waits_for.is_none()) {
                let (verb, path, body) = self.run.ledger.policies.ask(wanted);
                operator.send(Change::Policy, (verb, &path, &body));
                self.run.counts.policed += 1;
            }
        }
    }
}
