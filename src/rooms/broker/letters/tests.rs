//! Letters by themselves: what a queue gives up goes where its arguments say, or stays until there is room.

use super::*;
use crate::access::FIRST_VHOST;
use crate::arguments::QueueSettings;
use crate::command::{ChannelId, QueueId, VhostId};
use crate::consumers::Consumers;
use crate::counters::Counters;
use crate::deliveries::{Carrier, NewDelivery};
use crate::journal::{Journal, Urgency};
use crate::limits::Limits;
use crate::mem::{MessageFlags, MessageId, Messages, Share};
use crate::policy::{Applied, Policies};
use crate::queue::{Queue, Taken};
use crate::queues::Queues;
use crate::quota::Quota;
use crate::topology::{ExchangeDeclaration, NewExchange, Topology};
use crate::wire::Writer;
use crate::wire::field::Table;
use crate::wire::props::Properties;
use crate::work::Work;
use crate::{Access, Context};

/// All that is borrowed to send something on.
struct World {
    letters: Letters,
    firehose: Firehose,
    queues: Queues,
    topology: Topology,
    quota: Quota,
    counters: Counters,
    policies: Policies,
    access: Access,
    consumers: Consumers,
    journal: Journal,
    messages: Messages,
    work: Work,
    vhost: VhostId,
}

/// The bytes of a table of texts and, where a text is a number, of numbers.
fn table(entries: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = [0; 256];
    let mut writer = Writer::new(&mut bytes);
    let written = writer.table(|table| {
        entries.iter().try_for_each(|(name, value)| match value.parse() {
            Ok(number) => table.long(name, number),
            Err(_) => table.text(name, value),
        })
    });
    assert!(written.is_ok());
    let end = writer.at();
    bytes[4..end].to_vec()
}

/// To the queue `dead`, by the exchange that every virtual host has.
const TO_DEAD: [(&str, &str); 2] = [("x-dead-letter-exchange", ""), ("x-dead-letter-routing-key", "dead")];
/// By the same exchange, with the key that the message has.
const BY_ITS_KEY: (&str, &str) = ("x-dead-letter-exchange", "");

impl World {
    /// The default exchange, and room for 16 messages.
    fn new() -> Self {
        let limits = Limits { queues_max: 8, messages_max: 16, ..Limits::default() };
        let mut access = Access::new(&limits, &mut (Box::new(|bytes: &mut [u8]| bytes.fill(7)) as _), 1);
        let vhost = access.add_vhost(FIRST_VHOST).unwrap();
        let quota = Quota::new(&limits);
        let messages = Messages::new(limits.message_limits());
        let mut topology = Topology::with_capacity(20, 40, 4096, 1);
        let (durable, auto_delete, internal) = (true, false, false);
        let declaration = ExchangeDeclaration {
            exchange: "",
            kind: "direct",
            durable,
            auto_delete,
            internal,
            arguments: &[],
        };
        topology.insert_exchange(&NewExchange {
            vhost,
            declaration,
            version: 0,
            declarer: None,
            delayed_queue: None,
        });
        Self {
            letters: Letters::with_capacity(8),
            firehose: Firehose::default(),
            queues: Queues::new(&limits, 1),
            topology,
            quota,
            counters: Counters::default(),
            policies: Policies::with_capacity(0),
            access,
            consumers: Consumers::new(&limits, 1),
            journal: Journal::new(16),
            messages,
            work: Work::default(),
            vhost,
        }
    }

    fn with<T>(&mut self, act: impl FnOnce(&mut Post<'_>, &mut Context<'_>) -> T) -> T {
        let mut post = Post {
            letters: &mut self.letters,
            firehose: &mut self.firehose,
            queues: &mut self.queues,
            topology: &mut self.topology,
            quota: &mut self.quota,
            counters: &mut self.counters,
            policies: &self.policies,
            access: &self.access,
            consumers: &self.consumers,
        };
        act(&mut post, &mut Context::new(&mut self.journal, &mut self.messages, &mut self.work))
    }

    fn queue(&mut self, name: &str, arguments: &[(&str, &str)]) -> QueueId {
        let arguments = table(arguments);
        let settings = QueueSettings::of(&self.policies.terms(&arguments, Applied::default()));
        self.queues.records_mut().insert(Queue::new(self.vhost, name, &arguments, settings)).unwrap()
    }

    fn message(&mut self, key: &str, body: &str) -> MessageId {
        let id = self.messages.begin("", key.as_bytes(), Share::ReadBack).unwrap();
        let (flags, len) = (MessageFlags::NONE, body.len() as u32);
        self.messages.reserve_content(id, &[], flags, len, Share::ReadBack).unwrap();
        self.messages.append_body(id, body.as_bytes());
        self.messages.finish(id);
        id
    }

    /// A message comes to a queue by the name of that.
    fn put(&mut self, queue: QueueId, body: &str) {
        let name = self.queues.at(queue).name.clone();
        let message = self.message(&name, body);
        self.with(|post, cx| {
            post.queues.push(cx, message, &[queue], Urgency::Window);
            post.enforce_limits_after_push(cx, message, &[queue]);
        });
        self.messages.release(message);
    }

    /// Delivers what stands first in a queue, and gives it up.
    fn reject(&mut self, queue: QueueId) {
        self.with(|post, cx| {
            let first = post.queues.first_to_go(cx, queue).unwrap();
            let Taken { message, offset, logged, redelivered, requeues } =
                post.queues.take_first(cx, queue, first);
            let new = NewDelivery {
                tag: 1,
                offset,
                logged,
                message,
                channel: ChannelId::from_index(0),
                consumer: None,
                queue: Some(queue),
                carrier: Carrier::Deliver,
                redelivered,
                requeues,
                no_ack: true,
            };
            post.queues.count_delivery(cx.messages, &new);
            let body_len = cx.messages.body_len(message);
            let delivery = post.queues.deliveries_mut().insert(new, 1, (0, body_len)).unwrap();
            post.queues.uncount_delivery(cx.messages, delivery);
            post.dead_letter_delivery(cx, queue, delivery, Reason::Rejected);
        });
    }

    /// At this time queues give up what they have to.
    fn shed_at(&mut self, time_ms: u64) {
        self.journal.set_time(time_ms);
        self.with(|post, cx| assert_eq!(post.shed(cx, &mut Turn::new()), None));
    }

    fn ready(&self, queue: QueueId) -> u32 {
        self.queues.records().ready_in(queue)
    }

    fn body(&self, message: MessageId) -> String {
        let mut bytes = vec![0; self.messages.body_len(message) as usize];
        self.messages.read(message, &mut self.messages.body_cursor(message, 0), &mut bytes);
        String::from_utf8(bytes).unwrap()
    }

    /// The first message of a queue: its body, and of each of its deaths the queue, the reason and the count.
    fn first(&self, queue: QueueId) -> (String, Vec<String>) {
        let (_, message, _) = self.queues.first_in_memory(queue).unwrap();
        let mut scratch = [0; 4096];
        let properties = Properties::trusted(self.messages.properties(message, &mut scratch));
        let deaths = properties.headers().unwrap_or(Table::EMPTY).get("x-death");
        let deaths = deaths.and_then(|deaths| deaths.as_array()).into_iter().flatten();
        let told = deaths.filter_map(|death| death.as_table()).map(|death| {
            let text = |name| death.get(name).and_then(|value| value.as_str()).unwrap_or("none");
            let count = death.get("count").and_then(|value| value.as_integer()).unwrap_or(0);
            format!("{} {} {count}", text("queue"), text("reason"))
        });
        (self.body(message), told.collect())
    }
}

#[test]
fn what_is_rejected_goes_where_dead_letters_go_and_says_why_it_died() {
    let mut world = World::new();
    let [source, dead] = [world.queue("q", &TO_DEAD), world.queue("dead", &[])];
    world.put(source, "a");
    world.put(source, "b");
    world.reject(source);
    assert_eq!((world.ready(source), world.ready(dead), world.messages.messages_used()), (1, 1, 2));
    assert_eq!(world.first(dead), ("a".to_owned(), vec!["q rejected 1".to_owned()]));
    assert_eq!(world.first(source), ("b".to_owned(), vec![]));
}

#[test]
fn what_has_nowhere_to_go_is_dropped() {
    let mut world = World::new();
    let nowhere = [("x-dead-letter-exchange", "none")];
    for arguments in [&[][..], &TO_DEAD[..], &nowhere[..]] {
        let queue = world.queue("q", arguments);
        world.put(queue, "a");
        world.reject(queue);
        assert_eq!((world.ready(queue), world.messages.messages_used()), (0, 0), "{arguments:?}");
        assert_eq!(world.queues.at(queue).backlog.first_rejected(), None);
        world.queues.records_mut().retire(queue);
    }
}

#[test]
fn without_room_nothing_leaves_its_queue_and_with_room_it_goes() {
    let mut world = World::new();
    let [source, dead] = [world.queue("q", &TO_DEAD), world.queue("dead", &[])];
    world.put(source, "a");
    let others: Vec<MessageId> = (1..16).map(|_| world.message("other", "m")).collect();
    world.reject(source);
    assert!(world.queues.at(source).backlog.first_rejected().is_some());
    world.shed_at(1);
    assert_eq!((world.ready(source), world.ready(dead), world.messages.messages_used()), (0, 0, 16));
    others.into_iter().for_each(|message| world.messages.release(message));
    world.shed_at(2);
    assert_eq!(world.queues.at(source).backlog.first_rejected(), None);
    assert_eq!(world.first(dead), ("a".to_owned(), vec!["q rejected 1".to_owned()]));
    assert_eq!(world.messages.messages_used(), 1);
}

#[test]
fn what_is_too_much_goes_on_from_the_front() {
    let mut world = World::new();
    let arguments = [TO_DEAD[0], TO_DEAD[1], ("x-max-length", "1")];
    let [source, dead] = [world.queue("q", &arguments), world.queue("dead", &[])];
    world.put(source, "a");
    world.put(source, "b");
    assert_eq!(world.first(dead), ("a".to_owned(), vec!["q maxlen 1".to_owned()]));
    assert_eq!((world.ready(source), world.first(source).0), (1, "b".to_owned()));
}

#[test]
fn what_has_expired_goes_on_at_its_time() {
    let mut world = World::new();
    let arguments = [TO_DEAD[0], TO_DEAD[1], ("x-message-ttl", "100")];
    let [source, dead] = [world.queue("q", &arguments), world.queue("dead", &[])];
    world.journal.set_time(1_000);
    world.put(source, "a");
    world.shed_at(1_099);
    assert_eq!((world.ready(source), world.ready(dead)), (1, 0));
    world.shed_at(1_100);
    assert_eq!((world.ready(source), world.ready(dead)), (0, 1));
    assert_eq!(world.first(dead).1, ["q expired 1"]);
}

#[test]
fn what_goes_round_in_circles_by_itself_is_dropped() {
    let mut world = World::new();
    let queue = world.queue("q", &[BY_ITS_KEY, ("x-message-ttl", "100")]);
    world.journal.set_time(1_000);
    world.put(queue, "a");
    world.shed_at(1_100);
    assert_eq!((world.ready(queue), world.messages.messages_used()), (0, 0));
}

#[test]
fn what_somebody_rejects_may_come_to_its_queue_again_and_counts_its_deaths() {
    let mut world = World::new();
    let queue = world.queue("q", &[BY_ITS_KEY]);
    world.put(queue, "a");
    for count in 1..=3 {
        world.reject(queue);
        let (body, deaths) = world.first(queue);
        assert_eq!((body.as_str(), deaths), ("a", vec![format!("q rejected {count}")]));
    }
    assert_eq!((world.ready(queue), world.messages.messages_used()), (1, 1));
}
