//! Operators change who may do what, and a power cut keeps it or the state before.
//!
//! Always true: after a start there is what was there after some change: the last that was durable when the
//! power went, or a later one. A change is seen wholly or not at all.

use std::collections::BTreeSet;

use crate::broker::{Broker, Context, OperatorFault, VhostLimits};
use crate::journal::{Batch, Journal};
use crate::password::PasswordHash;

use super::life::Life;

const USERS: [&str; 4] = ["guest", "one", "two", "three"];
const VHOSTS: [&str; 3] = ["/", "first", "second"];
const PATTERNS: [&str; 4] = ["", ".*", "^a", "^{username}-"];
const TAGS: [&str; 3] = ["", "monitoring", "administrator,management"];

/// Everything an operator sees, as lines.
type Seen = BTreeSet<String>;

/// What there was, change by change.
#[derive(Debug, Default)]
pub(super) struct Accesses {
    said: Vec<(Batch, Seen)>,
    /// What there was before that: a device that ignores syncs may give it back, and nobody can know.
    past: BTreeSet<Seen>,
}

impl Accesses {
    /// After a change.
    fn note(&mut self, batch: Batch, broker: &Broker) {
        self.said.push((batch, seen(broker)));
    }

    /// Somebody has looked at what there is, and it is to stay; `guest` is among them.
    pub(super) fn confirm(&mut self, broker: &mut Broker, journal: &mut Journal) -> bool {
        if !broker.users().any(|user| user.name == "guest") {
            let hash = PasswordHash::RabbitSha256 { salt: [0; 4], digest: [0; 32] };
            let _ = broker.put_user(journal, "guest", hash, "administrator");
            let _ = broker.set_permissions(journal, "guest", "/", ".*", ".*", ".*");
        }
        match broker.confirm_access(journal) {
            Ok(batch) => self.note(batch, broker),
            Err(OperatorFault::NoRoom(_) | OperatorFault::FileSystemFull) => {}
            Err(_) => return false,
        }
        true
    }

    /// After a start: what is found must be what was there after the last durable change, or after a later
    /// one; or any that there was, where the device has lost what it said that it had synced.
    pub(super) fn recover(&mut self, durable: Batch, broker: &Broker, may_be_old: bool) -> Option<String> {
        let found = seen(broker);
        let promised = self.said.iter().rposition(|(batch, _)| *batch <= durable).unwrap_or(0);
        let possible = self.said.get(promised..).unwrap_or_default();
        let is_possible = possible.is_empty() || possible.iter().any(|(_, seen)| *seen == found);
        let complaint = format!("access is {found:?}, and was {possible:?}");
        self.past.extend(self.said.drain(..).map(|(_, seen)| seen));
        let is_possible = is_possible || may_be_old && self.past.contains(&found);
        self.said = vec![(Batch::NONE, found)];
        (!is_possible).then_some(complaint)
    }
}

fn seen(broker: &Broker) -> Seen {
    let mut lines = Seen::new();
    lines.extend(broker.vhosts().map(|vhost| format!("{vhost:?}")));
    let hash = |hash: &PasswordHash| hash.export().1;
    lines.extend(broker.users().map(|user| format!("{} {} {}", user.name, user.tags, hash(user.hash))));
    lines.extend(broker.permissions().map(|permission| format!("{permission:?}")));
    lines.extend(broker.topic_permissions().map(|topic| format!("{topic:?}")));
    lines
}

impl Life<'_> {
    /// An operator changes something; clients are not touched, for they are guest's and in `/`.
    pub(super) fn administer(&mut self) {
        let [user, tags] = [USERS.as_slice(), TAGS.as_slice()].map(|words| self.w.random.one_of(words));
        let [vhost, pattern] =
            [VHOSTS.as_slice(), PATTERNS.as_slice()].map(|words| self.w.random.one_of(words));
        let (is_ours, number) = (user == "guest", self.w.random.below(256) as u8);
        let hash = PasswordHash::RabbitSha256 { salt: [number; 4], digest: [number; 32] };
        let limit = Some(u32::from(number)).filter(|number| number % 2 == 0);
        let (broker, journal) = (&mut self.broker, &mut self.journal);
        let result = match self.w.random.below(12) {
            0 | 1 if !is_ours => broker.put_user(journal, user, hash, tags),
            2 if !is_ours => broker.delete_user(journal, user),
            3 => broker.set_tags(journal, user, tags),
            4 => broker.change_password_hash(journal, user, hash),
            5 => broker.put_vhost(journal, vhost),
            6 if vhost != "/" => {
                broker.delete_vhost(&mut Context::new(journal, &mut self.messages, &mut self.work), vhost)
            }
            7 if vhost != "/" => {
                let limits = VhostLimits { queues_max: limit, connections_max: None };
                broker.set_vhost_limits(journal, vhost, limits)
            }
            8 if !is_ours || vhost != "/" => {
                broker.set_permissions(journal, user, vhost, pattern, ".*", pattern)
            }
            9 if !is_ours || vhost != "/" => broker.clear_permissions(journal, user, vhost),
            10 if !is_ours => broker.set_topic_permissions(journal, user, vhost, "amq.topic", pattern, ".*"),
            11 => broker.clear_topic_permissions(journal, user, vhost, None),
            _ => return,
        };
        match result {
            Ok(batch) => {
                self.w.counts.administered += 1;
                self.w.accesses.note(batch, &self.broker);
            }
            Err(
                OperatorFault::NoSuchUser(_)
                | OperatorFault::NoSuchVhost(_)
                | OperatorFault::BeingDeleted(_)
                | OperatorFault::FileSystemFull
                | OperatorFault::NoRoom("disk_limit" | "index_bytes_max"),
            ) => {}
            Err(fault) => self.w.model.complain(format!("an operator was refused: {fault}")),
        }
        self.finish_jobs();
    }
}
