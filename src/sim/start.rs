//! A start: the store is opened and looked into, record by record, and the broker is filled from it.
//!
//! Why both: what the store has is what the next start will have, so it is compared with the model; what the
//! broker makes of it is compared with the store by counts here, and by deliveries ever after.

use std::collections::BTreeMap;

use crate::broker::{Broker, Context, Work};
use crate::engine::{StoreDriver, restore};
use crate::journal::{Batch, Definition, DestinationName, Journal, is_group, is_transient};
use crate::mem::{MessageLimits, Messages};
use crate::store::{Body, Identity, Log, Message, Record};
use crate::time::Now;

use super::harm::{Harm, is_told};
use super::life::Life;
use super::model::{Binding, End, Number, PREDECLARED};
use super::random::Random;
use super::recover::Found;
use super::topology::number_in;
use super::world::World;

const IDENTITY: Identity = Identity { id: *b"0123456789abcdef", secret: 0x5EC2E7 };

/// A body as it lies in the log: whole, or the number its chunks have.
enum Bytes {
    Whole(Vec<u8>),
    Chunks(u64, u64),
}

/// A copy of a message: its targets, and what there is to compare.
struct Copy {
    targets: Vec<(u64, u64)>,
    exchange: Vec<u8>,
    key: Vec<u8>,
    properties: Vec<u8>,
    body: Bytes,
}

impl Copy {
    fn of(log: &Log, message: &Message<'_>) -> Self {
        Self {
            targets: log.live_targets(message).collect(),
            exchange: message.exchange.to_vec(),
            key: message.key.to_vec(),
            properties: message.properties.to_vec(),
            body: match message.body {
                Body::Inline(bytes) => Bytes::Whole(bytes.to_vec()),
                Body::Chunked { body, bytes, .. } => Bytes::Chunks(body, bytes),
            },
        }
    }
}

/// Queues of which damage has left but the name, and orphans, are more than the model promises, and clients
/// would take them for others: somebody deletes them.
fn delete_rebuilt(broker: &mut Broker, context: &mut Context<'_>) {
    while let Some((vhost, queue)) = broker.next_rebuilt() {
        if broker.operator_delete_queue(context, &vhost, &queue, (false, false)).is_err() {
            return;
        }
    }
    while let Some(incarnation) = broker.orphans().first().map(|orphan| orphan.incarnation) {
        if broker.operator_delete_orphan(context, incarnation).is_err() {
            return;
        }
    }
}

/// What a simulated disk is made with.
pub(super) const fn identity() -> Identity {
    IDENTITY
}

impl World {
    /// Opens the store and starts a broker with it; `None` when the power went again, or the disk failed.
    pub(super) fn start(&mut self) -> Option<Life<'_>> {
        let opened = Log::open(&mut self.disk, self.plan.settings.clone(), IDENTITY, Now::from_ms(0));
        let (log, report) = opened.ok()?;
        self.is_told |= is_told(&report);
        // What was found may be lost with the next cut when it could not be written again.
        if report.unwritable.is_some() || report.is_pending {
            return None;
        }
        let served_before = self.life > 0;
        let is_told = !report.set_aside.is_empty() || report.commits_missing > 0;
        // A file that a failed sync left short is taken for damaged, though nothing durable was in it.
        let is_damaged = self.is_damaged || (self.disk.has_failed_sync() && report.is_cut_short());
        if served_before && !is_damaged && is_told {
            self.model.complain(format!("damage is reported where there is none: {report:?}"));
        }
        if log.life() <= self.life && !self.is_damaged {
            self.model.complain(format!("life {} is lived twice", log.life()));
        }
        self.life = log.life();
        let found = self.find(&log);
        let durable = self.model.durable;
        let mut harms = core::mem::take(&mut self.harms);
        let is_told = core::mem::take(&mut self.is_told);
        self.model.recover(&found, &harms, is_told);
        let limits = self.plan.limits.clone();
        let mut entropy = Random::new(self.seed ^ u64::from(self.life) << 32);
        let fill = move |bytes: &mut [u8]| bytes.iter_mut().for_each(|byte| *byte = entropy.below(256) as u8);
        let Ok(mut broker) = Broker::new(&limits, Box::new(fill)) else {
            self.model.complain("the limits have no room for a broker".into());
            return None;
        };
        broker.set_persist_all(self.plan.persist_all);
        broker.set_spill_transient(self.plan.spill_transient);
        let mut journal = Journal::new(limits.messages_max as usize);
        journal.start(log.life(), true, log.record_bytes_max() as u64);
        let mut messages = Messages::new(MessageLimits {
            messages_max: limits.messages_max as usize,
            body_bytes_max: limits.body_bytes_max as usize,
            assembly_bytes_max: limits.assembly_bytes_max as usize,
            vhosts_max: limits.vhosts_max as usize,
            users_max: limits.users_max as usize,
        });
        let mut work = Work::default();
        let mut context = Context::new(&mut journal, &mut messages, &mut work);
        let first = Some(("guest", crate::password::GUEST));
        if restore(&mut broker, &mut context, &log, &mut self.disk, report.access, first).is_err() {
            return None;
        }
        delete_rebuilt(&mut broker, &mut context);
        self.check_counts(&broker, &found);
        self.check_access((&mut broker, &mut journal), durable, &harms, is_damaged);
        harms.iter_mut().for_each(|harm| harm.is_fresh = false);
        self.harms = harms;
        let driver = StoreDriver::new(log, limits.frame_max as usize);
        Some(Life::new(self, broker, (journal, messages), driver))
    }

    /// Who may do what is as it was promised; or nobody gets in, where damage explains that, until somebody
    /// has looked.
    fn check_access(
        &mut self,
        (broker, journal): (&mut Broker, &mut Journal),
        durable: Batch,
        harms: &[Harm],
        is_damaged: bool,
    ) {
        let doubt = broker.access_doubt();
        if let Some(why) = doubt.filter(|_| !is_damaged) {
            self.model.complain(format!("nobody gets in: {why}"));
        }
        let is_excused = doubt.is_some() || harms.iter().any(|harm| harm.is_unbounded);
        let may_be_old = core::mem::take(&mut self.has_broken_promises);
        let complaint = self.accesses.recover(durable, broker, may_be_old).filter(|_| !is_excused);
        complaint.into_iter().for_each(|complaint| self.model.complain(complaint));
        if doubt.is_some() && !self.accesses.confirm(broker, journal) {
            self.model.complain("nobody gets in, and that cannot be confirmed".into());
        }
    }

    fn check_counts(&mut self, broker: &Broker, found: &Found) {
        let gauges = broker.gauges();
        let have = (gauges.queues, gauges.exchanges, gauges.bindings);
        let want = (found.queues.len(), found.exchanges.len(), found.bindings.len());
        if have != want && !self.is_damaged {
            self.model.complain(format!("the broker has {have:?} of what the store has {want:?}"));
        }
    }

    /// Reads everything there is.
    fn find(&mut self, log: &Log) -> Found {
        let mut found = Found::default();
        let incarnations = self.find_definitions(log, &mut found);
        let mut chunks: BTreeMap<u64, BTreeMap<u32, Vec<u8>>> = BTreeMap::new();
        let mut copies = Vec::new();
        let walked = log.read_live(&mut self.disk, |record| match record {
            Record::Message(message) if message.targets.iter().any(|target| is_group(target.queue)) => {}
            Record::Message(message) => copies.push(Copy::of(log, message)),
            Record::Chunk { body, index, bytes } => {
                chunks.entry(*body).or_default().insert(*index, bytes.to_vec());
            }
            _ => {}
        });
        if walked.is_err() {
            self.model.complain("the store cannot be read".into());
        }
        if !self.is_damaged {
            self.check_copies(&copies);
        }
        let mut actual: BTreeMap<(u64, u64), u64> = BTreeMap::new();
        for copy in copies {
            let (bytes, wanted) = match copy.body {
                Bytes::Whole(bytes) => (bytes, None),
                Bytes::Chunks(body, wanted) => {
                    let parts = chunks.get(&body).into_iter().flat_map(|parts| parts.values().flatten());
                    (parts.copied().collect(), Some(wanted))
                }
            };
            // What lost a part is never delivered.
            if self.is_damaged && wanted.is_some_and(|wanted| bytes.len() as u64 != wanted) {
                continue;
            }
            if let Some(content) = self.compare(&bytes, &copy.exchange, &copy.key, &copy.properties) {
                actual.extend(copy.targets.iter().map(|target| (*target, content)));
            }
        }
        for ((incarnation, offset), content) in actual {
            let number = incarnations.get(&incarnation).copied().unwrap_or(incarnation);
            found.offsets.insert((number, content), offset);
            found.contents.entry(number).or_default().push(content);
        }
        for (incarnation, queue) in log.index().queues() {
            let number = incarnations.get(incarnation).copied().unwrap_or(*incarnation);
            found.next_offsets.insert(number, queue.next_offset());
            let have = found.contents.get(&number).map_or(0, Vec::len) as u64;
            found.unreadable.insert(number, queue.live.saturating_sub(have));
            if queue.live != have && !self.is_damaged && !is_group(*incarnation) {
                self.model.complain(format!("queue {number} counts {} and has {have}", queue.live));
            }
        }
        // Of another life: void.
        found.contents.retain(|number, _| !is_transient(*number));
        found
    }

    /// What the cleaner copies it copies for every queue that still needs it: no copy of a message has a part
    /// of its queues, and another one the rest.
    fn check_copies(&mut self, copies: &[Copy]) {
        let mut of: BTreeMap<(u64, u64), &[(u64, u64)]> = BTreeMap::new();
        for copy in copies {
            for target in &copy.targets {
                let first = *of.entry(*target).or_insert(&copy.targets);
                if first != copy.targets {
                    let targets = &copy.targets;
                    return self
                        .model
                        .complain(format!("one copy is for {first:?}, another for {targets:?}"));
                }
            }
        }
    }

    /// Fills in the definitions; gives the numbers of queues by incarnation.
    fn find_definitions(&mut self, log: &Log, found: &mut Found) -> BTreeMap<u64, Number> {
        let mut incarnations: BTreeMap<u64, Number> = BTreeMap::new();
        let mut versions: BTreeMap<u64, Number> = BTreeMap::new();
        let is_gone = |incarnation| log.index().queues().get(&incarnation).is_some_and(|queue| queue.gone);
        let read = log.read_definitions(&mut self.disk, |key, value, _| {
            match Definition::parse(key, value) {
                Some(Definition::Exchange { name, version, arguments, .. }) => {
                    found.exchanges.insert(name.into(), number_in(arguments));
                    versions.insert(version, number_in(arguments));
                }
                Some(Definition::Queue { incarnation, .. }) if is_gone(incarnation) => {}
                Some(Definition::Queue { name, incarnation, arguments, .. }) => {
                    found.queues.insert(name.into(), number_in(arguments));
                    incarnations.insert(incarnation, number_in(arguments));
                }
                Some(Definition::Binding {
                    source,
                    source_version,
                    destination,
                    destination_version,
                    routing_key,
                    ..
                }) => {
                    // Sorted behind what it needs.
                    let exchange = |name: &str, version: u64| match version {
                        0 => PREDECLARED
                            .iter()
                            .position(|(other, _)| *other == name)
                            .map(|at| u64::MAX - at as u64),
                        version => versions.get(&version).copied(),
                    };
                    let to = match destination {
                        DestinationName::Exchange(name) => {
                            exchange(name, destination_version).map(End::Exchange)
                        }
                        DestinationName::Queue(_) => {
                            incarnations.get(&destination_version).copied().map(End::Queue)
                        }
                    };
                    if let Some((source, to)) = exchange(source, source_version).zip(to) {
                        found.bindings.insert(Binding { source, to, key: routing_key.into() });
                    }
                }
                Some(_) | None => {}
            }
        });
        if !matches!(read, Ok(0)) && !self.is_damaged {
            self.model.complain(format!("definitions cannot be read: {read:?}"));
        }
        incarnations
    }
}
