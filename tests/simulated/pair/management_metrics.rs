//! Those who come for metrics without a login, beside the clients of the management API: strangers whom
//! nobody knows, and who are to take nothing from an operator.

use leveret::limits::Limits;

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

/// An operator comes, is heard and goes.
fn operator_is_heard(world: &mut World) -> bool {
    let operator = world.connect_management(Shape::WIDE, HOME);
    let said = ask(world, operator, &get("/api/whoami", GUEST));
    world.operator(operator).hang_up();
    world.run();
    status(&said) == "200"
}

#[test]
fn a_crowd_of_slow_readers_of_metrics_keeps_no_operator_waiting() {
    for most in [8, 4, 2] {
        let mut world = World::new(Limits { management_clients_max: most, ..small_limits() });
        for number in 0..40 {
            slow_reader(&mut world, stranger(number));
        }
        world.run();
        for round in 0..20 {
            assert!(operator_is_heard(&mut world), "of {most} places, in round {round}");
            slow_reader(&mut world, stranger(40 + round));
        }
    }
}

#[test]
fn a_single_place_is_given_back_to_the_operator_in_a_moment() {
    let mut world = World::new(Limits { management_clients_max: 1, ..small_limits() });
    for number in 0..40 {
        slow_reader(&mut world, stranger(number));
    }
    world.run();
    for round in 0..10 {
        let operator = world.connect_management(Shape::WIDE, HOME);
        world.operator(operator).write_up(get("/api/whoami", GUEST).as_bytes());
        world.pass_ms(1_500);
        assert_eq!(status(&ask(&mut world, operator, "")), "200", "in round {round}");
        world.operator(operator).hang_up();
        world.pass_ms(100);
    }
}

#[test]
fn clients_of_the_api_that_are_busy_give_no_place_up_that_is_theirs() {
    let mut world = World::new(small_limits());
    let busy: Vec<usize> = (0..small_limits().management_clients_max / 2)
        .map(|_| {
            let client = world.connect_management(Shape::WIDE, HOME);
            world.operator(client).write_up(b"GET /api/whoami HTTP/1.1\r\nHost");
            client
        })
        .collect();
    world.run();
    for number in 0..40 {
        slow_reader(&mut world, stranger(number));
    }
    // They may take fifteen seconds for their request.
    world.pass_ms(14_000);
    assert!(busy.iter().all(|client| is_held(&world, *client)));
}

#[test]
fn metrics_are_still_told_when_clients_of_the_api_or_slow_readers_hold_all_places_they_may() {
    let mut world = World::new(small_limits());
    for _ in 0..20 {
        let client = world.connect_management(Shape::WIDE, HOME);
        world.operator(client).write_up(b"GET /api/whoami HTTP/1.1\r\nHost");
    }
    world.run();
    let scraper = world.connect_metrics(Shape::WIDE, stranger(0));
    assert_eq!(status(&ask(&mut world, scraper, &get("/metrics", ""))), "200");
    let mut world = World::new(small_limits());
    for number in 1..=small_limits().management_clients_max as usize {
        slow_reader(&mut world, stranger(number));
    }
    world.run();
    let scraper = world.connect_metrics(Shape::WIDE, stranger(0));
    world.operator(scraper).write_up(get("/metrics", "").as_bytes());
    world.pass_ms(20_000);
    assert_eq!(status(&ask(&mut world, scraper, "")), "200", "slow readers take turns with it");
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
