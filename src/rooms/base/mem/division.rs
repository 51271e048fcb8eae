//! How a pool is divided among those who share it: virtual hosts, or users.
//!
//! Why it exists: a pool that goes to whoever asks first is one program's as soon as that goes wrong. A fixed
//! part for each would waste it, for usually one needs nearly everything.
//!
//! ```text
//! | 3/4: whoever asks first | 1/4 in equal parts, each kept for its holder until that has so much |
//! ```
//!
//! Always true: what is kept is the sum of what each holder has less than its part; who holds less than its
//! part is kept from it by nobody else; a holder that is alone has the whole pool, and nothing is kept.

/// One part in so many of a pool is kept for those who have little of it.
const KEPT: u64 = 4;

/// A pool divided among its holders; how much each has of it, the holder's record knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Division {
    /// What is kept for each holder; 0 for one alone.
    part: u64,
    /// What all holders together have less than their parts.
    kept: u64,
}

impl Division {
    /// Divides a pool of so many among holders that have so much of it now.
    pub fn new(pool: u64, holders: impl Iterator<Item = u64> + Clone) -> Self {
        let count = holders.clone().count() as u64;
        let part = if count > 1 { pool / KEPT / count } else { 0 };
        Self { part, kept: holders.map(|held| part.saturating_sub(held)).sum() }
    }

    /// Whether there is more than one holder, and so much in the pool that each has a part.
    pub const fn is_divided(&self) -> bool {
        self.part > 0
    }

    /// What is kept for others than the holder that has so much.
    pub const fn kept_for_others(&self, held: u64) -> u64 {
        self.kept - self.part.saturating_sub(held)
    }

    /// Whether a holder that has so much may have so much more of its own part.
    pub const fn is_own_part(&self, held: u64, more: u64) -> bool {
        held + more <= self.part
    }

    /// What is kept from a holder that has so much and wants so much more; nothing within its part.
    pub const fn kept_from(&self, held: u64, more: u64) -> u64 {
        if self.is_own_part(held, more) { 0 } else { self.kept_for_others(held) }
    }

    /// A holder that had so much has so much more now; says whether less is kept by that.
    pub const fn take(&mut self, held: u64, more: u64) -> bool {
        let missing = self.part.saturating_sub(held);
        let less = if more < missing { more } else { missing };
        self.kept -= less;
        less > 0
    }

    /// A holder that still has so much gave so much back.
    pub const fn give_back(&mut self, held: u64, less: u64) {
        let missing = self.part.saturating_sub(held);
        self.kept += if less < missing { less } else { missing };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_alone_has_everything() {
        let division = Division::new(1000, [900].into_iter());
        assert!(!division.is_divided());
        assert_eq!(division.kept_for_others(900), 0);
    }

    #[test]
    fn what_is_kept_follows_what_each_takes_and_gives_back() {
        let mut held = [0_u64, 700, 100];
        let mut division = Division::new(1200, held.into_iter());
        // Parts of 100.
        assert_eq!(held.map(|held| division.kept_for_others(held)), [0, 100, 100]);
        let mut state = 7_u64;
        for step in 0..10_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (who, much) = ((state >> 40) as usize % 3, (state >> 50) % 150);
            if step % 2 == 0 {
                let before = division.kept;
                assert_eq!(division.take(held[who], much), division.kept < before);
                held[who] += much;
            } else {
                let much = much.min(held[who]);
                held[who] -= much;
                division.give_back(held[who], much);
            }
            assert_eq!(division, Division::new(1200, held.into_iter()));
        }
    }
}
