//! Where about in a segment's footer the part of a queue lies.
//!
//! A place for each queue in each segment would be most of what memory knows of a log. So small parts are
//! told together, a *span*, and whoever reads one goes through it to the part; a large part is a span of its
//! own.
//!
//! Always true: spans rise by queue and by place, and lie one behind the other without holes, as parts do.

use super::parts::BodyPart;

/// A span ends with the part in which it reaches so many bytes.
const SPAN_BYTES: u32 = 2 << 10;
/// A span of so many bytes is one part.
pub(super) const SHARED_SPAN_BYTES_MAX: u32 = 2 * SPAN_BYTES;

/// The spans of one segment; none when it has no footer.
#[derive(Clone, Debug, Default)]
pub(super) struct Spans {
    /// The first queue of each, and its first byte in the segment.
    starts: Vec<(u64, u32)>,
    end: u32,
}

impl Spans {
    /// Of these parts, counted from byte `base` of the segment; in the memory of `spare`.
    pub(super) fn of(base: u32, parts: &[(u64, BodyPart)], spare: Self) -> Self {
        let mut starts = spare.starts;
        starts.clear();
        let (mut end, mut is_large) = (base, false);
        for (queue, BodyPart { at, bytes }) in parts {
            let at = base + at;
            let is_full = starts.last().is_none_or(|(_, start)| at - start >= SPAN_BYTES);
            if is_full || is_large || *bytes >= SPAN_BYTES {
                starts.push((*queue, at));
            }
            (end, is_large) = (at + bytes, *bytes >= SPAN_BYTES);
        }
        Self { starts, end }
    }

    /// The span that has the part of a queue, if there is one; without bytes when there is none.
    pub(super) fn find(&self, queue: u64) -> BodyPart {
        let behind = self.starts.partition_point(|(first, _)| *first <= queue);
        let Some((_, at)) = behind.checked_sub(1).and_then(|at| self.starts.get(at)) else {
            return BodyPart::default();
        };
        let end = self.starts.get(behind).map_or(self.end, |(_, next)| *next);
        BodyPart { at: *at, bytes: end - at }
    }

    /// Bytes on the heap.
    pub(super) const fn heap_bytes(&self) -> usize {
        size_of::<(u64, u32)>() * self.starts.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_lies_in_the_span_that_is_found_for_its_queue() {
        let mut at = 0;
        let sizes = (0..3_000_u32).map(|n| if n % 97 == 0 { 40_000 } else { 20 + n % 1_500 });
        let parts: Vec<(u64, BodyPart)> = (0..)
            .zip(sizes)
            .map(|(n, bytes): (u64, u32)| {
                let part = BodyPart { at, bytes };
                at += bytes;
                (n * 3, part)
            })
            .collect();
        let spans = Spans::of(4_096, &parts, Spans::default());
        for (queue, part) in &parts {
            let (span, start) = (spans.find(*queue), 4_096 + part.at);
            assert!(span.at <= start && start + part.bytes <= span.at + span.bytes, "{queue}");
            assert!(
                span.bytes == part.bytes || span.bytes < SHARED_SPAN_BYTES_MAX,
                "{queue}: {span:?} of {part:?}"
            );
        }
        assert!(spans.starts.len() < at as usize / SPAN_BYTES as usize + parts.len() / 40);
        assert_eq!(Spans::default().find(7), BodyPart::default());
    }
}
