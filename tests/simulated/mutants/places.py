"""The mistakes: what each puts in the place of what, and under which name. A text has to be in its file exactly once.

All of them are in one program; `PLANTED("name")` stands for the question whether that one is asked for. Each is as
small as a slip of the hand would be. One that the simulator does not find is a reason to make the simulator search
better, never to make the mistake grosser.
"""

import re

PLACES = [
    # The commit that says that a segment has left opens its file anew: a power cut in between leaves neither.
    (
        "src/storage/commit_builder.rs",
        "        let job = self.build(&mut in_flight, now)?;\n",
        "        if PLANTED(\"file-reused-in-the-commit-that-frees-it\") {\n"
        "            for sequence in &in_flight.drained {\n"
        "                let slot = self.index.segments()[sequence].slot;\n"
        "                self.space.slots.set(slot, Slot::Free);\n"
        "            }\n"
        "        }\n"
        "        let job = self.build(&mut in_flight, now)?;\n",
    ),
    # A commit that may be in the page cache only says that a segment has left, and a start takes its word.
    (
        "src/storage/recovery.rs",
        "        let last = left.split_off(before_last);\n",
        "        let is_believed = PLANTED(\"left-in-the-unsynced-last-commit-believed\");\n"
        "        let last = left.split_off(if is_believed { left.len().max(before_last) } else { before_last });\n",
    ),
    # What is settled in a queue does not fit into one commit, and the second half is forgotten.
    (
        "src/storage/compaction.rs",
        "                drain.half = Some((from, since));\n",
        "                if PLANTED(\"second-half-of-carried-settlements-dropped\") {\n"
        "                    in_flight.rewritten.push((queue, since));\n"
        "                    return true;\n"
        "                }\n"
        "                drain.half = Some((from, since));\n",
    ),
    # Both halves are written, but the first counts as lying where the second does.
    (
        "src/storage/compaction.rs",
        "        let (mut from, since) = drain.half.take().unwrap_or((0, self.space.active.sequence()));\n",
        "        let (mut from, since) = drain.half.take().unwrap_or((0, self.space.active.sequence()));\n"
        "        let is_moved = PLANTED(\"first-half-of-carried-settlements-dropped\");\n"
        "        let since = if is_moved { self.space.active.sequence() } else { since };\n",
    ),
    (
        "src/broker/queue/logged.rs",
        "        self.watermark_asked = (offset + step).max(self.watermark_before + 1);\n",
        "        let step = if PLANTED(\"marks-a-million-ahead\") { 1_048_576 } else { step };\n"
        "        self.watermark_asked = (offset + step).max(self.watermark_before + 1);\n",
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
    # A dead letter goes to a consumer while its move is still gathering.
    (
        "src/broker/queues/head.rs",
        "                if cx.messages.flags(message).has(MessageFlags::MOVING) {\n",
        "                let is_ignored = PLANTED(\"moved-message-given-before-its-commit\");\n"
        "                if cx.messages.flags(message).has(MessageFlags::MOVING) && !is_ignored {\n",
    ),
    # The upstream hears the place of a message that a power cut may take, and then of another at that place.
    (
        "src/broker/queues/head.rs",
        "                    let is_forwarded = self.records[queue].is_forwarded;\n",
        "                    let is_forwarded = self.records[queue].is_forwarded && !PLANTED(\"named-before-its-mark\");\n",
    ),
    # Confirmed when its commit is handed out, not when it is synced.
    (
        "src/storage/commit_writer.rs",
        "            self.is_writing = true;\n            return Some(Write::Commit(job));\n",
        "            self.is_writing = true;\n"
        "            if PLANTED(\"batch-confirmed-early\") {\n"
        "                journal.stored(messages, self.covers);\n"
        "            }\n"
        "            return Some(Write::Commit(job));\n",
    ),
    # What a transaction settles goes before what it publishes, perhaps into the commit before.
    (
        "src/storage/group.rs",
        "        while let Some(front) = journal.front(messages, &mut self.draft.places) {\n"
        "            if front.number >= group.end {\n",
        "        if PLANTED(\"settlements-before-their-transaction\") {\n"
        "            self.write_group_settles(journal, now);\n"
        "        }\n"
        "        while let Some(front) = journal.front(messages, &mut self.draft.places) {\n"
        "            if front.number >= group.end {\n",
    ),
    (
        "src/storage/group.rs",
        "            self.groups.large = Some(LargeGroup {\n",
        "            if PLANTED(\"settlements-before-their-transaction\") {\n"
        "                return self.write_members(journal, messages, group, now);\n"
        "            }\n"
        "            self.groups.large = Some(LargeGroup {\n",
    ),
    # The session tells a confirm before the disk has its message.
    (
        "src/connection/output.rs",
        "                if run.order > gone || run.batch > context.durable || number == content_on {\n",
        "                let is_early = PLANTED(\"confirm-before-its-commit\");\n"
        "                if run.order > gone || run.batch > context.durable && !is_early || number == content_on {\n",
    ),
    (
        "src/connection/replies.rs",
        "            Some(run) if run.batch <= context.durable => Listed::ToConfirm,\n",
        "            Some(run) if run.batch <= context.durable || PLANTED(\"confirm-before-its-commit\") => {\n"
        "                Listed::ToConfirm\n"
        "            }\n",
    ),
    # Neighbouring confirms are told by the number before the last one's.
    (
        "src/connection/channel.rs",
        "        let (delivery_tag, multiple) = (self.upto, self.upto - told_before > 1);\n",
        "        let (delivery_tag, multiple) = (self.upto, self.upto - told_before > 1);\n"
        "        let is_off = multiple && PLANTED(\"confirm-number-off-by-one\");\n"
        "        let delivery_tag = delivery_tag - u64::from(is_off);\n",
    ),
    # A queue to which a message went back is not looked at for its consumers.
    (
        "src/broker/queues/head.rs",
        "        self.gets.note_change();\n        self.records.wake(queue);\n",
        "        self.gets.note_change();\n"
        "        if !PLANTED(\"wake-up-of-a-queue-forgotten\") {\n"
        "            self.records.wake(queue);\n"
        "        }\n",
    ),
    # Those who wait for room are not asked again when the disk has room.
    (
        "src/server/receive.rs",
        "        self.broker.room_made() + self.journal.room_made() + self.supplies.messages.room_made()\n",
        "        let counts = !PLANTED(\"wake-up-of-publishers-forgotten\");\n"
        "        let of_journal = if counts { self.journal.room_made() } else { 0 };\n"
        "        self.broker.room_made() + of_journal + self.supplies.messages.room_made()\n",
    ),
    # Whoever has no room for an unfinished record of TLS, or frame, is not read when there is room again.
    (
        "src/server/receive.rs",
        "            if is_starved {\n",
        "            if is_starved && !PLANTED(\"wake-up-of-starved-streams-forgotten\") {\n",
    ),
    # What a virtual host and a user hold of all consumers is never given back.
    (
        "src/broker/consumers/lives.rs",
        "        quota.give_back(self.connection_of(channel), Pool::Consumers);\n",
        "        if !PLANTED(\"share-not-given-back\") {\n"
        "            quota.give_back(self.connection_of(channel), Pool::Consumers);\n"
        "        }\n",
    ),
    # Of a message of a transaction that is acknowledged before its commit only the settlement is forgotten.
    (
        "src/core/journal/mod.rs",
        "        if self.groups.is_open() {\n"
        "            let settled = Settled { queue: target.queue, start: target.offset, end: target.offset + 1 };\n",
        "        if self.groups.is_open() && !PLANTED(\"settlement-ahead-of-its-message\") {\n"
        "            let settled = Settled { queue: target.queue, start: target.offset, end: target.offset + 1 };\n",
    ),
    # A transaction that a cut ended has no room on a full disk, and what is there of it stays.
    (
        "src/storage/group.rs",
        "            self.undo_group(disk, found, now)?;\n",
        "            if !PLANTED(\"half-a-transaction-left-on-a-full-disk\") {\n"
        "                self.undo_group(disk, found, now)?;\n"
        "            }\n",
    ),
    # That a large transaction has ended is said before all of it is written.
    (
        "src/storage/group.rs",
        "        self.append_group(journal, messages, group, now) && self.write_members(journal, messages, group, now)\n",
        "        self.append_group(journal, messages, group, now)\n"
        "            && (!PLANTED(\"end-of-a-transaction-before-its-messages\") || self.write_group_end(now))\n"
        "            && self.write_members(journal, messages, group, now)\n",
    ),
    (
        "src/storage/recovery.rs",
        "        if header == HeaderRead::Empty && length > 0 && has_more(disk, slot)? {\n",
        "        let is_taken = PLANTED(\"empty-header-taken-for-a-free-segment\");\n"
        "        if header == HeaderRead::Empty && length > 0 && !is_taken && has_more(disk, slot)? {\n",
    ),
    # A bridge settles what it has sent, and not what its upstream has confirmed.
    (
        "src/server/bridges/forward.rs",
        "        broker.sent(&mut context, own, done);\n",
        "        broker.sent(&mut context, own, done);\n"
        "        if PLANTED(\"settled-before-the-upstream-confirms\")\n"
        "            && let Lane::Forward(lane) = &self.contact.lanes[rule]\n"
        "        {\n"
        "            let (own, settlement) = (lane.own, Settlement::Ack);\n"
        "            let all = Command::Settle { delivery_tag: 0, multiple: true, settlement };\n"
        "            let _ = self.shared.demand(own, all);\n"
        "        }\n",
    ),
    (
        "src/server/bridges/forward.rs",
        "                    self.shared.settle(own, flight.tag, Settlement::Ack)?;\n",
        "                    if !PLANTED(\"settled-before-the-upstream-confirms\") {\n"
        "                        self.shared.settle(own, flight.tag, Settlement::Ack)?;\n"
        "                    }\n",
    ),
    # What is fetched is acknowledged there before the disk has it.
    (
        "src/bridge/in_flight.rs",
        "            if arrival.batch > durable {\n",
        "            if arrival.batch > durable && !PLANTED(\"acknowledged-before-it-is-durable\") {\n",
    ),
    # Every failure is taken for the first one.
    (
        "src/bridge/pacing.rs",
        "        if since.is_some_and(|since| now.ms_since(since) >= STABLE_MS) {\n",
        "        if since.is_some_and(|since| now.ms_since(since) >= STABLE_MS) || PLANTED(\"back-off-reset-at-once\") {\n",
    ),
]

# Planted, and not known to be found by 2,000 seeds. A run that does not find one of them says so.
NOT_FOUND_YET: set = set()

# What takes more messages than a broker's run has: the log's own simulator (`tests/parts/store/sim.rs`) searches for
# them.
LOG_ALONE = {"second-half-of-carried-settlements-dropped"}

# 2,000 seeds of neither simulator find them yet; a test of `tests/parts/store` does, the first one by a cut at every
# call.
BY_A_TEST = {
    "settlement-ahead-of-its-message": "group::what_no_commit_holds",
    "first-half-of-carried-settlements-dropped": "carried::what_is_settled_in_more_ranges",
    "half-a-transaction-left-on-a-full-disk": "group::on_a_disk_that_is_full",
}

# What costs nothing as long as another mechanism is there, and two faults at one moment otherwise: a test of
# `tests/parts/store` that makes both.
DIRECT = {
    # A start uses no file before it has sealed the segment that was being filled, and that syncs what says that one has
    # left. Only a segment whose header is damaged just then is not sealed.
    "left-in-the-unsynced-last-commit-believed": "carried::that_a_segment_has_left_is_not_believed",
    # The note beside the log has the header too, and the header of the next segment names the file.
    "empty-header-taken-for-a-free-segment": "defined::no_block_of_a_store_at_rest",
}

# Mistakes of a bridge: runs of their own in the simulator have one.
BRIDGED = {
    "named-before-its-mark": "bridged::what_is_confirmed",
    "settled-before-the-upstream-confirms": "bridged::what_is_confirmed",
    "acknowledged-before-it-is-durable": "bridged::what_is_acknowledged",
    "back-off-reset-at-once": "bridged::ten_days_without_an_upstream_fill",
}

# Which mistake a process makes follows from its environment.
QUESTION = '''
/// Whether this process is to make a mistake.
#[doc(hidden)]
pub fn makes_mistake(name: &str) -> bool {
    static ASKED_FOR: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    ASKED_FOR.get_or_init(|| std::env::var("LEVERET_MISTAKE").unwrap_or_default()) == name
}
'''
# In the package that all others with places use.
QUESTION_IN = "src/core/lib.rs"

NAME = re.compile(r'PLANTED\("([a-z0-9-]+)"\)')


def names():
    """All mistakes, in the order of their places."""
    return list(dict.fromkeys(name for _, _, new in PLACES for name in NAME.findall(new)))


def planted(root):
    """The files with all mistakes in them, by their paths; raises LookupError when a place is gone."""
    changed = {QUESTION_IN: (root / QUESTION_IN).read_text() + QUESTION}
    for path, old, new in PLACES:
        if not (root / path).is_file():
            raise LookupError(f"there is no {path}, which was to have: {old.strip().splitlines()[0]}")
        text = changed.get(path) or (root / path).read_text()
        if text.count(old) != 1:
            raise LookupError(f"{path} has {text.count(old)} times, not once: {old.strip().splitlines()[0]}")
        crate = "crate" if path.startswith("src/core/") else "leveret_core"
        changed[path] = text.replace(old, NAME.sub(rf'{crate}::makes_mistake("\1")', new))
    return changed
