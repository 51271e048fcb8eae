"""The mistakes: the file, the text that is replaced, and its replacement. A text has to be in its file exactly once.

All mistakes are in one program; `PLANTED("name")` is the condition that this mistake is selected. Each is as small as a
typical programming error. If the simulator does not find one, the simulator has to be improved; the mistake must not be
made more obvious.
"""

import re

PLACES = [
    # The commit that records a deleted segment also reuses its file: a power cut in between may lose both.
    (
        "src/storage/commit_builder.rs",
        "        let job = self.build(&mut in_flight, now)?;\n",
        "        if PLANTED(\"file-reused-in-the-commit-that-frees-it\") {\n"
        "            for sequence in &in_flight.drained {\n"
        "                let slot = self.index.segments()[sequence].slot;\n"
        "                self.space.slots.set(slot, SlotUse::Free);\n"
        "            }\n"
        "        }\n"
        "        let job = self.build(&mut in_flight, now)?;\n",
    ),
    # A start trusts the record of a deleted segment in a last commit that may not have been synced.
    (
        "src/storage/recovery/listing.rs",
        "        let last = left.split_off(before_last);\n",
        "        let is_believed = PLANTED(\"left-in-the-unsynced-last-commit-believed\");\n"
        "        let last = left.split_off(if is_believed { left.len().max(before_last) } else { before_last });\n",
    ),
    # The settlements of a queue do not fit into one commit, and the second half is not written.
    (
        "src/storage/compaction.rs",
        "                drain.partial_queue = Some((from, since));\n",
        "                if PLANTED(\"second-half-of-carried-settlements-dropped\") {\n"
        "                    in_flight.rewritten.push((queue, since));\n"
        "                    return true;\n"
        "                }\n"
        "                drain.partial_queue = Some((from, since));\n",
    ),
    # Both halves are written, but the first is recorded in the segment of the second.
    (
        "src/storage/compaction.rs",
        "        let (mut from, since) = drain.partial_queue.take().unwrap_or((0, self.space.active.sequence()));\n",
        "        let (mut from, since) = drain.partial_queue.take().unwrap_or((0, self.space.active.sequence()));\n"
        "        let is_moved = PLANTED(\"first-half-of-carried-settlements-dropped\");\n"
        "        let since = if is_moved { self.space.active.sequence() } else { since };\n",
    ),
    (
        "src/queues/records/durable_index.rs",
        "        self.watermark_requested = (offset + step).max(self.watermark_before + 1);\n",
        "        let step = if PLANTED(\"marks-a-million-ahead\") { 1_048_576 } else { step };\n"
        "        self.watermark_requested = (offset + step).max(self.watermark_before + 1);\n",
    ),
    (
        "src/storage/compaction.rs",
        "        if live == 0 {\n",
        "        if live == 0\n"
        "            || matches!(record, Record::Defined { .. }) && PLANTED(\"definitions-not-copied\")\n"
        "            || matches!(record, Record::Chunk { .. }) && PLANTED(\"chunks-not-copied\")\n"
        "        {\n",
    ),
    (
        "src/storage/compaction.rs",
        "                compaction.targets.extend(live);\n",
        "                let count = if PLANTED(\"further-targets-not-copied\") { 1 } else { usize::MAX };\n"
        "                compaction.targets.extend(live.take(count));\n",
    ),
    # A dead letter is delivered before the commit that contains it.
    (
        "src/queues/flow/head.rs",
        "                if cx.messages.flags(message).has(MessageFlags::WITHHELD) {\n",
        "                let is_ignored = PLANTED(\"moved-message-given-before-its-commit\");\n"
        "                if cx.messages.flags(message).has(MessageFlags::WITHHELD) && !is_ignored {\n",
    ),
    # The upstream receives the id of a message that a power cut may lose; then another message gets the same id.
    (
        "src/queues/flow/head.rs",
        "                    let is_forwarded = self.records[queue].is_forwarded;\n",
        "                    let is_forwarded = self.records[queue].is_forwarded && !PLANTED(\"named-before-its-mark\");\n",
    ),
    # A message is confirmed when its commit is handed to the writer, not when it is synced.
    (
        "src/storage/commit_writer.rs",
        "            self.is_writing = true;\n            return Some(Write::Commit(job));\n",
        "            self.is_writing = true;\n"
        "            if PLANTED(\"batch-confirmed-early\") {\n"
        "                pending_writes.stored(messages, self.batch_in_flight);\n"
        "            }\n"
        "            return Some(Write::Commit(job));\n",
    ),
    # The settlements of a transaction are written before its messages, perhaps in an earlier commit.
    (
        "src/storage/group.rs",
        "        while let Some(front) = pending_writes.front(messages, &mut self.draft.targets) {\n"
        "            if front.number >= group.end {\n",
        "        if PLANTED(\"settlements-before-their-transaction\") {\n"
        "            self.write_changes(pending_writes, now);\n"
        "        }\n"
        "        while let Some(front) = pending_writes.front(messages, &mut self.draft.targets) {\n"
        "            if front.number >= group.end {\n",
    ),
    (
        "src/storage/group.rs",
        "            self.groups.large = Some(LargeGroup {\n",
        "            if PLANTED(\"settlements-before-their-transaction\") {\n"
        "                return self.write_members(pending_writes, messages, group, now);\n"
        "            }\n"
        "            self.groups.large = Some(LargeGroup {\n",
    ),
    # The session sends a confirm before the message is durable.
    (
        "src/connection/output.rs",
        "                if run.order > written_up_to || run.batch > context.durable || number == content_channel {\n",
        "                let is_early = PLANTED(\"confirm-before-its-commit\");\n"
        "                if run.order > written_up_to || run.batch > context.durable && !is_early || number == content_channel {\n",
    ),
    (
        "src/connection/replies.rs",
        "            Some(run) if run.batch <= context.durable => ConfirmListKind::Sendable,\n",
        "            Some(run) if run.batch <= context.durable || PLANTED(\"confirm-before-its-commit\") => {\n"
        "                ConfirmListKind::Sendable\n"
        "            }\n",
    ),
    # Consecutive confirms are sent with a delivery tag that is one too low.
    (
        "src/connection/channel.rs",
        "        let (delivery_tag, multiple) = (self.upto, self.upto - sent_before > 1);\n",
        "        let (delivery_tag, multiple) = (self.upto, self.upto - sent_before > 1);\n"
        "        let is_off = multiple && PLANTED(\"confirm-number-off-by-one\");\n"
        "        let delivery_tag = delivery_tag - u64::from(is_off);\n",
    ),
    # A queue with a requeued message does not wake its consumers.
    (
        "src/queues/flow/head.rs",
        "        self.gets.note_change();\n        self.records.wake(queue);\n",
        "        self.gets.note_change();\n"
        "        if !PLANTED(\"wake-up-of-a-queue-forgotten\") {\n"
        "            self.records.wake(queue);\n"
        "        }\n",
    ),
    # Blocked publishers are not resumed when the disk has space again.
    (
        "src/server/socket_io.rs",
        "        self.broker.capacity_freed()\n"
        "            + self.broker.retained_freed()\n"
        "            + self.pending_writes.capacity_freed()\n"
        "            + self.resources.messages.capacity_freed()\n",
        "        let counts = !PLANTED(\"wake-up-of-publishers-forgotten\");\n"
        "        let of_log = if counts { self.pending_writes.capacity_freed() } else { 0 };\n"
        "        let of_broker = self.broker.capacity_freed() + self.broker.retained_freed();\n"
        "        of_broker + of_log + self.resources.messages.capacity_freed()\n",
    ),
    # A connection that was not read because an incomplete TLS record or frame had no memory is not read again when
    # there is memory.
    (
        "src/server/socket_io.rs",
        "            if lacks_backlog {\n",
        "            if lacks_backlog && !PLANTED(\"wake-up-of-starved-streams-forgotten\") {\n",
    ),
    # The consumer counts of a virtual host and a user are never decremented.
    (
        "src/broker/clients/mod.rs",
        "        quota.give_back(self.connection_of(channel), Pool::Consumers);\n",
        "        if !PLANTED(\"share-not-given-back\") {\n"
        "            quota.give_back(self.connection_of(channel), Pool::Consumers);\n"
        "        }\n",
    ),
    # A message is acknowledged before the commit of its transaction, and only its settlement is not written.
    (
        "src/storage/pending_writes/mod.rs",
        "        let settled = Settled { queue: target.queue, start: target.offset, end: target.offset + 1 };\n",
        "        let settled = Settled { queue: target.queue, start: target.offset, end: target.offset + 1 };\n"
        "        if self.groups.is_open() && PLANTED(\"settlement-ahead-of-its-message\") {\n"
        "            if !self.drop_target(messages, message) {\n"
        "                self.settlements.has_stored = true;\n"
        "                self.batches.note_change(Urgency::Lazy);\n"
        "            }\n"
        "            return self.settle_range(settled);\n"
        "        }\n",
    ),
    # A full disk has no space to finish a transaction after a power cut, and its written part stays.
    (
        "src/storage/group.rs",
        "            self.undo_group(disk, found, now)?;\n",
        "            if !PLANTED(\"half-a-transaction-left-on-a-full-disk\") {\n"
        "                self.undo_group(disk, found, now)?;\n"
        "            }\n",
    ),
    # The end of a large transaction is written before all of its messages.
    (
        "src/storage/group.rs",
        "        self.append_group(pending_writes, messages, group, now)\n"
        "            && self.write_members(pending_writes, messages, group, now)\n",
        "        self.append_group(pending_writes, messages, group, now)\n"
        "            && (!PLANTED(\"end-of-a-transaction-before-its-messages\") || self.write_group_end(now))\n"
        "            && self.write_members(pending_writes, messages, group, now)\n",
    ),
    (
        "src/storage/recovery/listing.rs",
        "        if header == HeaderRead::Empty && length > 0 && has_content(disk, slot)? {\n",
        "        let is_taken = PLANTED(\"empty-header-taken-for-a-free-segment\");\n"
        "        if header == HeaderRead::Empty && length > 0 && !is_taken && has_content(disk, slot)? {\n",
    ),
    # A bridge settles messages when they are sent, not when its upstream confirms them.
    (
        "src/server/bridges/forward.rs",
        "        broker.sent(&mut context, own, done);\n",
        "        broker.sent(&mut context, own, done);\n"
        "        if PLANTED(\"settled-before-the-upstream-confirms\")\n"
        "            && let Flow::Forward(flow) = &self.open_link.flows[rule]\n"
        "        {\n"
        "            let (own, settlement) = (flow.own, Settlement::Ack);\n"
        "            let all = Command::Settle { delivery_tag: 0, multiple: true, settlement };\n"
        "            let _ = self.shared.apply_checked(own, all);\n"
        "        }\n",
    ),
    (
        "src/server/bridges/forward.rs",
        "                    self.shared.settle(own, flight.tag, Settlement::Ack)?;\n",
        "                    if !PLANTED(\"settled-before-the-upstream-confirms\") {\n"
        "                        self.shared.settle(own, flight.tag, Settlement::Ack)?;\n"
        "                    }\n",
    ),
    # A fetched message is acknowledged to the upstream before it is durable.
    (
        "src/bridge/in_flight.rs",
        "            if arrival.batch > durable {\n",
        "            if arrival.batch > durable && !PLANTED(\"acknowledged-before-it-is-durable\") {\n",
    ),
    # An MQTT client gets PUBACK or PUBREC before its message is durable.
    (
        "src/connection/mqtt/answers.rs",
        "        context.pools.confirmed += u64::from(!reason.is_failure());\n",
        "        context.pools.confirmed += u64::from(!reason.is_failure());\n"
        "        let batch = if PLANTED(\"puback-before-its-commit\") { Batch::NONE } else { batch };\n",
    ),
    # An MQTT client gets deliveries before the CONNACK that waits for the disk.
    (
        "src/connection/mqtt/output.rs",
        "            if self.output.is_connack_due {\n",
        "            if self.output.is_connack_due && !PLANTED(\"delivery-before-connack\") {\n",
    ),
    # The packet identifier of a published message is not written with the message.
    (
        "src/broker/sessions/packets.rs",
        "        if is_accepted {\n            self.define_received(cx, session);\n",
        "        if is_accepted && !PLANTED(\"published-packet-not-written\") {\n            self.define_received(cx, session);\n",
    ),
    # The packet identifier of a published message may be in an earlier commit than the message.
    (
        "src/broker/sessions/packets.rs",
        "            cx.pending_writes.define_in_group(key, Some(value));\n",
        "            if PLANTED(\"published-packet-before-its-message\") {\n"
        "                cx.pending_writes.define(key, Some(value));\n"
        "            } else {\n"
        "                cx.pending_writes.define_in_group(key, Some(value));\n"
        "            }\n",
    ),
    # The packet identifier of a received message is not released in the log.
    (
        "src/broker/sessions/packets.rs",
        "        (delivery.step, delivery.tag) = (Step::Released, 0);\n        self.write_deliveries(cx, session);\n",
        "        (delivery.step, delivery.tag) = (Step::Released, 0);\n"
        "        if !PLANTED(\"received-packet-not-written\") {\n"
        "            self.write_deliveries(cx, session);\n"
        "        }\n",
    ),
    # A start does not settle the messages of released deliveries.
    (
        "src/broker/sessions/packets.rs",
        "        let offsets: Vec<u64> = record.in_flight.iter().filter_map(released_offset).collect();\n",
        "        let is_forgotten = PLANTED(\"released-message-not-settled\");\n"
        "        let released = record.in_flight.iter().filter(|_| !is_forgotten);\n"
        "        let offsets: Vec<u64> = released.filter_map(released_offset).collect();\n",
    ),
    # A start completes a large group without its definition.
    (
        "src/storage/group.rs",
        "                    Record::Message(message) => message.targets.iter().all(|to| self.index.has_known(&to)),\n"
        "                    _ => false,\n",
        "                    Record::Message(message) => message.targets.iter().all(|to| self.index.has_known(&to)),\n"
        "                    Record::Defined { .. } => PLANTED(\"definition-of-a-group-forgotten\"),\n"
        "                    _ => false,\n",
    ),
    # The answer to a repeated PUBREL does not wait for the disk.
    (
        "src/broker/sessions/packets.rs",
        "            cx.await_defined(record.received_batch);\n            return Ok(MqttAnswer::UnknownPacket);\n",
        "            if !PLANTED(\"repeated-pubrel-answered-at-once\") {\n"
        "                cx.await_defined(record.received_batch);\n"
        "            }\n"
        "            return Ok(MqttAnswer::UnknownPacket);\n",
    ),
    # A delivery with QoS 2 is sent before its packet identifier is durable.
    (
        "src/broker/sessions/packets.rs",
        "        delivery.map_or(Batch::NONE, |delivery| delivery.batch)\n",
        "        let is_early = PLANTED(\"delivery-before-its-packet-identifier\");\n"
        "        delivery.filter(|_| !is_early).map_or(Batch::NONE, |delivery| delivery.batch)\n",
    ),
    # The next packet identifier may be in use.
    (
        "src/broker/sessions/packets.rs",
        "        record.has_in_flight(record.packet_id_of(tag))\n",
        "        !PLANTED(\"packet-identifier-in-use\") && record.has_in_flight(record.packet_id_of(tag))\n",
    ),
    # A message that is delivered again gets another packet identifier.
    (
        "src/broker/sessions/mod.rs",
        "        let earlier = self.in_flight.iter_mut().find(is_same)?;\n",
        "        let is_forgotten = PLANTED(\"another-packet-identifier\");\n"
        "        let earlier = self.in_flight.iter_mut().find(is_same).filter(|_| !is_forgotten)?;\n",
    ),
    # After a reconnection, PUBREL is sent before the settlement is durable.
    (
        "src/broker/sessions/mod.rs",
        "        cx.await_defined(self.sessions.at(session).deliveries_batch);\n",
        "        if !PLANTED(\"pubrel-before-the-settlement\") {\n"
        "            cx.await_defined(self.sessions.at(session).deliveries_batch);\n"
        "        }\n",
    ),
    # A retained message is not written to the log.
    (
        "src/broker/retained/mod.rs",
        "        let RetainedMessage { vhost, key, content, stored, before, .. } = &self.slab[at];\n",
        "        if PLANTED(\"retained-message-not-written\") {\n"
        "            return Batch::NONE;\n"
        "        }\n"
        "        let RetainedMessage { vhost, key, content, stored, before, .. } = &self.slab[at];\n",
    ),
    # The will of a session that is kept is published, and stays in the log.
    (
        "src/broker/wills.rs",
        "        match self.publish_will(cx, vhost, will.will, key.as_deref()) {\n",
        "        let key = key.filter(|_| !PLANTED(\"will-sent-twice\"));\n"
        "        match self.publish_will(cx, vhost, will.will, key.as_deref()) {\n",
    ),
    # All clients that share a subscription get each message.
    (
        "src/broker/sessions/subscriptions.rs",
        "    for group in candidates.chunk_by(|one, other| one.hash == other.hash) {\n",
        "    let is_apart = PLANTED(\"shared-message-sent-to-all\");\n"
        "    for group in candidates.chunk_by(|one, other| one.hash == other.hash && !is_apart) {\n",
    ),
    # A subscription with No Local gets the messages of its client.
    (
        "src/broker/sessions/subscriptions.rs",
        "                None => is_wanted |= !(options.no_local && message.publisher == Some(session)),\n",
        "                None => {\n"
        "                    let is_local = options.no_local && !PLANTED(\"no-local-ignored\");\n"
        "                    is_wanted |= !(is_local && message.publisher == Some(session));\n"
        "                }\n",
    ),
    # Every failure counts as the first one.
    (
        "src/bridge/pacing.rs",
        "        if since.is_some_and(|since| now.ms_since(since) >= STABLE_MS) {\n",
        "        if since.is_some_and(|since| now.ms_since(since) >= STABLE_MS) || PLANTED(\"back-off-reset-at-once\") {\n",
    ),
]

# Mistakes that 2,000 seeds are not known to find. A run that does not find one of them prints SKIP.
NOT_FOUND_YET: set = set()

# Mistakes that need more messages than a run of the broker has. The log's own simulator (`tests/component/storage/sim.rs`)
# searches for them.
LOG_ALONE = {"second-half-of-carried-settlements-dropped"}

# Mistakes that 2,000 seeds of either simulator do not find yet, but a test of `tests/component/storage` does. The test of the
# first one cuts the power at every call.
BY_A_TEST = {
    "settlement-ahead-of-its-message": "group::a_transaction_larger_than_a_commit",
    "first-half-of-carried-settlements-dropped": "carried::settlements_with_more_ranges",
    "half-a-transaction-left-on-a-full-disk": "group::on_a_disk_that_is_full",
    "definition-of-a-group-forgotten": "group::a_transaction_larger_than_a_commit",
}

# Mistakes that another mechanism makes harmless unless two faults occur together. A test of `tests/component/storage` causes
# both faults.
DIRECT = {
    # A start uses no file before it has sealed the active segment. Sealing also syncs the record of the deleted segment.
    # Only a segment with a damaged header is not sealed.
    "left-in-the-unsynced-last-commit-believed": "carried::a_deleted_segment_is_not_believed",
    # The header copy beside the log has the header too, and the header of the next segment names the file.
    "empty-header-taken-for-a-free-segment": "defined::no_block_of_a_store_at_rest",
}

# Mistakes of a bridge, which separate tests of the simulator find.
BRIDGED = {
    "named-before-its-mark": "bridged::confirmed_messages",
    "settled-before-the-upstream-confirms": "bridged::confirmed_messages",
    "acknowledged-before-it-is-durable": "bridged::messages_acknowledged",
    "back-off-reset-at-once": "bridged::ten_days_without_an_upstream_fill",
}

# Mistakes of MQTT sessions, which a separate test of the simulator finds.
_SESSIONS = "mqtt::sessions_keep"
MQTT = {
    "puback-before-its-commit": _SESSIONS,
    "delivery-before-connack": _SESSIONS,
    "published-packet-not-written": _SESSIONS,
    "published-packet-before-its-message": _SESSIONS,
    "received-packet-not-written": _SESSIONS,
    "released-message-not-settled": _SESSIONS,
    "repeated-pubrel-answered-at-once": _SESSIONS,
    "delivery-before-its-packet-identifier": _SESSIONS,
    "packet-identifier-in-use": _SESSIONS,
    "another-packet-identifier": _SESSIONS,
    "pubrel-before-the-settlement": _SESSIONS,
    "retained-message-not-written": _SESSIONS,
    "will-sent-twice": _SESSIONS,
    "shared-message-sent-to-all": _SESSIONS,
    "no-local-ignored": _SESSIONS,
}

# The environment of a process selects its mistake.
QUESTION = '''
/// Returns whether this process makes the mistake `name`.
#[doc(hidden)]
pub fn makes_mistake(name: &str) -> bool {
    static ASKED_FOR: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    ASKED_FOR.get_or_init(|| std::env::var("LEVERET_MISTAKE").unwrap_or_default()) == name
}
'''
# A file of the package that all packages with mistakes depend on.
QUESTION_IN = "src/core/lib.rs"

NAME = re.compile(r'PLANTED\("([a-z0-9-]+)"\)')


def names():
    """Returns the names of all mistakes, in the order of their texts."""
    return list(dict.fromkeys(name for _, _, new in PLACES for name in NAME.findall(new)))


def planted(root):
    """Returns the files with all mistakes, by path. Raises LookupError when a text is missing."""
    changed = {QUESTION_IN: (root / QUESTION_IN).read_text() + QUESTION}
    for path, old, new in PLACES:
        if not (root / path).is_file():
            raise LookupError(f"{path} does not exist; it should contain: {old.strip().splitlines()[0]}")
        text = changed.get(path) or (root / path).read_text()
        if text.count(old) != 1:
            raise LookupError(f"{path} contains {text.count(old)} times instead of once: {old.strip().splitlines()[0]}")
        crate = "crate" if path.startswith("src/core/") else "leveret_core"
        changed[path] = text.replace(old, NAME.sub(rf'{crate}::makes_mistake("\1")', new))
    return changed
