"""The mistakes: what each puts in the place of what, and under which name. A text has to be in its file exactly once.

All of them are in one program; `PLANTED("name")` stands for the question whether that one is asked for. Each is as
small as a slip of the hand would be. One that the simulator does not find is a reason to make the simulator search
better, never to make the mistake grosser.
"""

import re

PLACES = [
    # The commit that says that a segment has left opens its file anew: a power cut in between leaves neither.
    (
        "src/store/build.rs",
        "        let job = self.build(&mut in_flight, now)?;\n",
        "        if PLANTED(\"file-reused-in-the-commit-that-frees-it\") {\n"
        "            for sequence in &in_flight.drained {\n"
        "                let slot = self.index.segments()[sequence].slot;\n"
        "                self.slots.set(slot, Slot::Free);\n"
        "            }\n"
        "        }\n"
        "        let job = self.build(&mut in_flight, now)?;\n",
    ),
    # A commit that may be in the page cache only says that a segment has left, and a start takes its word.
    (
        "src/store/belonging.rs",
        "        let last = left.split_off(before_last);\n",
        "        let is_believed = PLANTED(\"left-in-the-unsynced-last-commit-believed\");\n"
        "        let last = left.split_off(if is_believed { left.len().max(before_last) } else { before_last });\n",
    ),
    # What is settled in a queue does not fit into one commit, and the second half is forgotten.
    (
        "src/store/clean.rs",
        "            drain.half = Some((part.last().map_or(from, |range| range.end), since));\n",
        "            if PLANTED(\"second-half-of-carried-settlements-dropped\") {\n"
        "                in_flight.carried.push((queue, since));\n"
        "                return true;\n"
        "            }\n"
        "            drain.half = Some((part.last().map_or(from, |range| range.end), since));\n",
    ),
    # Both halves are written, but the first counts as lying where the second does.
    (
        "src/store/clean.rs",
        "        let (from, since) = drain.half.take().unwrap_or((0, self.active.sequence));\n",
        "        let (from, since) = drain.half.take().unwrap_or((0, self.active.sequence));\n"
        "        let is_moved = PLANTED(\"first-half-of-carried-settlements-dropped\");\n"
        "        let since = if is_moved { self.active.sequence } else { since };\n",
    ),
    (
        "src/broker/lanes.rs",
        "        self.watermark_asked = (offset + WATERMARK_STEP).max(self.watermark_before + 1);\n",
        "        let step = if PLANTED(\"marks-a-million-ahead\") { 1_048_576 } else { WATERMARK_STEP };\n"
        "        self.watermark_asked = (offset + step).max(self.watermark_before + 1);\n",
    ),
    (
        "src/store/clean.rs",
        "        if live == 0 {\n",
        "        if live == 0\n"
        "            || matches!(record, Record::Defined { .. }) && PLANTED(\"definitions-not-copied\")\n"
        "            || matches!(record, Record::Chunk { .. }) && PLANTED(\"chunks-not-copied\")\n"
        "        {\n",
    ),
    (
        "src/store/clean.rs",
        "                cleaning.targets.extend(live);\n",
        "                let count = if PLANTED(\"further-targets-not-copied\") { 1 } else { usize::MAX };\n"
        "                cleaning.targets.extend(live.take(count));\n",
    ),
    # Confirmed when its commit is handed out, not when it is synced.
    (
        "src/store/keeper.rs",
        "            self.is_writing = true;\n            return Some(Write::Commit(job));\n",
        "            self.is_writing = true;\n"
        "            if PLANTED(\"batch-confirmed-early\") {\n"
        "                journal.stored(messages, self.covers);\n"
        "            }\n"
        "            return Some(Write::Commit(job));\n",
    ),
    # What a transaction settles goes before what it publishes, perhaps into the commit before.
    (
        "src/store/group.rs",
        "        while let Some(front) = journal.front(messages, &mut self.draft.places) {\n"
        "            if front.number >= group.end {\n",
        "        if PLANTED(\"settlements-before-their-transaction\") {\n"
        "            self.write_group_settles(journal, now);\n"
        "        }\n"
        "        while let Some(front) = journal.front(messages, &mut self.draft.places) {\n"
        "            if front.number >= group.end {\n",
    ),
    (
        "src/store/group.rs",
        "            self.groups.large = Some(Large {\n",
        "            if PLANTED(\"settlements-before-their-transaction\") {\n"
        "                return self.write_members(journal, messages, group, now);\n"
        "            }\n"
        "            self.groups.large = Some(Large {\n",
    ),
    # The session tells a confirm before the disk has its message.
    (
        "src/session/output.rs",
        "                if run.order > gone || run.batch > context.durable || number == content_on {\n",
        "                let is_early = PLANTED(\"confirm-before-its-commit\");\n"
        "                if run.order > gone || run.batch > context.durable && !is_early || number == content_on {\n",
    ),
    (
        "src/session/replies.rs",
        "            Some(run) if run.batch <= context.durable => Listed::ToConfirm,\n",
        "            Some(run) if run.batch <= context.durable || PLANTED(\"confirm-before-its-commit\") => {\n"
        "                Listed::ToConfirm\n"
        "            }\n",
    ),
    # Neighbouring confirms are told by the number before the last one's.
    (
        "src/session/confirms.rs",
        "        let (delivery_tag, multiple) = (self.upto, self.upto - told_before > 1);\n",
        "        let (delivery_tag, multiple) = (self.upto, self.upto - told_before > 1);\n"
        "        let is_off = multiple && PLANTED(\"confirm-number-off-by-one\");\n"
        "        let delivery_tag = delivery_tag - u64::from(is_off);\n",
    ),
    # A queue to which a message went back is not looked at for its consumers.
    (
        "src/broker/page_in.rs",
        "        self.getting.note_change();\n        self.wake(queue);\n",
        "        self.getting.note_change();\n"
        "        if !PLANTED(\"wake-up-of-a-queue-forgotten\") {\n"
        "            self.wake(queue);\n"
        "        }\n",
    ),
    # Those who wait for room are not asked again when the disk has room.
    (
        "src/engine/receive.rs",
        "        self.broker.room_made() + self.journal.room_made() + self.supplies.messages.room_made()\n",
        "        let counts = !PLANTED(\"wake-up-of-publishers-forgotten\");\n"
        "        let of_journal = if counts { self.journal.room_made() } else { 0 };\n"
        "        self.broker.room_made() + of_journal + self.supplies.messages.room_made()\n",
    ),
    # Whoever has no room for an unfinished record of TLS, or frame, is not read when there is room again.
    (
        "src/engine/receive.rs",
        "            if is_starved {\n",
        "            if is_starved && !PLANTED(\"wake-up-of-starved-streams-forgotten\") {\n",
    ),
    # What a virtual host and a user hold of all consumers is never given back.
    (
        "src/broker/consume.rs",
        "        self.count_for(self.holder(connection), |held| held.consumers -= 1);\n",
        "        if !PLANTED(\"share-not-given-back\") {\n"
        "            self.count_for(self.holder(connection), |held| held.consumers -= 1);\n"
        "        }\n",
    ),
    # Of a message of a transaction that is acknowledged before its commit only the settlement is forgotten.
    (
        "src/journal/settle.rs",
        "        if self.groups.is_open() {\n"
        "            let settled = Settled { queue: target.queue, start: target.offset, end: target.offset + 1 };\n",
        "        if self.groups.is_open() && !PLANTED(\"settlement-ahead-of-its-message\") {\n"
        "            let settled = Settled { queue: target.queue, start: target.offset, end: target.offset + 1 };\n",
    ),
    (
        "src/store/reader.rs",
        "        if header == HeaderRead::Empty && length > 0 && has_more(disk, slot)? {\n",
        "        let is_taken = PLANTED(\"empty-header-taken-for-a-free-segment\");\n"
        "        if header == HeaderRead::Empty && length > 0 && !is_taken && has_more(disk, slot)? {\n",
    ),
]

# Planted, and not known to be found by 2,000 seeds. A run that does not find one of them says so.
NOT_FOUND_YET = {
    "left-in-the-unsynced-last-commit-believed",
    "second-half-of-carried-settlements-dropped",
    "first-half-of-carried-settlements-dropped",
    "settlement-ahead-of-its-message",
    "empty-header-taken-for-a-free-segment",
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
QUESTION_IN = "src/lib.rs"

NAME = re.compile(r'PLANTED\("([a-z0-9-]+)"\)')


def names():
    """All mistakes, in the order of their places."""
    return list(dict.fromkeys(name for _, _, new in PLACES for name in NAME.findall(new)))


def planted(root):
    """The files with all mistakes in them, by their paths; raises LookupError when a place is gone."""
    changed = {QUESTION_IN: (root / QUESTION_IN).read_text() + QUESTION}
    for path, old, new in PLACES:
        text = changed.get(path) or (root / path).read_text()
        if text.count(old) != 1:
            raise LookupError(f"{path} has {text.count(old)} times, not once: {old.strip().splitlines()[0]}")
        changed[path] = text.replace(old, NAME.sub(r'crate::makes_mistake("\1")', new))
    return changed
