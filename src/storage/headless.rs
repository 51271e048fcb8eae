//! Which segments the files are whose headers cannot be read.
//!
//! Always true: no two files are the same segment; where no block lies in the wrong file, each is the one that its first
//! whole commit is of.

use leveret_core::mem::sort_by_key;

use super::segment::SegmentRef;

/// A file whose header cannot be read, and what its whole commits say.
pub(super) struct Headless {
    pub(super) slot: u32,
    /// The segments that they are of, in the order of their first, and how many each has.
    said: Vec<(u64, usize)>,
}

impl Headless {
    /// Of a file whose commits say this, one after the other.
    pub(super) fn of(slot: u32, commits: impl Iterator<Item = u64>) -> Self {
        let mut said: Vec<(u64, usize)> = Vec::new();
        for segment in commits {
            match said.iter_mut().find(|(other, _)| *other == segment) {
                Some((_, count)) => *count += 1,
                None => said.push((segment, 1)),
            }
        }
        Self { slot, said }
    }
}

/// Which segment each of these files is, rising: what its first commit says, for behind the newest ones there may be
/// those of an older use. A card may have put a block of another file there. So where two say the same, the one with
/// more such commits is it, and the other is what its next ones say.
pub(super) fn segments_of(mut files: Vec<Headless>) -> Vec<SegmentRef> {
    sort_by_key(&mut files, |file| file.slot);
    loop {
        let claim = |file: &Headless| file.said.first().copied();
        let is_outdone = |at: usize| {
            let (sequence, count) = claim(&files[at])?;
            let others = (0..files.len()).filter(|other| *other != at);
            let mut rivals = others.filter_map(|other| Some((other, claim(&files[other])?)));
            let outdoes =
                |(other, (of, more)): (usize, (u64, usize))| of == sequence && (more, at) > (count, other);
            rivals.any(outdoes).then_some(at)
        };
        match (0..files.len()).find_map(is_outdone) {
            Some(at) => drop(files[at].said.remove(0)),
            None => break,
        }
    }
    let said = |file: &Headless| Some(SegmentRef { sequence: file.said.first()?.0, slot: file.slot });
    let mut found: Vec<SegmentRef> = files.iter().filter_map(said).collect();
    sort_by_key(&mut found, |segment| segment.sequence);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(u32, &[u64])]) -> Vec<(u64, u32)> {
        let files = files.iter().map(|(slot, said)| Headless::of(*slot, said.iter().copied())).collect();
        segments_of(files).into_iter().map(|SegmentRef { sequence, slot }| (sequence, slot)).collect()
    }

    #[test]
    fn a_file_is_the_segment_that_its_first_commit_is_of() {
        assert_eq!(found(&[(0, &[9, 3, 3, 3]), (1, &[8, 8]), (2, &[])]), [(8, 1), (9, 0)]);
    }

    #[test]
    fn no_segment_is_two_files_and_a_block_of_another_file_does_not_hide_what_is_behind_it() {
        assert_eq!(found(&[(0, &[1, 1, 1]), (1, &[1, 2, 2]), (2, &[3])]), [(1, 0), (2, 1), (3, 2)]);
        assert_eq!(found(&[(0, &[1, 2, 2]), (1, &[1, 1])]), [(1, 1), (2, 0)]);
        // Each has a block of the other first.
        assert_eq!(found(&[(0, &[2, 1, 1]), (1, &[1, 2, 2])]), [(1, 1), (2, 0)]);
        // A whole copy: the lower file is it.
        assert_eq!(found(&[(4, &[7, 7]), (3, &[7, 7])]), [(7, 3)]);
    }
}
