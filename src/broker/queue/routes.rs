//! The queues that a message of a transaction goes to, kept as a message of its own until the commit.

use super::records::Records;
use crate::faults::out_of;
use crate::work::Work;
use leveret_core::command::{QueueId, VhostId};
use leveret_core::error::Fault;
use leveret_core::mem::{MessageFlags, MessageId, Messages, Share};

/// Octets of a hidden queue in a route that is kept.
const HIDDEN_LEN: usize = 1 + 4 + 8;

/// The queues as routing sees them, and those chosen for a message.
pub(crate) struct Targets<'a> {
    pub(crate) queues: &'a mut Records,
    pub(crate) chosen: &'a mut Vec<QueueId>,
}

impl Targets<'_> {
    /// The queue of this name.
    pub(crate) fn find(&self, vhost: VhostId, name: &str) -> Option<QueueId> {
        self.queues.find_queue(vhost, name)
    }

    /// Adds a queue to the route of this number, once at most.
    pub(crate) fn choose(&mut self, queue: QueueId, route: u64) {
        let record = &mut self.queues.slab[queue.index()];
        if record.routed_at != route && !record.dying {
            record.routed_at = route;
            self.chosen.push(queue);
        }
    }
}

impl Records {
    /// A route as a message of its own, whose body is its queues; the caller holds it.
    ///
    /// ```text
    /// | length, 1 octet, not 0 | name |   a queue that has a name
    /// | 0 | place, 4 | serial, 8 |        the hidden queue of a delayed exchange
    /// ```
    ///
    /// # Errors
    /// There is no room for the route.
    pub(crate) fn write_route(
        &mut self,
        messages: &mut Messages,
        targets: &[QueueId],
    ) -> Result<MessageId, Fault> {
        let len_of = |queue: &QueueId| match self.slab[queue.index()].name.len() {
            0 => HIDDEN_LEN,
            len => 1 + len,
        };
        let body_len = targets.iter().map(len_of).sum::<usize>() as u32;
        let route = messages.begin("", &[], Share::Reserve).map_err(|full| out_of(full.key()))?;
        let reserved = messages.reserve_whole(route, &[], MessageFlags::ROUTE, body_len, Share::Reserve);
        if let Err(full) = reserved {
            messages.discard(route);
            return Err(out_of(full.key()));
        }
        for &queue in targets {
            let record = &self.slab[queue.index()];
            messages.append_body(route, &[record.name.len() as u8]);
            if record.name.is_empty() {
                messages.append_body(route, &(queue.index() as u32).to_be_bytes());
                messages.append_body(route, &record.serial.to_be_bytes());
            } else {
                messages.append_body(route, record.name.as_bytes());
            }
        }
        assert!(messages.body_missing(route) == 0, "a route is as long as it was reckoned");
        Ok(route)
    }

    /// The queues of a kept route that still exist.
    pub(crate) fn read_route(
        &self,
        (messages, work): (&Messages, &mut Work),
        vhost: VhostId,
        route: MessageId,
        targets: &mut Vec<QueueId>,
    ) {
        let (mut cursor, mut left) = (messages.body_cursor(route, 0), messages.body_len(route) as usize);
        let mut octets = [0; 255];
        while left > 0 {
            work.charge(1);
            messages.read(route, &mut cursor, &mut octets[..1]);
            let len = usize::from(octets[0]);
            let rest = if len == 0 { HIDDEN_LEN - 1 } else { len };
            messages.read(route, &mut cursor, &mut octets[..rest]);
            left -= 1 + rest;
            let queue = match len {
                0 => self.hidden_queue(&octets),
                len => {
                    core::str::from_utf8(&octets[..len]).ok().and_then(|name| self.find_queue(vhost, name))
                }
            };
            targets.extend(queue.filter(|queue| !self.slab[queue.index()].dying));
        }
    }

    /// The hidden queue of this place and serial, if it still exists.
    fn hidden_queue(&self, octets: &[u8; 255]) -> Option<QueueId> {
        let (place, rest) = octets.split_first_chunk()?;
        let serial = u64::from_be_bytes(*rest.first_chunk()?);
        let place = u32::from_be_bytes(*place) as usize;
        let is_it = self.slab.get(place).is_some_and(|record| record.serial == serial);
        is_it.then(|| QueueId::from_index(place))
    }
}
