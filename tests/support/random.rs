//! Pseudo-random numbers from a seed, the same on every machine.

/// Returns the entropy source for a broker: bytes that cycle through all 256 values in a fixed order.
pub fn entropy() -> impl FnMut(&mut [u8]) + Send {
    let mut last = 0_u8;
    move |bytes| {
        for byte in bytes {
            last = last.wrapping_mul(37).wrapping_add(11);
            *byte = last;
        }
    }
}

/// Returns a number each bit of which depends on every bit of `number` (splitmix64).
const fn stirred(number: u64) -> u64 {
    let number = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let number = (number ^ number >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let number = (number ^ number >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    number ^ number >> 31
}

/// A stream of numbers (xorshift64*).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Starts the stream of a seed.
    pub const fn new(seed: u64) -> Self {
        Self((seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x5DEE_CE66_D1CE_4E5B) | 1)
    }

    /// Returns the stream for one purpose at one place of a run. Seed, purpose and place are mixed (splitmix64), so
    /// numbers drawn for another purpose or place do not change this stream.
    pub fn of(seed: u64, purpose: &str, place: &[u64]) -> Self {
        let parts = purpose.bytes().map(u64::from).chain([purpose.len() as u64]).chain(place.iter().copied());
        Self(parts.fold(stirred(seed), |state, part| stirred(state ^ part)) | 1)
    }

    /// Returns the next number, which is below `bound`. The bound is not 0.
    pub const fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % bound
    }

    /// Returns a random element of a slice that is not empty.
    pub fn one_of<T: Copy>(&mut self, things: &[T]) -> T {
        things[self.below(things.len() as u64) as usize]
    }

    /// Returns true once in `times` on average.
    pub const fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}
