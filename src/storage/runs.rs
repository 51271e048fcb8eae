//! The runs of one queue, compressed: a thousand queues in thousands of segments have millions of runs.
//!
//! ```text
//! chunk | first offset | end | runs | bytes | run | run | ...
//!
//! run   | flags | [1: offsets skipped before it] | [length] | [4: difference of segments, signed]
//!       | [8: offsets that are settled] | [16: difference to the estimated bytes, signed] |
//!
//! flags | length minus the previous run's length, plus 3; 7: the length follows | bits as above, and 2: next segment |
//! ```
//!
//! Numbers are varints relative to the previous run. For the first run of a chunk, the previous run is taken to be an
//! empty run in segment 0 that ends at the chunk's first offset. A queue with steady traffic takes one or two bytes
//! per segment. The run changed last is kept uncompressed. Most messages arrive in order and extend that run, so they
//! cause no compression.
//!
//! # Invariants
//! - Runs are ascending and do not overlap. No chunk is empty. The uncompressed run is in no chunk.
//! - A change affects one chunk, or two if a chunk is split or merged with the next.
//! - One unused chunk is kept for reuse, so a queue with steady traffic allocates nothing. Its memory is freed when
//!   the queue is empty and a segment is removed, or when memory is short.

use super::record::Range;
use super::varint::{self, Input};

/// Maximum bytes of the encoded runs in a chunk.
const CHUNK_RUNS_BYTES: usize = 236;
/// Maximum number of runs decompressed at once: the runs of a chunk, and the runs added by a change.
const UNPACKED_MAX: usize = CHUNK_RUNS_BYTES + 4;
/// Maximum bytes of a run: five numbers and the flags.
const RUN_BYTES_MAX: usize = 51;
/// Two neighbouring chunks are merged if their runs together take at most this number of bytes.
const MERGED_BYTES_MAX: usize = CHUNK_RUNS_BYTES / 2;

/// The list of chunks keeps memory for at least this number of chunks.
const CHUNKS_KEPT: usize = 4;

const HAS_GAP: u8 = 1;
const IS_NEXT_SEGMENT: u8 = 2;
const HAS_SEGMENT: u8 = 4;
const HAS_SETTLED: u8 = 8;
const HAS_BYTES: u8 = 16;
const LENGTH_SHIFT: u8 = 5;
/// Code in the flags which means that the length follows, because the flags cannot express it.
const LENGTH_FOLLOWS: u8 = 7;
/// Added to the difference of lengths, so that it is not negative.
const LENGTH_BIAS: i64 = 3;

/// A range of offsets whose live messages lie in one segment. Offsets without a live message are settled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// The offsets.
    pub offsets: Range,
    /// The segment.
    pub segment: u64,
    /// Number of live messages.
    pub live: u32,
    /// Bytes of the live messages' records. The bytes of a record for several queues are divided among the queues.
    /// After some messages of the run were settled, this is an estimate from the number of live messages.
    pub bytes: u32,
}

type Unpacked = heapless::Vec<Run, UNPACKED_MAX>;

#[derive(Clone, Debug)]
struct Chunk {
    first: u64,
    end: u64,
    runs: u16,
    used: u16,
    bytes: [u8; CHUNK_RUNS_BYTES],
}

/// The previous run, to which the next one is relative.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct PreviousRun {
    end: u64,
    length: u64,
    segment: u64,
    live: u32,
    bytes: u32,
}

impl PreviousRun {
    const fn start(first: u64) -> Self {
        Self { end: first, length: 0, segment: 0, live: 0, bytes: 0 }
    }

    const fn after(run: &Run) -> Self {
        let length = run.offsets.end - run.offsets.start;
        Self { end: run.offsets.end, length, segment: run.segment, live: run.live, bytes: run.bytes }
    }

    /// Estimates the bytes of `live` messages from the average of the previous run.
    fn likely_bytes(&self, live: u32) -> u32 {
        share_of(self.bytes, live, self.live)
    }
}

/// Returns the share of `count` messages if `all` messages take `bytes`, limited to `u32::MAX`.
pub(super) fn share_of(bytes: u32, count: u32, all: u32) -> u32 {
    u32::try_from(u64::from(bytes) * u64::from(count) / u64::from(all.max(1))).unwrap_or(u32::MAX)
}

/// Encodes a run relative to the previous one.
fn pack(run: &Run, before: &PreviousRun) -> heapless::Vec<u8, RUN_BYTES_MAX> {
    let mut out = heapless::Vec::new();
    let put = |out: &mut heapless::Vec<u8, RUN_BYTES_MAX>, value: u64| {
        let (bytes, length) = varint::encode(value);
        let _ = out.extend_from_slice(&bytes[..length]);
    };
    let length = run.offsets.end - run.offsets.start;
    let code = (length as i64).wrapping_sub(before.length as i64).wrapping_add(LENGTH_BIAS);
    let code = u8::try_from(code).map_or(LENGTH_FOLLOWS, |code| code.min(LENGTH_FOLLOWS));
    let mut flags = code << LENGTH_SHIFT;
    let _ = out.push(0);
    if run.offsets.start != before.end {
        flags |= HAS_GAP;
        put(&mut out, run.offsets.start - before.end);
    }
    if code == LENGTH_FOLLOWS {
        put(&mut out, length);
    }
    if run.segment == before.segment.wrapping_add(1) {
        flags |= IS_NEXT_SEGMENT;
    } else if run.segment != before.segment {
        flags |= HAS_SEGMENT;
        put(&mut out, varint::zigzag(run.segment.wrapping_sub(before.segment) as i64));
    }
    if u64::from(run.live) != length {
        flags |= HAS_SETTLED;
        put(&mut out, length - u64::from(run.live));
    }
    let likely = before.likely_bytes(run.live);
    if run.bytes != likely {
        flags |= HAS_BYTES;
        put(&mut out, varint::zigzag(i64::from(run.bytes) - i64::from(likely)));
    }
    out[0] = flags;
    out
}

/// Decodes a run and replaces `before` by it.
fn unpack(input: &mut Input<'_>, before: &mut PreviousRun) -> Option<Run> {
    let flags = input.byte()?;
    let start = before.end + if flags & HAS_GAP != 0 { input.varint()? } else { 0 };
    let length = match flags >> LENGTH_SHIFT {
        LENGTH_FOLLOWS => input.varint()?,
        code => before.length.wrapping_add(u64::from(code)).wrapping_sub(LENGTH_BIAS as u64),
    };
    let segment = match (flags & IS_NEXT_SEGMENT, flags & HAS_SEGMENT) {
        (0, 0) => before.segment,
        (0, _) => before.segment.wrapping_add(varint::unzigzag(input.varint()?) as u64),
        _ => before.segment.wrapping_add(1),
    };
    let settled = if flags & HAS_SETTLED != 0 { input.varint()? } else { 0 };
    let live = (length - settled) as u32;
    let beyond = if flags & HAS_BYTES != 0 { varint::unzigzag(input.varint()?) } else { 0 };
    let bytes = (i64::from(before.likely_bytes(live)) + beyond) as u32;
    let run = Run { offsets: Range { start, end: start + length }, segment, live, bytes };
    *before = PreviousRun::after(&run);
    Some(run)
}

impl Chunk {
    /// Creates a chunk with as many of `runs` as fit, at least one. Returns the chunk and the number of its runs.
    fn of(runs: &[Run], spare: &mut Option<Box<Self>>) -> (Box<Self>, usize) {
        let empty = || Box::new(Self { first: 0, end: 0, runs: 0, used: 0, bytes: [0; CHUNK_RUNS_BYTES] });
        let mut chunk = spare.take().unwrap_or_else(empty);
        let taken = chunk.fill(runs, CHUNK_RUNS_BYTES);
        (chunk, taken)
    }

    /// Replaces the content of the chunk by as many of `runs` as fit into `most` bytes, at least one. Returns the
    /// number of runs stored.
    fn fill(&mut self, runs: &[Run], most: usize) -> usize {
        self.first = runs.first().map_or(0, |run| run.offsets.start);
        (self.runs, self.used) = (0, 0);
        let mut before = PreviousRun::start(self.first);
        let fitting = runs.iter().take_while(|run| self.push(run, &mut before, most)).count();
        self.end = before.end;
        fitting
    }

    fn push(&mut self, run: &Run, before: &mut PreviousRun, most: usize) -> bool {
        let (packed, used) = (pack(run, before), usize::from(self.used));
        let end = used + packed.len();
        if end > most && used > 0 {
            return false;
        }
        self.bytes[used..end].copy_from_slice(&packed);
        (self.used, self.runs) = (end as u16, self.runs + 1);
        *before = PreviousRun::after(run);
        true
    }

    /// Returns the state to which a run appended to the chunk is relative.
    fn end_state(&self) -> PreviousRun {
        let mut runs = self.iter();
        runs.by_ref().for_each(drop);
        runs.before
    }

    fn iter(&self) -> ChunkRuns<'_> {
        ChunkRuns {
            input: Input::new(&self.bytes[..self.used.into()]),
            before: PreviousRun::start(self.first),
        }
    }
}

#[derive(Clone, Debug)]
struct ChunkRuns<'a> {
    input: Input<'a>,
    before: PreviousRun,
}

impl Iterator for ChunkRuns<'_> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        if self.input.is_empty() { None } else { unpack(&mut self.input, &mut self.before) }
    }
}

/// The runs of one queue.
#[derive(Clone, Debug, Default)]
pub struct Runs {
    #[expect(clippy::vec_box, reason = "chunks are put between others, and given back one by one")]
    chunks: Vec<Box<Chunk>>,
    /// The run that was changed last, uncompressed.
    uncompressed: Option<Run>,
    /// The state to which a run appended to the last chunk is relative, if known. Stored because computing it
    /// requires decompressing the whole chunk, for every new segment of a queue.
    end_state: Option<PreviousRun>,
    count: usize,
    /// A freed chunk, for reuse.
    spare: Option<Box<Chunk>>,
}

impl Runs {
    /// Returns the number of runs.
    pub const fn len(&self) -> usize {
        self.count
    }

    /// Returns whether there are no runs.
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Returns the heap bytes. The allocator adds `allocation_bytes` per allocation.
    pub(super) const fn heap_bytes(&self, allocation_bytes: usize) -> usize {
        let each = size_of::<Chunk>() + allocation_bytes;
        let chunks = self.chunks.len() + self.spare.is_some() as usize;
        chunks * each + self.chunks.capacity() * size_of::<Box<Chunk>>()
    }

    /// Frees memory that is kept for reuse.
    pub(super) fn release_memory(&mut self) {
        self.spare = None;
        self.chunks.shrink_to_fit();
    }

    /// Iterates over the runs in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = Run> + '_ {
        self.iter_from(0)
    }

    /// Iterates over the runs that end after `offset`, in ascending order.
    pub(super) fn iter_from(&self, offset: u64) -> impl Iterator<Item = Run> + '_ {
        let first = self.chunks.partition_point(|chunk| chunk.end <= offset);
        let ends_behind = move |run: &Run| run.offsets.end > offset;
        let mut packed = self.chunks[first..].iter().flat_map(|chunk| chunk.iter());
        let mut uncompressed = self.uncompressed.filter(ends_behind);
        let mut next = packed.find(ends_behind);
        core::iter::from_fn(move || match (uncompressed, next) {
            (Some(run), Some(other)) if run.offsets.start > other.offsets.start => {
                core::mem::replace(&mut next, packed.next())
            }
            (Some(_), _) => uncompressed.take(),
            (None, _) => {
                let run = next.take()?;
                next = packed.next();
                Some(run)
            }
        })
    }

    /// Returns the run that contains `offset`, which may be settled.
    pub(super) fn around(&self, offset: u64) -> Option<Run> {
        let is_around = |run: &Run| run.offsets.start <= offset && offset < run.offsets.end;
        if let Some(uncompressed) = self.uncompressed.filter(is_around) {
            return Some(uncompressed);
        }
        let chunk = self.chunks.get(self.chunks.partition_point(|chunk| chunk.end <= offset))?;
        if chunk.first > offset { None } else { chunk.iter().find(is_around) }
    }

    /// Returns the last run that ends at or before `offset`.
    pub(super) fn before(&self, offset: u64) -> Option<Run> {
        let uncompressed = self.uncompressed.filter(|uncompressed| uncompressed.offsets.end <= offset);
        let chunks_before = self.chunks.partition_point(|chunk| chunk.first < offset);
        if let Some(uncompressed) = uncompressed
            && self.chunks[..chunks_before].last().is_none_or(|chunk| chunk.end <= uncompressed.offsets.start)
        {
            return Some(uncompressed);
        }
        let ends_before = |run: &Run| run.offsets.end <= offset;
        let mut chunks = self.chunks[..chunks_before].iter().rev();
        let packed = chunks.find_map(|chunk| chunk.iter().take_while(ends_before).last());
        uncompressed.into_iter().chain(packed).max_by_key(|run| run.offsets.start)
    }

    /// Adds a run at offsets that are in no other run. The new run becomes the uncompressed run.
    pub(super) fn insert(&mut self, run: Run) {
        self.compress();
        self.uncompressed = Some(run);
        self.count += 1;
    }

    /// Replaces the run that starts at `start` by the runs `with`, which are ascending and lie within the offsets of
    /// the old run or right behind them.
    pub(super) fn replace(&mut self, start: u64, with: &[Run]) {
        self.count = self.count + with.len() - 1;
        if self.uncompressed.is_some_and(|uncompressed| uncompressed.offsets.start == start) {
            self.uncompressed = with.last().copied();
            for run in with.iter().rev().skip(1) {
                self.put(*run);
            }
            return;
        }
        let at = self.chunks.partition_point(|chunk| chunk.end <= start);
        self.edit(at, |runs| {
            if let Some(place) = runs.iter().position(|run| run.offsets.start == start) {
                runs.remove(place);
                for (place, run) in (place..).zip(with) {
                    let _ = runs.insert(place, *run);
                }
            }
        });
        self.join(at);
    }

    /// Makes the run that starts at `start` the uncompressed one and returns it. The caller may extend it up
    /// to the next run.
    pub(super) fn uncompress(&mut self, start: u64) -> Option<&mut Run> {
        if self.uncompressed.is_none_or(|uncompressed| uncompressed.offsets.start != start) {
            let run = self.around(start)?;
            self.count += 1;
            self.replace(start, &[]);
            self.compress();
            self.uncompressed = Some(run);
        }
        self.uncompressed.as_mut()
    }

    /// Calls `change` with each run that overlaps `range`. `change` may shrink the run, and returns whether to keep
    /// it.
    pub(super) fn retain_in(&mut self, range: Range, mut change: impl FnMut(&mut Run) -> bool) {
        let overlaps = |run: &Run| run.offsets.start < range.end && run.offsets.end > range.start;
        if let Some(uncompressed) = self.uncompressed.as_mut().filter(|uncompressed| overlaps(uncompressed))
            && !change(uncompressed)
        {
            self.uncompressed = None;
            self.count -= 1;
        }
        let first = self.chunks.partition_point(|chunk| chunk.end <= range.start);
        let mut at = first;
        while self.chunks.get(at).is_some_and(|chunk| chunk.first < range.end) {
            let mut gone = 0;
            let chunks = self.chunks.len();
            self.edit(at, |runs| {
                let before = runs.len();
                runs.retain_mut(|run| !overlaps(run) || change(run));
                gone = before - runs.len();
            });
            self.count -= gone;
            // The chunk may have been removed or split.
            at = (at + 1 + self.chunks.len()).saturating_sub(chunks);
        }
        for at in (first.saturating_sub(1)..at).rev() {
            self.join(at);
        }
        self.chunks.shrink_to(CHUNKS_KEPT.max(2 * self.chunks.len()));
    }

    /// Compresses the uncompressed run.
    fn compress(&mut self) {
        if let Some(run) = self.uncompressed.take() {
            self.put(run);
        }
    }

    /// Compresses a run into the chunk to which its offsets belong.
    fn put(&mut self, run: Run) {
        let chunks_before = self.chunks.partition_point(|chunk| chunk.first <= run.offsets.start);
        if chunks_before == self.chunks.len()
            && let Some(last) = self.chunks.last_mut()
            && last.end <= run.offsets.start
        {
            let mut before = self.end_state.unwrap_or_else(|| last.end_state());
            if last.push(&run, &mut before, CHUNK_RUNS_BYTES) {
                last.end = run.offsets.end;
            } else {
                let (chunk, _) = Chunk::of(&[run], &mut self.spare);
                self.chunks.push(chunk);
            }
            self.end_state = Some(PreviousRun::after(&run));
        } else if self.chunks.is_empty() {
            let (chunk, _) = Chunk::of(&[run], &mut self.spare);
            self.chunks.push(chunk);
        } else {
            self.edit(chunks_before.saturating_sub(1), |runs| {
                let place = runs.partition_point(|other| other.offsets.start < run.offsets.start);
                let _ = runs.insert(place, run);
            });
        }
    }

    /// Decompresses a chunk, changes its runs, and compresses them again.
    fn edit(&mut self, at: usize, change: impl FnOnce(&mut Unpacked)) {
        let Some(chunk) = self.chunks.get_mut(at) else { return };
        self.end_state = None;
        let mut runs: Unpacked = chunk.iter().collect();
        change(&mut runs);
        if runs.is_empty() {
            self.spare = Some(self.chunks.remove(at));
            return;
        }
        if chunk.fill(&runs, CHUNK_RUNS_BYTES) < runs.len() {
            let mut done = chunk.fill(&runs, CHUNK_RUNS_BYTES / 2);
            let mut at = at + 1;
            while done < runs.len() {
                let (half, taken) = Chunk::of(&runs[done..], &mut self.spare);
                self.chunks.insert(at, half);
                (at, done) = (at + 1, done + taken);
            }
        }
    }

    /// Merges the chunks at `at` and `at + 1` if together they take at most [`MERGED_BYTES_MAX`].
    fn join(&mut self, at: usize) {
        let used = |at: usize| self.chunks.get(at).map_or(CHUNK_RUNS_BYTES, |chunk| chunk.used.into());
        if used(at) + used(at + 1) > MERGED_BYTES_MAX {
            return;
        }
        let next = self.chunks.remove(at + 1);
        self.end_state = None;
        let mut runs: Unpacked = self.chunks[at].iter().collect();
        runs.extend(next.iter());
        // Only the first run of the second chunk is relative to another run now, so at most this run takes more
        // bytes.
        let fitting = self.chunks[at].fill(&runs, CHUNK_RUNS_BYTES);
        assert!(fitting == runs.len(), "the runs of two merged chunks do not fit into one chunk");
        self.spare = Some(next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(start: u64, length: u64, segment: u64, settled: u64, bytes: u32) -> Run {
        let live = (length - settled.min(length - 1)) as u32;
        Run { offsets: Range { start, end: start + length }, segment, live, bytes }
    }

    /// Compares the runs with a plain list.
    fn check(runs: &Runs, model: &[Run]) {
        assert_eq!(runs.iter().collect::<Vec<_>>(), model);
        assert_eq!(runs.len(), model.len());
        assert!(runs.chunks.windows(2).all(|pair| pair[0].end <= pair[1].first));
        assert!(runs.chunks.iter().all(|chunk| {
            let (last, count) = (chunk.iter().last().map(|run| run.offsets.end), chunk.iter().count());
            last == Some(chunk.end) && count == usize::from(chunk.runs)
        }));
        let end_state = runs.chunks.last().map(|last| last.end_state());
        assert!(runs.end_state.is_none() || runs.end_state == end_state);
        for offset in model.iter().flat_map(|run| [run.offsets.start, run.offsets.end, run.offsets.end + 1]) {
            let from = model.iter().copied().filter(|run| run.offsets.end > offset);
            assert!(runs.iter_from(offset).take(3).eq(from.take(3)), "from {offset}");
            let around = model.iter().copied().find(|run| run.offsets.contains(offset));
            assert_eq!(runs.around(offset), around, "around {offset}");
            let before = model.iter().copied().rev().find(|run| run.offsets.end <= offset);
            assert_eq!(runs.before(offset), before, "before {offset}");
        }
    }

    impl Range {
        fn contains(&self, offset: u64) -> bool {
            self.start <= offset && offset < self.end
        }
    }

    proptest! {
        #[test]
        fn it_is_the_list_of_its_runs(
            steps in prop::collection::vec(
                (0_u8..6, 0_u64..1 << 40, 1_u64..400, any::<u64>(), any::<u32>()), 1..300),
            is_spread in any::<bool>(),
        ) {
            let (mut runs, mut model) = (Runs::default(), Vec::<Run>::new());
            for (step, at, length, odd, bytes) in steps {
                let pick = |model: &[Run]| model.get(odd as usize % model.len().max(1)).copied();
                match (step, pick(&model)) {
                    (0..3, _) => {
                        let end = model.last().map_or(0, |last| last.offsets.end);
                        let start = if is_spread { at * 1_000 } else { end + odd % 3 };
                        let new = run(start, length, odd >> (at % 64), odd % 7, bytes);
                        let place = model.partition_point(|run| run.offsets.end <= start);
                        let next = model.get(place);
                        if next.is_none_or(|next| next.offsets.start >= start + length) {
                            model.insert(place, new);
                            runs.insert(new);
                        }
                    }
                    (3, Some(old)) => {
                        let start = old.offsets.start;
                        let uncompressed = runs.uncompress(start).expect("it is there");
                        uncompressed.bytes = bytes;
                        model.iter_mut().find(|run| run.offsets.start == start).expect("too").bytes = bytes;
                    }
                    (4, Some(old)) => {
                        let Range { start, end } = old.offsets;
                        let parts = [run(start, 1, 3, 0, 9), run(end - 1, 1, u64::MAX, 0, bytes)];
                        let with = &parts[..if end - start > 1 { (odd % 3) as usize } else { 0 }];
                        let place = model.iter().position(|run| *run == old).expect("it is there");
                        model.splice(place..=place, with.iter().copied());
                        runs.replace(start, with);
                    }
                    (5, Some(old)) => {
                        let range = Range { start: old.offsets.start, end: old.offsets.end + at % 5_000 };
                        let mut change = |run: &mut Run| {
                            run.bytes = bytes / 2;
                            run.segment % 3 != odd % 3
                        };
                        runs.retain_in(range, &mut change);
                        model.retain_mut(|run| {
                            let overlaps = run.offsets.start < range.end && run.offsets.end > range.start;
                            !overlaps || change(run)
                        });
                    }
                    _ => {}
                }
                if model.len() < 40 {
                    check(&runs, &model);
                }
            }
            check(&runs, &model);
        }
    }

    /// Returns the bytes per run when each message arrives in the next segment.
    fn bytes_per_run(count: u64, mut shape: impl FnMut(u64) -> (u64, u32)) -> f64 {
        let (mut runs, mut next) = (Runs::default(), 0);
        for segment in 0..count {
            let (length, bytes) = shape(segment);
            runs.insert(run(next, length, segment, 0, bytes));
            next += length;
        }
        runs.heap_bytes(16) as f64 / count as f64
    }

    #[test]
    fn a_segment_more_takes_a_queue_a_few_bytes() {
        let steady = bytes_per_run(2_000, |segment| (14 + segment % 2, (14 + segment as u32 % 2) * 290));
        let uneven = bytes_per_run(2_000, |segment| {
            let odd = (segment as u32).wrapping_mul(0x9E37_79B9) >> 16;
            (10 + u64::from(odd % 9), (10 + odd % 9) * 290 + odd % 900)
        });
        println!("{steady:.2} steady, {uneven:.2} uneven");
        assert!(steady < 1.5 && uneven < 5.5, "{steady:.2} steady, {uneven:.2} uneven");
    }

    #[test]
    fn what_is_settled_gives_its_memory_back() {
        let mut runs = Runs::default();
        for at in 0..10_000 {
            runs.insert(run(at * 10, 10, at, 0, 3_000));
        }
        let full = runs.heap_bytes(16);
        runs.retain_in(Range { start: 0, end: 100_000 }, |run| run.segment % 100 == 0);
        let mut few = Runs::default();
        runs.iter().for_each(|run| few.insert(run));
        let (left, least) = (runs.heap_bytes(16), few.heap_bytes(16));
        assert!(runs.len() == 100 && left < 3 * least && left < full / 2, "{left} of {full}, least {least}");
    }
}
