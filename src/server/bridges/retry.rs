//! What was set aside goes back to where it was on its way to: when the operator says so (`retry_parked`), or by
//! itself (`park_retry`).
//!
//! What was on its way up goes to the end of the queue here that it came from; what came from the upstream is
//! published here again. One message at a time, by a consumer of our own, whether the upstream is there or
//! not.
//!
//! Always true: a message is in the queue for those that were set aside or where it goes, never in neither;
//! what cannot go back stays, at the end of that queue; each turn moves one message of each bridge at most;
//! no more are looked at than there were when it began, so what is refused once more is not tried for ever.

use leveret_amqp::{Properties, Writer};
use leveret_bridge::Cause;
use leveret_broker::{Broker, came_from, unparked};
use leveret_core::command::{ConnectionId, Outbox};
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::mem::MessageId;
use leveret_core::time::Deadline;

use super::message::Scratch;
use super::registry::Bridges;
use super::state::{Head, ParkedAlarm, Retry};
use crate::platform::Platform;
use crate::shared::Shared;

/// Where a message goes.
enum Back {
    /// To the end of this queue.
    Queue(String),
    /// To its exchange, with its key.
    Exchange,
    /// Nobody knows.
    Nowhere,
}

impl Bridges {
    /// Begins, unless it is under way; what comes of it is told by `bridge_status`, and in the log.
    #[cold]
    pub(super) fn begin_retry<P: Platform>(&mut self, shared: &mut Shared<P>, place: usize) {
        let head = &mut self.places[place].head;
        if head.retry.is_some() {
            return;
        }
        match shared.open_retry(head) {
            Ok(retry) => head.retry = Some(retry),
            Err(cause) => shared.tell_retried(head, cause),
        }
    }

    /// Whether one of them can go on at once.
    pub(super) fn has_retry_work(&self, broker: &Broker) -> bool {
        let mut retries = self.places.iter().filter_map(|bridge| bridge.head.retry.as_ref());
        retries.any(|retry| broker.has_output(retry.own.connection))
    }

    /// Goes on with those that are under way, and begins those whose time has come.
    pub(super) fn retry_parked<P: Platform>(&mut self, shared: &mut Shared<P>) {
        for place in 0..self.places.len() {
            let head = &mut self.places[place].head;
            if head.retry_due.is_due(shared.now) {
                head.retry_due = Deadline::NEVER;
                self.begin_retry(shared, place);
            }
            let head = &mut self.places[place].head;
            let Some(mut retry) = head.retry.take() else { continue };
            let step = match head.is_leaving || shared.is_stopping() {
                true => Err(Cause::new(format_args!("it was ended: the bridge, or the broker, goes"))),
                false => shared.retry_one(head, &mut self.common.scratch, &mut retry),
            };
            match step {
                Ok(true) => head.retry = Some(retry),
                step => shared.end_retry(head, retry, step.err()),
            }
        }
    }

    /// The broker wants the connection closed: its virtual host goes.
    #[cold]
    pub(super) fn put_retry_out<P: Platform>(
        &mut self,
        shared: &mut Shared<P>,
        connection: ConnectionId,
        why: &str,
    ) {
        let is_its =
            |head: &Head| head.retry.as_ref().is_some_and(|retry| retry.own.connection == connection);
        let Some(bridge) = self.places.iter_mut().find(|bridge| is_its(&bridge.head)) else { return };
        if let Some(retry) = bridge.head.retry.take() {
            let cause = Cause::new(format_args!("this broker: {why}"));
            shared.end_retry(&mut bridge.head, retry, Some(cause));
        }
    }

    /// Says of which bridges messages are set aside now, and of which none is any more: one line when it
    /// begins and one when it ends, of however many messages.
    pub(super) fn tell_parked<P: Platform>(&mut self, shared: &mut Shared<P>) {
        for bridge in &mut self.places {
            let head = &mut bridge.head;
            if head.parked_alarm != ParkedAlarm::Off && head.retry.is_none() && !head.is_leaving {
                shared.tell_parked_of(head);
            }
        }
    }
}

impl<P: Platform> Shared<P> {
    fn parked_depth(&self, head: &Head) -> u32 {
        self.broker.queue_depth(&head.config.vhost, &head.config.parked).unwrap_or(0)
    }

    #[cold]
    fn tell_parked_of(&mut self, head: &mut Head) {
        let (name, queue) = (&head.config.name, &head.config.parked);
        let next = if self.parked_depth(head) == 0 { ParkedAlarm::Off } else { ParkedAlarm::On };
        let was = core::mem::replace(&mut head.parked_alarm, next);
        match (next, head.config.park_retry_ms) {
            (ParkedAlarm::On, Some(ms)) if head.retry_due == Deadline::NEVER => {
                head.retry_due = self.now.after_ms(ms.into());
            }
            (ParkedAlarm::On, _) => {}
            (ParkedAlarm::Off | ParkedAlarm::Unknown, _) => head.retry_due = Deadline::NEVER,
        }
        // What has a space in it is one word of a shell in quotes only.
        let quote = if name.contains(' ') { "\"" } else { "" };
        let (level, words) = match (was, next) {
            (ParkedAlarm::Unknown, ParkedAlarm::On) => (
                log::Level::Warn,
                format_args!(
                    "bridge {name}: messages are parked in {queue}; their header x-parked-cause says why, \
                     `leveretctl retry_parked {quote}{name}{quote}` sends them again"
                ),
            ),
            (ParkedAlarm::On, ParkedAlarm::Off) => {
                (log::Level::Info, format_args!("bridge {name}: no message is parked in {queue} any more"))
            }
            _ => return,
        };
        self.say(level, head.serial, words);
    }

    fn open_retry(&mut self, head: &Head) -> Result<Retry, Cause> {
        let (left, queue) = (self.parked_depth(head), &*head.config.parked);
        if left == 0 {
            return Err(Cause::new(format_args!("there is nothing in {queue}")));
        }
        let own = self.consume(&head.config, (queue, "retry"), 1)?;
        Ok(Retry { own, left, moved: 0, stayed: 0, why: None })
    }

    /// It is over; `cut`: why what was not looked at yet stays.
    fn end_retry(&mut self, head: &mut Head, mut retry: Retry, cut: Option<Cause>) {
        self.release_own(retry.own.connection);
        head.parked_alarm.note_parked();
        // What goes back by itself and is refused again goes back again, as long after: see `tell_parked_of`.
        head.retry_due = Deadline::NEVER;
        if cut.is_some() {
            (retry.stayed, retry.why) = (retry.stayed + retry.left, cut);
        }
        let Retry { moved, stayed, why, .. } = retry;
        let told = match why {
            None => Cause::new(format_args!("{moved} went back")),
            Some(why) => Cause::new(format_args!("{moved} went back, {stayed} stay: {why}")),
        };
        self.tell_retried(head, told);
    }

    fn tell_retried(&mut self, head: &mut Head, cause: Cause) {
        let words = format_args!("bridge {}, what was set aside: {cause}", head.config.name);
        self.say(log::Level::Info, head.serial, words);
        head.retried = Some(cause);
    }

    /// Looks at the next message, if one is there; whether it goes on.
    ///
    /// # Errors
    /// It cannot go on now.
    fn retry_one(&mut self, head: &Head, scratch: &mut Scratch, retry: &mut Retry) -> Result<bool, Cause> {
        let (parked, id) = (&*head.config.parked, retry.own.connection);
        if self.broker.next_cancelled(id).is_some() {
            return Err(Cause::new(format_args!("{parked} was deleted")));
        }
        let next = self.broker.outbox(id).peek().map(|delivery| (delivery.delivery_tag, delivery.message));
        let Some((tag, message)) = next else {
            // It may be on its way from the disk, or somebody else has taken it.
            return Ok(self.parked_depth(head) > 0);
        };
        let (back, as_it_was, kept) = self.way_back(message, scratch);
        let channel = retry.own.channel;
        let (broker, mut context) = self.broker_mut();
        broker.sent(&mut context, id, 1);
        let done = match &back {
            Back::Queue(queue) => {
                broker.set_aside(&mut context, channel, tag, queue, &kept).map(|batch| batch.is_some())
            }
            Back::Exchange => broker.publish_again(&mut context, channel, tag, &kept),
            Back::Nowhere => Err(Fault::new(
                ReplyCode::NotFound,
                format_args!("it has no x-parked-cause: no bridge has set it aside"),
            )),
        };
        let is_done = match done {
            Ok(is_done) => {
                retry.moved += u32::from(is_done);
                retry.left -= u32::from(is_done);
                is_done
            }
            Err(fault) => {
                retry.why = Some(Cause::new(format_args!("{}", fault.text)));
                retry.stayed += 1;
                retry.left -= 1;
                // Behind the others, so that they get their turn.
                matches!(broker.set_aside(&mut context, channel, tag, parked, &as_it_was), Ok(Some(_)))
            }
        };
        if !is_done {
            return Err(Cause::new(format_args!("there is no room for more now: try again later")));
        }
        Ok(retry.left > 0)
    }

    /// Where a message goes, its properties, and those that it gets.
    fn way_back(&self, message: MessageId, scratch: &mut Scratch) -> (Back, Vec<u8>, Vec<u8>) {
        let Scratch { properties, edited, .. } = scratch;
        let messages = &self.supplies.messages;
        let properties = Properties::trusted(messages.properties(message, properties));
        let key = || String::from_utf8_lossy(messages.routing_key(message)).into_owned();
        let back = match came_from(properties) {
            None => Back::Nowhere,
            Some(Some(queue)) => Back::Queue(queue.to_string()),
            Some(None) if messages.exchange(message).is_empty() => Back::Queue(key()),
            Some(None) => Back::Exchange,
        };
        let mut writer = Writer::new(edited);
        let is_written = unparked(properties, &mut writer).is_ok();
        let as_it_was = properties.as_bytes().to_vec();
        let kept = if is_written { writer.written().to_vec() } else { as_it_was.clone() };
        (back, as_it_was, kept)
    }
}
