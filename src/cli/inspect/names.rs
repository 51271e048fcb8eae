//! Names of queues, and whether a broker uses a data directory.
//!
//! The log identifies queues by number; names come from the definitions. A queue whose definition cannot be read
//! is shown by its number.

use crate::json::Object;
use leveret_core::definition::{
    Binding, Definition, DestinationName, Parameter, Permission, Policy, PolicyKind, Retained, RetainedPart,
    SessionPart, SessionState, TopicPermission, User, Vhost, VhostMetadata, Will, queue_in,
};
use leveret_queues::levels_of;
use leveret_storage::{Disk, Log};
use leveret_storage::{is_group, is_transient};
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The definitions of a store.
#[derive(Debug, Default)]
pub(super) struct QueueNames {
    /// Virtual host and name of each queue, by its incarnation.
    pub(super) queues: BTreeMap<u64, (String, String)>,
    /// The levels of queues with priorities, by their incarnation: the incarnation of the queue, and the
    /// priority.
    pub(super) levels: BTreeMap<u64, (u64, u64)>,
    /// Queues with messages but without a definition; virtual host and name if a footer contains them.
    pub(super) orphans: BTreeMap<u64, Option<(String, String)>>,
    /// Number of orphans that belong to delayed exchanges.
    pub(super) hidden: usize,
    pub(super) exchanges: u64,
    pub(super) bindings: u64,
    /// Number of definitions that are damaged or of another version.
    pub(super) unread: u64,
}

impl QueueNames {
    /// Reads the definitions of a store.
    pub(super) fn of<D: Disk>(log: &Log, disk: &mut D) -> io::Result<Self> {
        let mut names = Self::default();
        let damaged = log.read_definitions(disk, |key, value, _| names.add(Definition::parse(key, value)))?;
        names.unread += damaged;
        let mut lost = log.index().queues_with_messages();
        lost.retain(|queue| !names.queues.contains_key(queue) && !names.levels.contains_key(queue));
        if lost.is_empty() {
            return Ok(names);
        }
        let mut found = log.read_names(disk, &lost)?;
        for queue in lost {
            let key = found.remove(&queue);
            let name = key.and_then(|key| queue_in(&key).map(|(vhost, name)| (vhost.into(), name.into())));
            names.orphans.insert(queue, name);
        }
        Ok(names)
    }

    fn add(&mut self, definition: Option<Definition<'_>>) {
        match definition {
            Some(defined @ Definition::Queue(it)) => {
                self.queues.insert(it.incarnation, (it.vhost.to_string(), it.name.to_string()));
                let levels = levels_of(&defined).zip(1..);
                self.levels.extend(levels.map(|(level, priority)| (level, (it.incarnation, priority))));
            }
            Some(defined @ Definition::Exchange(it)) => {
                self.exchanges += 1;
                let mut slots = levels_of(&defined).zip(1..).peekable();
                if slots.peek().is_some() {
                    let name = format!("(delayed by exchange '{}')", it.name);
                    self.hidden += 1;
                    self.queues.insert(it.version, (it.vhost.to_string(), name));
                    self.levels.extend(slots.map(|(slot, number)| (slot, (it.version, number))));
                }
            }
            Some(Definition::Binding(_)) => self.bindings += 1,
            Some(_) => {}
            None => self.unread += 1,
        }
    }

    /// Returns virtual host and name of a queue, from its definition or from a footer; `None` if both are
    /// missing.
    fn of_queue(&self, queue: u64) -> Option<&(String, String)> {
        let queue = self.levels.get(&queue).map_or(queue, |(whole, _)| *whole);
        self.queues.get(&queue).or_else(|| self.orphans.get(&queue)?.as_ref())
    }

    /// Returns the priority of a queue's messages; 0 without priorities.
    fn priority_of(&self, queue: u64) -> u64 {
        self.levels.get(&queue).map_or(0, |(_, priority)| *priority)
    }

    /// Formats a queue for a table: its name and its virtual host.
    pub(super) fn shown(&self, queue: u64) -> impl fmt::Display {
        struct Shown<'n>(u64, Option<&'n (String, String)>, u64);
        impl fmt::Display for Shown<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.1 {
                    Some((vhost, name)) => {
                        write!(f, "{} in {}", Quoted(name.as_bytes()), Quoted(vhost.as_bytes()))?;
                        if self.2 > 0 { write!(f, ", priority {}", self.2) } else { Ok(()) }
                    }
                    None if is_group(self.0) => f.write_str(
                        "a large transaction whose end is missing; the next start completes it or undoes it",
                    ),
                    None if is_transient(self.0) => {
                        f.write_str("transient messages that were evicted from memory")
                    }
                    None => f.write_str("?"),
                }
            }
        }
        Shown(queue, self.of_queue(queue), self.priority_of(queue))
    }

    /// Writes the fields that identify a queue.
    pub(super) fn write(&self, object: &mut Object<'_, '_>, queue: u64) {
        if let Some((vhost, name)) = self.of_queue(queue) {
            object.bytes("vhost", vhost.as_bytes());
            object.bytes("name", name.as_bytes());
        }
        object.number("incarnation", queue);
        if self.priority_of(queue) > 0 {
            object.number("priority", self.priority_of(queue));
        }
        if self.orphans.contains_key(&queue) {
            object.truth("orphan", true);
        }
    }
}

fn shown_limit(limit: Option<u32>) -> String {
    limit.map_or_else(|| "none".into(), |most| most.to_string())
}

/// A definition, formatted for a line.
pub(super) struct Defined<'a>(pub(super) Definition<'a>);

impl fmt::Display for Defined<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = |name: &'_ str| Quoted(name.as_bytes()).to_string();
        match self.0 {
            Definition::AccessStored => f.write_str("access=written"),
            Definition::Vhost(Vhost { name, limits, metadata }) => {
                let (queues, connections) =
                    (shown_limit(limits.queues_max), shown_limit(limits.connections_max));
                write!(f, "vhost={} max_queues={queues} max_connections={connections}", quoted(name))?;
                if metadata != VhostMetadata::default() {
                    let (description, tags) = (quoted(metadata.description), quoted(metadata.tags));
                    let (kind, is_protected) = (quoted(metadata.default_queue_type), metadata.is_protected);
                    write!(f, " description={description} tags={tags} default_queue_type={kind}")?;
                    write!(f, " protected_from_deletion={is_protected}")?;
                }
                Ok(())
            }
            Definition::User(User { name, tags, .. }) => {
                write!(f, "user={} tags={} hash=hidden", quoted(name), quoted(tags))
            }
            Definition::Permission(Permission { user, vhost, configure, write, read }) => {
                let [configure, write, read] = [configure, write, read].map(quoted);
                write!(f, "permission={} vhost={}", quoted(user), quoted(vhost))?;
                write!(f, " configure={configure} write={write} read={read}")
            }
            Definition::TopicPermission(TopicPermission { user, vhost, exchange, write, read }) => {
                let [write, read] = [write, read].map(quoted);
                write!(f, "topic_permission={} vhost={}", quoted(user), quoted(vhost))?;
                write!(f, " exchange={} write={write} read={read}", quoted(exchange))
            }
            Definition::UserLimits(user, limits) => {
                let (connections, channels) =
                    (shown_limit(limits.connections_max), shown_limit(limits.channels_max));
                write!(f, "limits_of={} max_connections={connections} max_channels={channels}", quoted(user))
            }
            Definition::Exchange(it) => {
                write!(f, "exchange={} vhost={}", quoted(it.name), quoted(it.vhost))?;
                write!(f, " type={} id={}", it.kind, it.version)?;
                flags(f, &[("auto_delete", it.auto_delete), ("internal", it.internal)])?;
                write!(f, " arguments={}", it.arguments.len())
            }
            Definition::Queue(it) => {
                write!(f, "queue={} vhost={}", quoted(it.name), quoted(it.vhost))?;
                write!(f, " incarnation={}", it.incarnation)?;
                if it.priorities_from != 0 {
                    write!(f, " levels_from={}", it.priorities_from)?;
                }
                flags(f, &[("auto_delete", it.auto_delete), ("rebuilt", it.is_rebuilt)])?;
                write!(f, " arguments={}", it.arguments.len())
            }
            Definition::Binding(Binding { vhost, source, destination, routing_key, arguments, .. }) => {
                let (kind, name) = match destination {
                    DestinationName::Exchange(name) => ("exchange", name),
                    DestinationName::Queue(name) => ("queue", name),
                };
                let (vhost, source, name, key) =
                    (quoted(vhost), quoted(source), quoted(name), quoted(routing_key));
                write!(f, "binding={source} vhost={vhost} to_{kind}={name} key={key}")?;
                write!(f, " arguments={}", arguments.len())
            }
            Definition::Policy(Policy { vhost, kind, name, pattern, apply_to, priority, definition }) => {
                let kind = if kind == PolicyKind::Operator { "operator_policy" } else { "policy" };
                write!(f, "{kind}={} vhost={} pattern={}", quoted(name), quoted(vhost), quoted(pattern))?;
                write!(f, " apply_to={} priority={priority} definition={}", apply_to.name(), definition.len())
            }
            Definition::Parameter(Parameter { vhost, component, name, value }) => {
                let kind = if vhost.is_some() { "parameter" } else { "global_parameter" };
                write!(f, "{kind}={}", quoted(name))?;
                if let Some(vhost) = vhost {
                    write!(f, " component={} vhost={}", quoted(component), quoted(vhost))?;
                }
                write!(f, " value={}", value.len())
            }
            Definition::SessionState(SessionState { vhost, queue, part, incarnation, state }) => {
                let part = match part {
                    SessionPart::Received => "received",
                    SessionPart::Deliveries => "deliveries",
                };
                write!(f, "session_state={} vhost={} part={part}", quoted(queue), quoted(vhost))?;
                write!(f, " incarnation={incarnation} state={}", state.len())
            }
            Definition::Will(Will { vhost, queue, topic_key, payload, .. }) => {
                write!(f, "will={} vhost={} key={}", quoted(queue), quoted(vhost), quoted(topic_key))?;
                write!(f, " payload={}", payload.len())
            }
            Definition::Retained(Retained { vhost, key, qos, parts, payload, .. }) => {
                let payload_len = match parts {
                    Some(parts) => parts.len.saturating_sub(parts.properties_len) as usize,
                    None => payload.len(),
                };
                write!(f, "retained={} vhost={} qos={qos}", quoted(key), quoted(vhost))?;
                write!(f, " payload={payload_len}")
            }
            Definition::RetainedPart(RetainedPart { vhost, key, side, index, bytes }) => {
                write!(f, "retained_part={index} of={} vhost={}", quoted(key), quoted(vhost))?;
                write!(f, " side={side} bytes={}", bytes.len())
            }
        }
    }
}

fn flags(f: &mut fmt::Formatter<'_>, flags: &[(&str, bool)]) -> fmt::Result {
    flags.iter().filter(|(_, is_set)| *is_set).try_for_each(|(name, _)| write!(f, " {name}"))
}

/// Bytes as a quoted text, with escapes.
pub(super) struct Quoted<'a>(pub(super) &'a [u8]);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        match std::str::from_utf8(self.0) {
            Ok(text) => text.chars().try_for_each(|letter| match letter {
                '\'' => f.write_char(letter),
                _ => write!(f, "{}", letter.escape_debug()),
            })?,
            Err(_) => write!(f, "{}", self.0.escape_ascii())?,
        }
        f.write_char('"')
    }
}

/// Number of times that the list is read before a lock counts as missing.
const READS: u32 = 3;
/// Size of the buffer for the list of locks in bytes.
const LIST_BYTES: usize = 64 << 10;

/// Which process uses the data directory.
///
/// This is found in the kernel's list of all locks. Trying to take the lock is no alternative, because a
/// broker that starts at the same time would fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Broker {
    /// No broker has the directory open.
    No,
    /// A process; 0 if it is in another namespace.
    Process(u32),
    /// The kernel's list cannot be read.
    Unknown,
}

impl Broker {
    /// Finds out which process uses `directory`.
    pub(super) fn of(directory: &Path) -> Self {
        // The lock file may be damaged; older versions lock only the directory.
        let locked = [fs::metadata(directory), fs::metadata(directory.join("lock"))];
        let inodes: Vec<u64> = locked.iter().flatten().map(MetadataExt::ino).collect();
        for _ in 0..READS {
            let Ok(locks) = read_at_once("/proc/locks") else {
                return Self::Unknown;
            };
            if let Some(process) = inodes.iter().find_map(|inode| holder(&locks, *inode)) {
                return Self::Process(process);
            }
        }
        Self::No
    }
}

/// Reads the list with as few system calls as possible, because the kernel may skip a lock if another one is
/// released between two calls.
fn read_at_once(file: &str) -> io::Result<String> {
    let mut bytes = Vec::with_capacity(LIST_BYTES);
    fs::File::open(file)?.take(LIST_BYTES as u64).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

impl fmt::Display for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::No => f.write_str("none uses the directory"),
            Self::Process(0) => f.write_str("a process uses the directory and may be writing"),
            Self::Process(id) => write!(f, "process {id} uses the directory and may be writing"),
            Self::Unknown => f.write_str("unknown: /proc/locks cannot be read"),
        }
    }
}

/// Returns the process that has a `flock` on the file with this inode, from lines like `1: FLOCK ADVISORY
/// WRITE 4711 b3:02:1234 0 EOF`. The device is not compared, because some file systems report another one in
/// this list.
fn holder(locks: &str, inode: u64) -> Option<u32> {
    locks.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        // A process that waits for a lock has an arrow before it.
        let is_held = words.next()? == "FLOCK";
        let (_, _, process, file) = (words.next()?, words.next()?, words.next()?, words.next()?);
        let is_file = file.rsplit(':').next()?.parse() == Ok(inode);
        (is_held && is_file).then(|| process.parse().unwrap_or(0))
    })
}

#[cfg(test)]
mod broker_tests {
    use super::*;

    #[test]
    fn the_kernels_list_is_read() {
        let locks = "1: POSIX  ADVISORY  WRITE 77 00:19:5 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 4711 b3:02:1234 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 99 b3:02:88 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE -1 b3:02:9 0 EOF\n";
        assert_eq!(holder(locks, 1234), Some(4711));
        assert_eq!(holder(locks, 9), Some(0));
        assert_eq!((holder(locks, 5), holder(locks, 88), holder(locks, 12)), (None, None, None));
    }
}
