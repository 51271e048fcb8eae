//! What can still be read where a commit is damaged.
//!
//! A commit is damaged when its checksum does not hold; each of its records has a checksum of its own. Two
//! ways lead to them: the footer of the segment has the place of every record, and without one, commits
//! begin right behind each other and records too.
//!
//! Always true: no place is guessed. Bodies are what strangers sent and may look like records or commits, so
//! a search through the bytes for what looks right would find what they want found. A record behind one
//! that is damaged is taken only when from there on everything fits: each checksum, the number of records
//! that the commit had, and its end.

use std::collections::BTreeMap;
use std::ops::Range;

use super::event::{Event, FoundFooter, Salvaged, Trust, Walk};
use crate::chain::Chain;
use crate::commit::{BLOCK_BYTES, COMMIT_HEADER_BYTES, Claim, CommitHeader, padded};
use crate::parts::Entry;
use crate::place::Place;
use crate::record::{Record, Target};
use crate::salvage::{self, walk_records};

/// Of the four things that a commit's header says about its place, so many must be right.
const SIGNS_MIN: usize = 3;

/// Whether a header that is not proven may be that of the next commit: one damaged field is forgiven.
pub(super) fn is_likely(claim: &Claim, segment: u64, chain: &Chain, next: Option<&CommitHeader>) -> bool {
    let header = &claim.header;
    let is_in_number = match (chain.number, next) {
        (0, Some(next)) => header.number < next.number && header.number > 0,
        (0, None) => header.number > 0,
        (last, _) => header.number == last + 1,
    };
    // One start may have come in between.
    let life_max = next.map_or(chain.life.saturating_add(1), |next| next.life);
    let is_in_life = header.life >= chain.life.max(1) && (header.life <= life_max || chain.life == 0);
    let signs = [claim.has_magic, header.segment == segment, is_in_number, is_in_life];
    signs.into_iter().filter(|sign| *sign).count() >= SIGNS_MIN
}

/// Records of the commits in `range`, beginning with the one right at its start. They are served up to the
/// commit numbered `proven`; of those behind it at the end of the log only the first is looked at.
pub(super) fn by_chain<'a>(
    walk: &Walk<'a>,
    range: Range<usize>,
    chain: &Chain,
    next: Option<&CommitHeader>,
    proven: u64,
    each: &mut dyn FnMut(Event<'_>),
) -> Salvaged {
    let (mut at, mut chain) = (range.start, *chain);
    let (mut read, mut lost, mut unknown, mut commits) = (0, Some(0), 0, 0);
    while at < range.end {
        let Some(bytes) = walk.bytes.get(at..range.end) else { break };
        let claim = Claim::read(bytes).filter(|claim| is_likely(claim, walk.sequence, &chain, next));
        let Some(claim) = claim else {
            lost = None;
            break;
        };
        let is_length_likely = claim.length >= COMMIT_HEADER_BYTES && claim.length <= bytes.len();
        let end = if is_length_likely { claim.length } else { bytes.len() };
        let records = bytes.get(COMMIT_HEADER_BYTES..end).unwrap_or_default();
        let found = walk_records(records, claim.header.records);
        let is_proven = chain.number < proven;
        let is_tail = walk.is_newest && next.is_none() && !is_proven;
        let is_served = walk.seed.is_some_and(|seed| salvage::is_served(&claim, seed, walk.sequence));
        // What a start does not serve is shown, and counts as lost.
        let trust = if is_served && is_proven { Trust::Salvaged } else { Trust::Tail };
        for &(from, length) in &found.whole {
            if let Ok((record, _)) = Record::parse(&records[from..]) {
                let place = walk.place((at + COMMIT_HEADER_BYTES + from) as u32, length);
                each(Event::Record { place, record: &record, commit: Some(&claim.header), trust });
            }
        }
        read += found.whole.len() as u64;
        commits += 1;
        lost =
            lost.map(|lost| lost + u64::from(claim.header.records).saturating_sub(found.whole.len() as u64));
        if !is_served {
            unknown += found.whole.len() as u64;
        }
        if !is_length_likely || is_tail {
            // Nobody knows what lay behind it.
            lost = lost.filter(|_| is_length_likely || range.end - at <= BLOCK_BYTES);
            break;
        }
        at += padded(end);
        chain = Chain { segment: walk.sequence, number: chain.number + 1, ..chain };
    }
    Salvaged { read, lost, unknown: unknown + lost.unwrap_or(0), commits }
}

/// Records of the commits in `range`, which a footer has the places of.
pub(super) fn by_footer(
    walk: &Walk<'_>,
    range: Range<u32>,
    found: &FoundFooter<'_>,
    each: &mut dyn FnMut(Event<'_>),
) -> Salvaged {
    let (mut read, mut lost) = (0, 0);
    // Its own checksum holds, so its facts make sense, or this version would not have written them.
    let _ = found.for_each_fact(walk.sequence, |fact, place| {
        if !range.contains(&place.at) {
            return;
        }
        let record = record_at(walk, place).filter(|record| is_of(record, fact));
        let told = record.as_ref().or_else(|| is_complete(fact).then_some(fact));
        if let Some(record) = told {
            read += 1;
            each(Event::Record { place, record, commit: None, trust: Trust::Salvaged });
        } else {
            lost += 1;
        }
    });
    // A message is told once for each of its queues.
    let mut messages: BTreeMap<(u32, u32), Vec<Target>> = BTreeMap::new();
    let all = found.messages(|entry| {
        if range.contains(&entry.at) {
            messages.entry((entry.at, entry.bytes)).or_default().push(target_of(entry));
        }
    });
    for ((at, bytes), targets) in messages {
        let place = walk.place(at, bytes as usize);
        let record = record_at(walk, place).filter(|record| has_targets(record, &targets));
        if let Some(record) = &record {
            read += 1;
            each(Event::Record { place, record, commit: None, trust: Trust::Salvaged });
        } else {
            lost += 1;
            each(Event::Lost(&targets));
        }
    }
    Salvaged { read, lost: all.map(|()| lost), unknown: 0, commits: 0 }
}

/// Whether all that a footer tells lies before byte `tail` and is there.
pub(super) fn agrees(walk: &Walk<'_>, tail: usize, found: &FoundFooter<'_>) -> bool {
    let mut agrees = true;
    let is_told = compare(walk, found, |place, is_there| {
        agrees &= is_there && place.at as usize + place.bytes as usize <= tail;
    });
    agrees && is_told.is_some()
}

/// Where something else lies than a footer tells.
pub(super) fn overwritten(walk: &Walk<'_>, found: &FoundFooter<'_>) -> Vec<Range<u32>> {
    let mut others = Vec::new();
    // What of the footer is damaged tells of no place.
    let _ = compare(walk, found, |place, is_there| {
        if !is_there {
            others.push(place.at..place.at.saturating_add(place.bytes));
        }
    });
    others
}

/// Calls `each` with every place that a footer tells, and whether what it tells of is there; `None` when
/// something of the footer is damaged.
fn compare(walk: &Walk<'_>, found: &FoundFooter<'_>, mut each: impl FnMut(Place, bool)) -> Option<()> {
    let facts = found.for_each_fact(walk.sequence, |fact, place| {
        each(place, record_at(walk, place).is_some_and(|record| is_of(&record, fact)));
    });
    let messages = found.messages(|entry| {
        let place = walk.place(entry.at, entry.bytes as usize);
        let record = record_at(walk, place);
        each(place, record.is_some_and(|record| has_targets(&record, &[target_of(entry)])));
    });
    facts.and(messages)
}

/// The whole record at a place that a footer tells.
fn record_at<'a>(walk: &Walk<'a>, place: Place) -> Option<Record<'a>> {
    let from = place.at as usize;
    let (record, _) = Record::parse(walk.bytes.get(from..from.checked_add(place.bytes as usize)?)?).ok()?;
    Some(record)
}

const fn target_of(entry: &Entry) -> Target {
    Target { queue: entry.queue, offset: entry.offset, lane: entry.lane }
}

fn has_targets(record: &Record<'_>, targets: &[Target]) -> bool {
    let Record::Message(message) = record else { return false };
    targets.iter().all(|target| message.targets.iter().any(|other| other == *target))
}

/// Whether a footer tells all that the record says.
const fn is_complete(fact: &Record<'_>) -> bool {
    !matches!(fact, Record::Message(_) | Record::Chunk { .. } | Record::Defined { value: Some(_), .. })
}

/// Whether `record` is the one that the footer speaks of.
fn is_of(record: &Record<'_>, fact: &Record<'_>) -> bool {
    match (record, fact) {
        (Record::Chunk { body, index, .. }, Record::Chunk { body: b, index: i, .. }) => {
            (body, index) == (b, i)
        }
        (Record::Defined { version, key, .. }, Record::Defined { version: v, key: k, .. }) => {
            (version, key) == (v, k)
        }
        (record, fact) => record == fact,
    }
}

/// The sequence of the segment that the first commit at byte `from` claims to be of, if that is newer than
/// all that are known.
pub(super) fn newer_at(bytes: &[u8], from: usize, newest: &Chain) -> Option<u64> {
    let claim = Claim::read(bytes.get(from..)?).filter(|claim| claim.has_magic)?;
    let is_newer = claim.header.segment > newest.segment && claim.header.number > newest.number;
    is_newer.then_some(claim.header.segment)
}
