//! A start: opens the store, reads it record by record, and fills a broker from it, as the daemon does.
//!
//! # Invariants
//! - The store is compared with the ledger before any client connects. Clients later see what the broker made
//!   of it.

use core::num::NonZeroU32;
use core::ops::Range;
use leveret_core::definition::Permission;
use std::collections::{BTreeMap, BTreeSet};

use super::harm::is_told;
use leveret_broker::{Broker, Context, OpenedLog, restore};
use leveret_connection::MqttSettings;
use leveret_core::definition::{self, Definition, DestinationName};
use leveret_core::mem;
use leveret_core::password::PasswordHash;
use leveret_core::time::Now;
use leveret_management::request::{Machine, Process, StoreView};
use leveret_queues::levels_of;
use leveret_server::{Engine, EngineSetup, StorageDriver};
use leveret_storage::{AccessReport, Body, Identity, Log, Message, Record, Report};
use leveret_storage::{ReportedDamage, is_group, is_transient};
use leveret_test_support::random::Random;
use leveret_test_support::simulated_disk::{SimDisk, Trouble};

use super::content::{body_of, number_of};
use super::life::{Ended, Life};
use super::plan::{Plan, USERS, VHOSTS};
use super::policies;
use super::recover::Found;
use super::run::Run;
use leveret_test_support::simulated_server::Memory;
use leveret_test_support::simulated_server::platform::Helpers;

pub const IDENTITY: Identity = Identity { id: *b"0123456789abcdef", secret: 0x5EC2E7 };

/// A body in the log: complete, or in chunks, with the body number of the chunks and their total bytes.
enum Bytes {
    Whole(Vec<u8>),
    Chunks(u64, u64),
}

/// A copy of a message: its targets, and the parts to compare.
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

/// PBKDF2 of the name of each of [`USERS`] with one iteration.
///
/// The password is the name. One iteration makes the check fast; other hashes need as much time as real ones.
const DIGESTS: [[u8; 32]; 2] = [
    [
        0x53, 0xD5, 0x10, 0x2C, 0xCD, 0x0D, 0x21, 0x15, 0xFF, 0x3C, 0x65, 0x44, 0xD4, 0xBC, 0xD6, 0x00, 0xD7,
        0x44, 0x1E, 0xA5, 0x6D, 0x36, 0x46, 0xF6, 0xDD, 0xB2, 0xA2, 0x20, 0x92, 0x67, 0x98, 0x43,
    ],
    [
        0x5B, 0xF2, 0x80, 0xF4, 0x47, 0x7E, 0x9A, 0xA6, 0x39, 0x6B, 0xC2, 0xA0, 0x58, 0x59, 0x46, 0x01, 0xE3,
        0x78, 0xB3, 0xE7, 0x35, 0x0D, 0x4E, 0xEB, 0xC1, 0xF7, 0x98, 0xF8, 0x56, 0xF4, 0x19, 0xB3,
    ],
];

pub fn hash_of(user: &str) -> PasswordHash {
    let at = usize::from(user != USERS[0]);
    PasswordHash::Pbkdf2 { iterations: NonZeroU32::MIN, salt: *b"salt of sixteen.", digest: DIGESTS[at] }
}

/// Deletes rebuilt queues and orphans. After damage only their names are left, and the ledger does not know
/// them.
fn delete_rebuilt(broker: &mut Broker, context: &mut Context<'_>) {
    while let Some((vhost, queue)) = broker.next_rebuilt() {
        if broker.operator_delete_queue(context, &vhost, &queue, leveret_broker::DeleteIf::default()).is_err()
        {
            return;
        }
    }
    while let Some(incarnation) = broker.recovery().orphans().first().map(|orphan| orphan.incarnation) {
        if broker.operator_delete_orphan(context, incarnation).is_err() {
            return;
        }
    }
}

/// Returns an empty engine on a disk and with helpers according to the plan.
pub fn engine_on(plan: &Plan, disk: &SimDisk, (seed, life): (u64, u64)) -> Engine<Memory> {
    let limits = plan.limits.clone();
    let mut entropy = Random::of(seed, "entropy", &[life]);
    let fill = move |bytes: &mut [u8]| bytes.iter_mut().for_each(|byte| *byte = entropy.below(256) as u8);
    let memory = plan.extents.map_or_else(mem::Memory::unlimited, |floors| {
        // Each class has what the others leave, which is its floor.
        mem::Memory::new(floors.iter().sum::<usize>() + mem::COMMAND_EXTENTS, floors)
    });
    let broker =
        Broker::in_memory(&limits, &memory, Box::new(fill)).expect("the limits have room for a broker");
    let helpers = Helpers::new(Some(disk.clone()), (seed, life), plan.slowness_ms);
    let mut memory = Memory::default();
    memory.helpers = helpers;
    let setup = EngineSetup {
        limits,
        waiting_sockets_max: 64,
        identity: leveret_connection::Identity::default(),
        listeners: vec![false],
        mqtt_listeners: vec![false],
        mqtt: MqttSettings { vhost: VHOSTS[0].into(), ..MqttSettings::default() },
        tls_session_bytes: 0,
        bridge_sizes: leveret_server::BridgeSizes::default(),
        has_shovels: true,
        management_listeners: Vec::new(),
        metrics_listeners: 0,
        certificates: Default::default(),
        process: process(),
        own_uid: 0,
    };
    Engine::new(setup, broker, memory)
}

impl Run {
    /// Opens the store and starts a broker with it. Returns `None` if the power failed again or the disk did.
    pub fn start(&mut self) -> Option<Engine<Memory>> {
        let before = self.foresee_unread();
        let opened = Log::open(&mut self.disk, self.plan.settings.clone(), IDENTITY, Now::from_ms(0));
        self.note_unread(before, opened.as_ref().is_ok_and(|(_, report)| !report.refused.is_empty()));
        let (log, report) = opened.ok()?;
        if super::is_traced() {
            eprintln!("start: {report:?}");
        }
        self.is_told |= is_told(&report);
        // Data that could not be rewritten may be lost with the next power cut.
        if report.unwritable.is_some() {
            self.serve_unwritable(log, report);
            return None;
        }
        if report.is_pending || self.disk.is_off() {
            return None;
        }
        let is_damaged = self.is_damaged || (self.disk.has_failed_sync() && report.is_only_truncated());
        let tells = !report.set_aside.is_empty() || report.commits_missing > 0;
        if self.ledger.life > 0 && !is_damaged && tells {
            self.ledger.complain(format!("undamaged store is reported as damaged: {report:?}"));
        }
        if log.epoch() <= self.ledger.life && !self.is_damaged {
            self.ledger.complain(format!("life {} happens twice", log.epoch()));
        }
        let found = self.find(&log);
        if super::is_traced() {
            eprintln!("life {}: {found:?} {:?}", log.epoch(), self.plan);
            let segments = log.index().segments().iter();
            let live =
                segments.map(|(number, segment)| (number, segment.live, segment.live_bytes, segment.stuck));
            eprintln!(
                "{} segments free, in use: {:?}",
                log.space().segments_free(),
                live.collect::<Vec<_>>()
            );
        }
        let mut harms = core::mem::take(&mut self.harms);
        let is_told = core::mem::take(&mut self.is_told);
        let is_unbounded = harms.iter().any(|harm| harm.is_unbounded);
        self.ledger.begin(log.epoch(), &found, &harms, is_told);
        harms.iter_mut().for_each(|harm| harm.is_fresh = false);
        self.damaged_slots.clear();
        self.harms = harms;
        let mut engine = self.filled(&log, (report.access, report.reported_damage), true)?;
        let (broker, mut context) = engine.broker_mut();
        self.check_access(broker, &mut context, is_damaged, is_unbounded);
        delete_rebuilt(broker, &mut context);
        let driver = StorageDriver::new(log, self.plan.limits.frame_max as usize);
        engine.set_store(driver);
        engine.open_control_socket();
        Some(engine)
    }

    /// Returns an engine whose broker has the content of the log.
    fn filled(
        &mut self,
        log: &Log,
        report: (AccessReport, ReportedDamage),
        is_writable: bool,
    ) -> Option<Engine<Memory>> {
        let mut engine = engine_on(&self.plan, &self.disk, (self.seed, self.life));
        let (broker, mut context) = engine.broker_mut();
        broker.queues_mut().set_persist_all(self.plan.persist_all);
        context.pending_writes.start(log.epoch(), is_writable, log.space().record_bytes_max() as u64);
        let first = Some((USERS[0], hash_of(USERS[0])));
        let (access, damage) = report;
        let opened = OpenedLog { log, disk: &mut self.disk, access, damage };
        restore(broker, &mut context, opened, first, Now::from_ms(0)).ok()?;
        Some(engine)
    }

    /// Runs a life on a store that cannot be written: promised messages are there and are delivered, and
    /// nothing is confirmed. As nothing reaches the disk, the ledger is restored afterwards.
    fn serve_unwritable(&mut self, log: Log, report: Report) {
        if self.disk.is_off() || self.is_damaged || report.is_new {
            return;
        }
        let kept = self.ledger.clone();
        let found = self.find(&log);
        self.ledger.is_unwritable = true;
        self.ledger.begin(log.epoch(), &found, &[], true);
        if let Some(mut engine) = self.filled(&log, (report.access, report.reported_damage), false) {
            engine.set_store(StorageDriver::new(log, self.plan.limits.frame_max as usize));
            self.counts.unwritable += 1;
            let steps = self.chance("unwritable").below(300);
            let mut life = Life::new(self, engine);
            let ended = life.run(steps);
            life.end();
            if ended == Err(Ended::Disk) {
                self.ledger.complain("a broker with an unwritable store has stopped before its end".into());
            }
        }
        let complaints = core::mem::replace(&mut self.ledger, kept).complaints;
        self.ledger.complaints = complaints;
    }

    /// Plans read failures for the start. Returns a copy of the disk if some reads can fail.
    fn foresee_unread(&mut self) -> Option<SimDisk> {
        let hazards = self.plan.hazards;
        let mut random = self.chance("unread");
        if hazards.has_unread_starts && !self.is_last && random.once_in(3) {
            let (after, count) = (random.below(60), 1 + random.below(5));
            // A start retries a failed read twice, so few failures have no effect.
            let times = if random.once_in(2) { 40 } else { 1 };
            self.disk.foresee(Trouble::FailedRead(after, count * times));
        }
        let is_whole = !hazards.has_unread_starts && self.disk.worn().is_nothing();
        (!is_whole).then(|| {
            let before = self.disk.copy();
            before.heal();
            before
        })
    }

    /// Notes as damage what the start could not read, if all its attempts failed.
    fn note_unread(&mut self, before: Option<SimDisk>, was_refused: bool) {
        let Some(before) = before else { return };
        let (unread, worn) = (self.disk.end_failed_reads(), self.disk.worn());
        for (damaged, is_missing) in [(unread, was_refused), (worn, true)] {
            if is_missing && !damaged.is_nothing() {
                self.note_damage(before.copy(), &damaged);
            }
        }
    }

    /// Checks that users can log in, unless damage explains the failure.
    fn check_access(
        &mut self,
        broker: &mut Broker,
        context: &mut Context<'_>,
        is_damaged: bool,
        is_unbounded: bool,
    ) {
        let pending_writes = &mut *context.pending_writes;
        let doubt = broker.access().doubtful_access_reason();
        let may_be_old = core::mem::take(&mut self.may_have_old_access);
        let is_excused = doubt.is_some() || is_unbounded || core::mem::take(&mut self.was_access_bare);
        let complaint = self.ledger.accesses.begin(broker, is_excused, may_be_old);
        complaint.into_iter().for_each(|complaint| self.ledger.complain(complaint));
        if let Some(why) = doubt {
            if !is_damaged {
                self.ledger.complain(format!("no user can log in: {why}"));
            }
            let _ = broker.access_mut().confirm_access(pending_writes);
        }
        for (vhost, user) in VHOSTS.into_iter().zip(USERS) {
            if !broker.access().vhosts().any(|view| view.name == vhost) {
                let _ = broker.put_vhost(pending_writes, vhost);
            }
            if !broker.access().users().any(|view| view.name == user) {
                let _ = broker.put_user(pending_writes, user, hash_of(user), "");
            }
            let _ = broker.access_mut().set_permissions(
                pending_writes,
                &Permission { user, vhost, configure: ".*", write: ".*", read: ".*" },
            );
        }
    }

    /// Reads the whole content of the store.
    fn find(&mut self, log: &Log) -> Found {
        let mut found = Found::default();
        let queues = self.find_definitions(log, &mut found);
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
            self.ledger.complain("the store cannot be read".into());
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
            // A message that lost a part is never delivered.
            if self.is_damaged && wanted.is_some_and(|wanted| bytes.len() as u64 != wanted) {
                continue;
            }
            let number = self.compare(&bytes, &copy.exchange, &copy.key, &copy.properties);
            actual.extend(copy.targets.iter().map(|target| (*target, number)));
        }
        let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
        // By queue: where a level begins in it, and where the marked messages of the level end.
        let mut levels: BTreeMap<u64, Range<usize>> = BTreeMap::new();
        for ((incarnation, offset), number) in actual {
            if is_transient(incarnation) {
                // The message belongs to an earlier life and is void.
                continue;
            }
            *counts.entry(incarnation).or_default() += 1;
            match queues.get(&incarnation).and_then(|key| found.queues.get_mut(key)) {
                Some(contents) => {
                    let level = levels.entry(incarnation).or_insert(contents.len()..contents.len());
                    let log_queue = log.index().queues().get(&incarnation);
                    contents.push(number);
                    if log_queue.is_some_and(|queue| offset < queue.delivered_below()) {
                        level.end = contents.len();
                    }
                }
                None if self.is_damaged => {}
                None => self.ledger.complain(format!("message {number} is in a queue that is not defined")),
            }
        }
        for (incarnation, level) in levels {
            found.marked.entry(queues[&incarnation].clone()).or_default().push(level);
        }
        for (incarnation, queue) in log.index().queues() {
            let have = counts.get(incarnation).copied().unwrap_or(0);
            let is_counted = !is_group(*incarnation) && !is_transient(*incarnation) && !queue.gone;
            if queue.live != have && !self.is_damaged && is_counted {
                self.ledger.complain(format!("a queue counts {} messages and has {have}", queue.live));
            }
        }
        found
    }

    /// Checks that the compactor copies a message for every queue that still needs it. No copy may have some
    /// of its queues and another copy the rest.
    fn check_copies(&mut self, copies: &[Copy]) {
        let mut of: BTreeMap<(u64, u64), &[(u64, u64)]> = BTreeMap::new();
        for copy in copies {
            for target in &copy.targets {
                let first = *of.entry(*target).or_insert(&copy.targets);
                if first != copy.targets {
                    let targets = &copy.targets;
                    let what = format!("one copy is for {first:?}, another for {targets:?}");
                    return self.ledger.complain(what);
                }
            }
        }
    }

    fn compare(&mut self, body: &[u8], exchange: &[u8], key: &[u8], properties: &[u8]) -> u64 {
        let number = number_of(body);
        let Some(content) = self.ledger.contents.get(&number) else { return number };
        let exchange = core::str::from_utf8(exchange).unwrap_or("?");
        let deaths = content.deaths_in(exchange, key, properties);
        let is_same = deaths.is_some() && body == body_of(number, content.len);
        if !is_same {
            self.ledger.complain(format!("message {number} was altered"));
        }
        number
    }

    /// Fills in the definitions. Returns the queues by their incarnations.
    fn find_definitions(&mut self, log: &Log, found: &mut Found) -> BTreeMap<u64, (String, String)> {
        let (mut queues, mut versions) = (BTreeMap::new(), BTreeSet::new());
        let is_gone = |incarnation| log.index().queues().get(&incarnation).is_some_and(|queue| queue.gone);
        let read =
            log.read_definitions(&mut self.disk, |key, value, _| match Definition::parse(key, value) {
                Some(Definition::Exchange(definition::Exchange { vhost, name, version, .. })) => {
                    versions.insert(version);
                    found.exchanges.insert((vhost.into(), name.into()));
                }
                Some(queue @ Definition::Queue(definition::Queue { vhost, name, incarnation, .. }))
                    if !is_gone(incarnation) =>
                {
                    found.queues.insert((vhost.into(), name.into()), Vec::new());
                    for incarnation in core::iter::once(incarnation).chain(levels_of(&queue)) {
                        queues.insert(incarnation, (vhost.into(), name.into()));
                    }
                }
                Some(Definition::Binding(definition::Binding {
                    vhost,
                    source,
                    source_version,
                    destination: DestinationName::Queue(queue),
                    destination_version,
                    routing_key,
                    ..
                })) if queues.contains_key(&destination_version) && versions.contains(&source_version) => {
                    found.bindings.insert((vhost.into(), source.into(), routing_key.into(), queue.into()));
                }
                Some(policy @ Definition::Policy(_)) => found.policies.extend(policies::found(&policy)),
                Some(_) | None => {}
            });
        if !matches!(read, Ok(0)) && !self.is_damaged {
            self.ledger.complain(format!("definitions cannot be read: {read:?}"));
        }
        queues
    }
}

fn process() -> Process {
    Process {
        environment: String::new(),
        data_dir: String::new(),
        configuration: String::new(),
        listeners: Vec::new(),
        hosts: vec!["localhost".to_string()],
        mqtt_websocket_origins: None,
        node: "leveret@here".to_string(),
        machine: Machine::default(),
        product: (String::new(), String::new()),
        memory_limit_bytes: 0,
        uptime_ms: 0,
        connections: 0,
        handshakes_evicted: 0,
        dropped_messages: 0,
        refusing_connections: None,
        message_size_max: 1 << 20,
        endurance: leveret_management::request::Endurance::default(),
        connections_opened: 0,
        confirmed: 0,
        has_refused_reads: false,
        certificates_end: None,
        is_tls_unavailable: false,
        has_unread_definitions: false,
        waiting_publishers: 0,
        waiters: leveret_queues::WaitingByKind::new(),
        disk_limit_bytes: 0,
        store: StoreView::default(),
        memory: Vec::new(),
    }
}
