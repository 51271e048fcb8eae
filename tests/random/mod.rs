//! Numbers from a seed, for every test that takes chances.
//!
//! Always true: the same seed gives the same numbers, on every machine.

#![allow(dead_code, unreachable_pub, reason = "shared: no program of tests uses all of it")]

/// What a broker is given for chance: bytes that go through all 256 in an order of their own.
pub fn bytes() -> impl FnMut(&mut [u8]) + Send {
    let mut last = 0_u8;
    move |bytes| {
        for byte in bytes {
            last = last.wrapping_mul(37).wrapping_add(11);
            *byte = last;
        }
    }
}

/// A stream of numbers (xorshift64*).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub const fn new(seed: u64) -> Self {
        Self((seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x5DEE_CE66_D1CE_4E5B) | 1)
    }

    /// The next one, below `bound`, which is not 0.
    pub const fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % bound
    }

    /// One of these; there is at least one.
    pub fn one_of<T: Copy>(&mut self, things: &[T]) -> T {
        things[self.below(things.len() as u64) as usize]
    }

    /// True once in so many times.
    pub const fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}
