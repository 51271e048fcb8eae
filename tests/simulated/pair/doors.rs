//! Who comes in while many others try to, with wrong passwords: in virtual time, so it is the same each time.

use leveret::limits::Limits;

use crate::world::{Manners, Phase, Shape, Silence, World, small_limits};

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

/// Connections that were refused and linger hold all places, and their records are cleared away already. Of those
/// that come at once each has one of these places, and none has it instead of another of them.
#[test]
fn those_that_come_at_once_do_not_put_each_other_out() {
    let mut world = World::new(Limits { connections_max: 32, handshakes_max: 4, ..small_limits() });
    for number in 0..4 {
        let manners = Manners { silence: Silence::AtOnce, is_heedless: true, ..Manners::default() };
        let client = world.connect_from(manners, Shape::WIDE, [198, 51, 0, number / 2]);
        world.clients[client].say_raw(b"this is no AMQP at all");
    }
    world.pass_ms(200);
    assert_eq!(world.peers_count(), 4, "they were answered and do not go");
    let honest: Vec<usize> = (0..4)
        .map(|number| world.connect_from(Manners::default(), Shape::WIDE, [127, 0, 1, number]))
        .collect();
    world.pass_ms(200);
    let phases: Vec<Phase> = honest.iter().map(|client| world.clients[*client].checker.phase).collect();
    assert_eq!(phases, [Phase::Open; 4], "each of them has a place");
}

/// Logins that were refused are told so a moment later, and hold their places until then; those that come at once
/// have these places, and none has it instead of another of them.
#[test]
fn those_that_come_at_once_do_not_put_each_other_out_for_refused_logins() {
    let mut world = World::new(Limits { connections_max: 32, handshakes_max: 4, ..small_limits() });
    for number in 0..4 {
        let user = ["eve0", "eve1", "eve2", "eve3"][usize::from(number)];
        let manners = Manners { user, ..Manners::default() };
        world.connect_from(manners, Shape::WIDE, [198, 51, 0, number / 2]);
    }
    world.run();
    assert_eq!(world.peers_count(), 4, "they are not told yet");
    let honest: Vec<usize> = (0..4)
        .map(|number| world.connect_from(Manners::default(), Shape::WIDE, [127, 0, 1, number]))
        .collect();
    world.pass_ms(100);
    let phases: Vec<Phase> = honest.iter().map(|client| world.clients[*client].checker.phase).collect();
    assert_eq!(phases, [Phase::Open; 4], "each of them has a place");
}

/// One that waits for a place of all sleeps between its looks, and has one as soon as there is one.
#[test]
fn who_waits_for_a_place_of_all_is_woken_and_the_loop_sleeps_meanwhile() {
    let mut world = World::new(Limits { connections_max: 4, handshakes_max: 4, ..small_limits() });
    let open: Vec<usize> = (0..4).map(|_| world.open(&[])).collect();
    let waits = world.connect_from(Manners::default(), Shape::WIDE, [127, 9, 0, 2]);
    world.run();
    let before = world.turns;
    world.pass_ms(1_000);
    assert!(world.turns - before < 60, "{} turns in a second", world.turns - before);
    assert_eq!(world.clients[waits].checker.phase, Phase::Start);
    world.lose(open[0]);
    world.pass_ms(50);
    assert_eq!(world.clients[waits].checker.phase, Phase::Open);
}
