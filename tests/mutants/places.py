"""The mistakes: what each replaces, and with what. A text has to be in its file exactly once.

Each is as small as a slip of the hand would be. One that the simulator does not find is a reason to make the
simulator search better, never to make the mistake grosser.
"""

BUILD = "src/store/build.rs"
CLEAN = "src/store/clean.rs"
KEEPER = "src/store/keeper.rs"
GROUP = "src/store/group.rs"
READER = "src/store/reader.rs"
BELONGING = "src/store/belonging.rs"
LANES = "src/broker/lanes.rs"

MISTAKES = {
    # The commit that says that a segment has left opens its file anew: a power cut in between leaves neither.
    "file-reused-in-the-commit-that-frees-it": [(
        BUILD,
        "        let job = self.build(&mut in_flight, now)?;\n",
        "        for sequence in &in_flight.drained {\n"
        "            let slot = self.index.segments()[sequence].slot;\n"
        "            self.slots.set(slot, Slot::Free);\n"
        "        }\n"
        "        let job = self.build(&mut in_flight, now)?;\n",
    )],
    # A commit that may be in the page cache only says that a segment has left, and a start takes its word.
    "left-in-the-unsynced-last-commit-believed": [(
        BELONGING,
        "        let last = left.split_off(before_last);\n",
        "        let last = left.split_off(left.len().max(before_last));\n",
    )],
    # What is settled in a queue does not fit into one commit, and the second half is forgotten.
    "second-half-of-carried-settlements-dropped": [(
        CLEAN,
        "            drain.half = Some((part.last().map_or(from, |range| range.end), since));\n"
        "            return false;\n",
        "            in_flight.carried.push((queue, since));\n"
        "            return true;\n",
    )],
    # Both halves are written, but the first counts as lying where the second does.
    "first-half-of-carried-settlements-dropped": [(
        CLEAN,
        "        let (from, since) = drain.half.take().unwrap_or((0, self.active.sequence));\n",
        "        let (from, _) = drain.half.take().unwrap_or((0, 0));\n"
        "        let since = self.active.sequence;\n",
    )],
    "marks-a-million-ahead": [(LANES, "const WATERMARK_STEP: u64 = 256;", "const WATERMARK_STEP: u64 = 1_048_576;")],
    "definitions-not-copied": [(
        CLEAN,
        "        if live == 0 {\n",
        "        if live == 0 || matches!(record, Record::Defined { .. }) {\n",
    )],
    "chunks-not-copied": [(
        CLEAN,
        "        if live == 0 {\n",
        "        if live == 0 || matches!(record, Record::Chunk { .. }) {\n",
    )],
    "further-targets-not-copied": [(
        CLEAN,
        "                cleaning.targets.extend(live);\n",
        "                cleaning.targets.extend(live.take(1));\n",
    )],
    # Confirmed when its commit is handed out, not when it is synced.
    "batch-confirmed-early": [(
        KEEPER,
        "            self.is_writing = true;\n            return Some(Write::Commit(job));\n",
        "            self.is_writing = true;\n            journal.stored(messages, self.covers);\n"
        "            return Some(Write::Commit(job));\n",
    )],
    # What a transaction settles goes before what it publishes, perhaps into the commit before.
    "settlements-before-their-transaction": [(
        GROUP,
        "        while let Some(front) = journal.front(messages, &mut self.draft.places) {\n"
        "            if front.number >= group.end {\n",
        "        self.write_group_settles(journal, now);\n"
        "        while let Some(front) = journal.front(messages, &mut self.draft.places) {\n"
        "            if front.number >= group.end {\n",
    ), (
        GROUP,
        "            self.groups.large = Some(Large {\n",
        "            return self.write_members(journal, messages, group, now);\n"
        "            self.groups.large = Some(Large {\n",
    )],
    "empty-header-taken-for-a-free-segment": [(
        READER,
        "        if header == HeaderRead::Empty && length > 0 && has_more(disk, slot)? {\n",
        "        if header == HeaderRead::Empty && length > 0 && false {\n",
    )],
}

# Planted, and not found by 2,000 seeds so far: what they break is not known to be searched for. A run says so of each.
# Tests of `tests/store/carried.rs` find all of them.
NOT_FOUND_YET = {
    "left-in-the-unsynced-last-commit-believed",
    "second-half-of-carried-settlements-dropped",
    "first-half-of-carried-settlements-dropped",
}
