//! Unauthenticated readers of metrics beside clients of the management API, from whom they must not take
//! capacity.

use leveret_core::limits::Limits;

use super::management::{GUEST, ask, get, is_held, status};
use leveret_test_support::simulated_server::{Shape, Simulation, small_limits};

const HOME: [u8; 4] = [127, 0, 0, 1];
/// The shape of a connection that is read very slowly.
const NARROW: Shape = Shape { down_room: 300, ..Shape::WIDE };

fn stranger(number: usize) -> [u8; 4] {
    [10, 0, 0, number as u8 + 1]
}

/// Requests metrics without reading the answer.
fn slow_reader(simulation: &mut Simulation, address: [u8; 4]) -> usize {
    let client = simulation.connect_metrics(NARROW, address);
    simulation.operator(client).write_up(get("/metrics/per-object", "").as_bytes());
    client
}

/// Clients of the API and of metrics share the places, and take free ones in turn.
#[test]
fn slow_readers_of_metrics_and_clients_of_the_api_do_not_block_each_other() {
    for most in [1, 2, 8] {
        let mut simulation = Simulation::new(Limits { management_clients_max: most, ..small_limits() });
        for number in 0..40 {
            slow_reader(&mut simulation, stranger(number));
        }
        simulation.run();
        for round in 0..5 {
            let operator = simulation.connect_management(Shape::WIDE, HOME);
            simulation.operator(operator).write_up(get("/api/whoami", GUEST).as_bytes());
            simulation.pass_ms(17_000);
            assert_eq!(
                status(&ask(&mut simulation, operator, "")),
                "200",
                "of {most} places, in round {round}"
            );
            simulation.operator(operator).hang_up();
            slow_reader(&mut simulation, stranger(40 + round));
        }
        let mut simulation = Simulation::new(Limits { management_clients_max: most, ..small_limits() });
        for _ in 0..20 {
            let client = simulation.connect_management(Shape::WIDE, HOME);
            simulation.operator(client).write_up(b"GET /api/whoami HTTP/1.1\r\nHost");
        }
        simulation.run();
        let scraper = simulation.connect_metrics(Shape::WIDE, stranger(0));
        simulation.operator(scraper).write_up(get("/metrics", "").as_bytes());
        simulation.pass_ms(5_000);
        assert_eq!(status(&ask(&mut simulation, scraper, "")), "200", "of {most} places");
    }
}

#[test]
fn a_slow_reader_of_metrics_is_disconnected_after_half_a_minute() {
    let mut simulation = Simulation::new(small_limits());
    let slow = slow_reader(&mut simulation, stranger(0));
    for _ in 0..29 {
        simulation.pass_ms(1_000);
        simulation.operator(slow).read_down(10, &mut Vec::new());
    }
    assert!(is_held(&simulation, slow), "it reads, and no client waits");
    simulation.pass_ms(2_000);
    assert!(!is_held(&simulation, slow));
}
