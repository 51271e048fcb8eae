//! The end of a segment where neither its commits nor its footer can be read.
//!
//! ```text
//! segment | header | commit | ... | last whole commit | damaged commits | damaged footer, or none |
//!                                                     ^ tail
//! next one | header: so many commits were synced before it | first commit: its number, how many it repeats |
//! ```
//!
//! What lies behind such a segment knows how many commits it had. So the good records of those are served as
//! they are between two whole commits, and the rest is reported as lost.
//!
//! Always true: nothing behind the last commit that is proven to have been synced is served; what the next
//! segment's first commit repeats is not lost.

use std::io;

use super::disk::Disk;
use super::reader::{Pass, Reader};
use super::record::Record;
use super::report::SetAside;
use super::salvage;
use super::segment::{Headers, SegmentRef};
use super::sync_proof::proven_by_next;

impl<D: Disk> Reader<'_, '_, D> {
    /// The number of the last commit that `segment` surely had and that nothing repeats, or 0; the chain
    /// stands at its last whole one, `trailer` is what its footer says or 0, `next` is the segment behind it
    /// in the log.
    pub(super) fn number_before(
        &mut self,
        segment: SegmentRef,
        next: Option<SegmentRef>,
        headers: &Headers<'_>,
        trailer: u64,
    ) -> io::Result<u64> {
        let told = |next: SegmentRef| {
            let header = headers.iter().find(|(_, _, header)| header.sequence == next.sequence);
            (next, header.map(|(_, _, header)| header.commits))
        };
        let known = (segment.sequence, &self.chain, trailer);
        proven_by_next(self.disk, known, next.map(told), self.identity.seed(), &mut self.bytes)
    }

    /// Serves what is good of the damaged commits behind byte `tail` of a segment that is not the newest, up
    /// to the commit numbered `through`, and reports what is missing.
    pub(super) fn read_end(
        &mut self,
        segment: SegmentRef,
        tail: u32,
        through: u64,
        pass: Pass,
    ) -> io::Result<()> {
        let missing = through.saturating_sub(self.chain.number);
        if missing == 0 {
            return Ok(());
        }
        let length = self.disk.read(segment.slot, 0, &mut self.bytes)? as u32;
        self.serve(segment, tail..length, through, pass);
        if pass.reports() {
            let (SegmentRef { sequence, slot }, to) = (segment, self.segment_bytes);
            self.report.commits_missing += missing;
            self.report.set_aside.push(SetAside { slot, segment: sequence, from: tail, to });
        }
        self.chain.number = through;
        Ok(())
    }

    /// Serves what is good of damaged commits that begin where `within` does, in the segment that is in the
    /// buffer: of those behind the chain, up to the one numbered `through`. Tells where the last one ends.
    pub(super) fn serve(
        &mut self,
        segment: SegmentRef,
        within: core::ops::Range<u32>,
        through: u64,
        pass: Pass,
    ) -> u32 {
        let numbers = self.chain.number + 1..through + 1;
        let bytes = &self.bytes[..within.end as usize];
        let (places, end) = salvage::all_served(bytes, within.start, numbers, self.identity.seed(), segment);
        for place in places {
            if let Ok((record, _)) = Record::parse(&self.bytes[place.at as usize..])
                && pass.wants(&record)
            {
                self.index.apply(&record, place);
            }
            self.served.push(place);
        }
        end
    }
}
