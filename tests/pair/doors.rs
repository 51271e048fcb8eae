//! Who comes in while many others try to, with wrong passwords: in virtual time, so it is the same each time.

use leveret::limits::Limits;

use crate::world::{Manners, Phase, Shape, World, small_limits};

/// Addresses that try passwords, and milliseconds between two tries of all of them together.
const ADDRESSES: u32 = 120;
const TRY_EACH_MS: u64 = 28;
/// Nobody else is kept out for longer.
const KEPT_OUT_MS: u64 = 2_000;

/// A small board, and a crowd that guesses.
struct Siege {
    world: World,
    tries: u32,
}

impl Siege {
    fn begin() -> Self {
        let limits = Limits { connections_max: 32, handshakes_max: 8, ..small_limits() };
        Self { world: World::new(limits), tries: 0 }
    }

    /// Lets so much time pass, while the crowd goes on.
    fn pass_ms(&mut self, ms: u64) {
        for _ in 0..ms / TRY_EACH_MS {
            let [_, _, high, low] = (self.tries % ADDRESSES).to_be_bytes();
            // A password that was wrong a moment ago would be refused at once.
            let user = Box::leak(format!("nobody{}", self.tries).into_boxed_str());
            let manners = Manners { user, ..Manners::default() };
            self.world.connect_from(manners, Shape::WIDE, [198, 51, high, low]);
            self.tries += 1;
            self.world.pass_ms(TRY_EACH_MS);
        }
    }

    /// How long a client from this address needs to come in; it tries again when it is hung up on.
    fn comes_in(&mut self, address: [u8; 4], user: &'static str) -> u64 {
        let begun = self.world.now.as_ms();
        loop {
            let manners = Manners { user, ..Manners::default() };
            let client = self.world.connect_from(manners, Shape::WIDE, address);
            loop {
                if self.world.clients[client].checker.phase == Phase::Open {
                    return self.world.now.as_ms() - begun;
                }
                assert!(self.world.now.as_ms() - begun < 60_000, "{address:?} does not come in");
                self.pass_ms(TRY_EACH_MS);
                if !self.world.line(client).is_held && self.world.now.as_ms() - begun > 500 {
                    break;
                }
            }
        }
    }
}

/// Many hosts of a network, or one with as many addresses, try passwords: they keep nobody out who comes for the
/// first time, and nobody who was here before.
#[test]
fn a_hundred_addresses_with_wrong_passwords_keep_nobody_out() {
    let mut siege = Siege::begin();
    let before = siege.comes_in([127, 0, 0, 9], "guest");
    siege.pass_ms(20_000);
    for number in 1..=5 {
        let first = siege.comes_in([127, 0, 1, number], "guest");
        assert!(
            first <= KEPT_OUT_MS,
            "the first login of an address took {first} ms, without a crowd {before}"
        );
        let again = siege.comes_in([127, 0, 0, 9], "guest");
        assert!(again <= KEPT_OUT_MS, "who had logged in before needed {again} ms");
        siege.pass_ms(3_000);
    }
}
