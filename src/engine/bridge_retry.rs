//! `retry_parked`: what was set aside goes back to where it was on its way to.
//!
//! What was on its way up goes to the end of the queue here that it came from; what came from the upstream is
//! published here again. One message at a time, by a consumer of our own, whether the upstream is there or
//! not.
//!
//! Always true: a message is in the queue for those that were set aside or where it goes, never in neither;
//! what cannot go back stays, at the end of that queue; each turn moves one message of each bridge at most;
//! no more are looked at than there were when it began, so what is refused once more is not tried for ever.

use crate::bridge::{Cause, came_from, unparked};
use crate::broker;
use crate::command::{Command, ConnectionId, Outbox};
use crate::error::{Fault, ReplyCode};
use crate::log_limiter::{LogKind, LogSource};
use crate::mem::MessageId;
use crate::wire::{Properties, Writer};

use super::bridge_link::Retry;
use super::bridge_state::{Bridge, Scratch};
use super::platform::Platform;
use super::state::Engine;

/// Where a message goes.
enum Back {
    /// To the end of this queue.
    Queue(String),
    /// To its exchange, with its key.
    Exchange,
    /// Nobody knows.
    Nowhere,
}

/// How it goes on.
#[derive(PartialEq, Eq)]
enum Step {
    GoOn,
    Done,
}

impl<P: Platform> Engine<P> {
    /// Begins, unless it is under way; what comes of it is told by `bridge_status`, and in the log.
    #[cold]
    pub(super) fn begin_retry(&mut self, place: usize) {
        let Bridge { config, retry: None, .. } = &self.bridges.places[place] else { return };
        let (name, vhost, queue) = (config.name.clone(), config.vhost.clone(), config.parked.clone());
        match self.open_retry(&name, &vhost, &queue) {
            Ok(retry) => self.bridges.places[place].retry = Some(retry),
            Err(cause) => self.log_retried(place, cause),
        }
    }

    fn open_retry(&mut self, name: &str, vhost: &str, queue: &str) -> Result<Retry, Cause> {
        let left = self.broker.queue_depth(vhost, queue).unwrap_or(0);
        if left == 0 {
            return Err(Cause::new(format_args!("there is nothing in {queue}")));
        }
        let refused = |fault: Fault| Cause::new(format_args!("this broker: {}", fault.text));
        let connection = self.broker.connect_own(&format!("bridge {name}"), vhost).map_err(refused)?;
        let begun = self.open_own_channel(connection).and_then(|channel| {
            let (no_ack, exclusive, arguments) = (false, false, &[][..]);
            self.demand(connection, channel, Command::Qos { prefetch_count: 1, global: true })?;
            let consume = Command::Consume { queue, tag: "retry", no_ack, exclusive, arguments };
            self.demand(connection, channel, consume).map(|()| channel)
        });
        match begun {
            Ok(channel) => Ok(Retry { connection, channel, left, moved: 0, stayed: 0, why: None }),
            Err(cause) => {
                self.release_own(connection);
                Err(cause)
            }
        }
    }

    fn release_own(&mut self, connection: ConnectionId) {
        let (broker, mut context) = self.broker_mut();
        broker.release(&mut context, connection);
    }

    /// Whether one of them can go on at once.
    pub(super) fn has_retry_work(&self) -> bool {
        let mut retries = self.bridges.places.iter().filter_map(|bridge| bridge.retry.as_ref());
        retries.any(|retry| self.broker.has_output(retry.connection))
    }

    /// Goes on with those that are under way.
    #[cold]
    pub(super) fn retry_parked(&mut self) {
        for place in 0..self.bridges.places.len() {
            let bridge = &mut self.bridges.places[place];
            let Some(mut retry) = bridge.retry.take() else { continue };
            let is_over = bridge.is_leaving || self.stopping.is_some();
            let step = match is_over {
                true => Err(Cause::new(format_args!("it was ended: the bridge, or the broker, goes"))),
                false => self.retry_one(place, &mut retry),
            };
            match step {
                Ok(Step::GoOn) => self.bridges.places[place].retry = Some(retry),
                Ok(Step::Done) => self.end_retry(place, &retry),
                Err(cause) => {
                    (retry.stayed, retry.why) = (retry.stayed + retry.left, Some(cause));
                    self.end_retry(place, &retry);
                }
            }
        }
    }

    /// The broker wants the connection closed: its virtual host goes.
    #[cold]
    pub(super) fn put_retry_out(&mut self, connection: ConnectionId, fault: &Fault) {
        let is_its =
            |bridge: &Bridge| bridge.retry.as_ref().is_some_and(|retry| retry.connection == connection);
        let Some(place) = self.bridges.places.iter().position(is_its) else { return };
        if let Some(mut retry) = self.bridges.places[place].retry.take() {
            retry.stayed += retry.left;
            retry.why = Some(Cause::new(format_args!("this broker: {}", fault.text)));
            self.end_retry(place, &retry);
        }
    }

    fn end_retry(&mut self, place: usize, retry: &Retry) {
        self.release_own(retry.connection);
        self.bridges.places[place].parked_alarm.note_parked();
        let Retry { moved, stayed, why, .. } = retry;
        self.log_retried(
            place,
            match why {
                None => Cause::new(format_args!("{moved} went back")),
                Some(why) => Cause::new(format_args!("{moved} went back, {stayed} stay: {why}")),
            },
        );
    }

    fn log_retried(&mut self, place: usize, cause: Cause) {
        let bridge = &mut self.bridges.places[place];
        let text = format_args!("bridge {}, what was set aside: {cause}", bridge.config.name);
        let source = LogSource::Bridge(bridge.serial);
        self.supplies.log.log(self.now, log::Level::Info, source, LogKind::Bridge, text);
        bridge.retried = Some(cause);
    }

    /// Looks at the next message, if one is there.
    fn retry_one(&mut self, place: usize, retry: &mut Retry) -> Result<Step, Cause> {
        let parked = self.bridges.places[place].config.parked.clone();
        let id = retry.connection;
        if self.broker.next_cancelled(id).is_some() {
            return Err(Cause::new(format_args!("{parked} was deleted")));
        }
        let next = self.broker.outbox(id).peek().map(|delivery| (delivery.delivery_tag, delivery.message));
        let Some((tag, message)) = next else {
            let vhost = &self.bridges.places[place].config.vhost;
            // It may be on its way from the disk, or somebody else has taken it.
            let is_empty = self.broker.queue_depth(vhost, &parked).unwrap_or(0) == 0;
            return Ok(if is_empty { Step::Done } else { Step::GoOn });
        };
        let (back, as_it_was, kept) = self.way_back(message);
        let channel = retry.channel;
        let context =
            &mut broker::Context::new(&mut self.journal, &mut self.supplies.messages, &mut self.work);
        self.broker.sent(context, id, 1);
        let done = match &back {
            Back::Queue(queue) => {
                self.broker.set_aside(context, channel, tag, queue, &kept).map(|batch| batch.is_some())
            }
            Back::Exchange => self.broker.publish_again(context, channel, tag, &kept),
            Back::Nowhere => Err(Fault::new(
                ReplyCode::NotFound,
                format_args!("it has no x-parked-cause: no bridge has set it aside"),
            )),
        };
        let is_done = match done {
            Ok(is_done) => {
                (retry.moved, retry.left) =
                    (retry.moved + u32::from(is_done), retry.left - u32::from(is_done));
                is_done
            }
            Err(fault) => {
                retry.why = Some(Cause::new(format_args!("{}", fault.text)));
                (retry.stayed, retry.left) = (retry.stayed + 1, retry.left - 1);
                // Behind the others, so that they get their turn.
                let kept = self.broker.set_aside(context, channel, tag, &parked, &as_it_was);
                matches!(kept, Ok(Some(_)))
            }
        };
        if !is_done {
            return Err(Cause::new(format_args!("there is no room for more now: try again later")));
        }
        Ok(if retry.left == 0 { Step::Done } else { Step::GoOn })
    }

    /// Where a message goes, its properties, and those that it gets.
    fn way_back(&mut self, message: MessageId) -> (Back, Vec<u8>, Vec<u8>) {
        let Scratch { headers, properties, edited, .. } = &mut self.bridges.scratch;
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
        let is_written = unparked(properties, headers, &mut writer).is_ok();
        let as_it_was = properties.as_bytes().to_vec();
        let kept = if is_written { writer.written().to_vec() } else { as_it_was.clone() };
        (back, as_it_was, kept)
    }
}
