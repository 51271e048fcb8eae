//! Those who come for metrics without a login, beside the clients of the management API: strangers whom
//! nobody knows, and who are to take nothing from an operator.

use leveret_core::limits::Limits;

use super::management::{GUEST, ask, get, is_held, status};
use super::world::{Shape, World, small_limits};

const HOME: [u8; 4] = [127, 0, 0, 1];
/// Who reads hardly anything.
const NARROW: Shape = Shape { down_room: 300, ..Shape::WIDE };

fn stranger(number: usize) -> [u8; 4] {
    [10, 0, 0, number as u8 + 1]
}

/// Somebody who asks for metrics and then does not read what comes.
fn slow_reader(world: &mut World, address: [u8; 4]) -> usize {
    let client = world.connect_metrics(NARROW, address);
    world.operator(client).write_up(get("/metrics/per-object", "").as_bytes());
    client
}

/// Clients of the API and of metrics share the places, and have those that become free in turn.
#[test]
fn slow_readers_of_metrics_and_clients_of_the_api_do_not_keep_each_other_out() {
    for most in [1, 2, 8] {
        let mut world = World::new(Limits { management_clients_max: most, ..small_limits() });
        for number in 0..40 {
            slow_reader(&mut world, stranger(number));
        }
        world.run();
        for round in 0..5 {
            let operator = world.connect_management(Shape::WIDE, HOME);
            world.operator(operator).write_up(get("/api/whoami", GUEST).as_bytes());
            world.pass_ms(17_000);
            assert_eq!(status(&ask(&mut world, operator, "")), "200", "of {most} places, in round {round}");
            world.operator(operator).hang_up();
            slow_reader(&mut world, stranger(40 + round));
        }
        let mut world = World::new(Limits { management_clients_max: most, ..small_limits() });
        for _ in 0..20 {
            let client = world.connect_management(Shape::WIDE, HOME);
            world.operator(client).write_up(b"GET /api/whoami HTTP/1.1\r\nHost");
        }
        world.run();
        let scraper = world.connect_metrics(Shape::WIDE, stranger(0));
        world.operator(scraper).write_up(get("/metrics", "").as_bytes());
        world.pass_ms(5_000);
        assert_eq!(status(&ask(&mut world, scraper, "")), "200", "of {most} places");
    }
}

#[test]
fn who_reads_metrics_slowly_has_half_a_minute_for_all_of_it() {
    let mut world = World::new(small_limits());
    let slow = slow_reader(&mut world, stranger(0));
    for _ in 0..29 {
        world.pass_ms(1_000);
        world.operator(slow).read_down(10, &mut Vec::new());
    }
    assert!(is_held(&world, slow), "it reads, and nobody waits");
    world.pass_ms(2_000);
    assert!(!is_held(&world, slow));
}
