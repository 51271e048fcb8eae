//! Clients of the control socket: their requests and answers, how long they may be idle, and how many there
//! may be.

use leveret_core::limits::CONTROL_CLIENTS_MAX;

use leveret_test_support::simulated_server::{Publish, Shape, Simulation, small_limits};

const LIST: &[u8] = b"GET /api/queues/%2F?columns=name HTTP/1.1\r\n\r\n";
const NONE: &[u8] = b"GET /api/queues/%2F/none HTTP/1.1\r\n\r\n";
const LAST: &[u8] = b"GET /api/vhosts?columns=name HTTP/1.1\r\nConnection: close\r\n\r\n";
const IDLE_MS: u64 = 60_000;

/// Returns at most `most` bytes that are there for a client to read.
fn read(simulation: &Simulation, operator: usize, most: usize) -> String {
    let mut bytes = Vec::new();
    simulation.operator(operator).read_down(most, &mut bytes);
    String::from_utf8(bytes).expect("answers are text")
}

fn is_held(simulation: &Simulation, operator: usize) -> bool {
    simulation.operator(operator).is_held
}

#[test]
fn pipelined_requests_are_answered_in_order_before_the_connection_ends() {
    for shape in [Shape::WIDE, Shape::fragments(1)] {
        let mut simulation = Simulation::new(small_limits());
        let client = simulation.open(&[1]);
        simulation.declare(client, 1, "readings");
        let operator = simulation.connect_operator(shape, 0);
        simulation.operator(operator).write_up(&[LIST, NONE, LIST].concat());
        simulation.operator(operator).hang_up();
        simulation.run();
        let heard = read(&simulation, operator, usize::MAX);
        let status: Vec<&str> =
            heard.match_indices("HTTP/1.1 ").map(|(at, _)| &heard[at + 9..at + 12]).collect();
        assert_eq!(status, ["200", "404", "200"], "{heard}");
        assert_eq!(heard.matches("readings").count(), 2);
        assert!(!is_held(&simulation, operator), "it has shut down and has its answers");
    }
}

#[test]
fn a_client_that_closes_after_its_answer_is_disconnected() {
    let mut simulation = Simulation::new(small_limits());
    let operator = simulation.connect_operator(Shape::WIDE, 0);
    simulation.operator(operator).write_up(LAST);
    simulation.run();
    assert!(read(&simulation, operator, usize::MAX).contains("200 OK"));
    assert!(simulation.operator(operator).broker_is_done, "the broker sends nothing more");
    simulation.operator(operator).hang_up();
    simulation.run();
    assert!(!is_held(&simulation, operator));
}

#[test]
fn a_listing_continues_as_it_is_read_however_busy_the_broker_is() {
    let mut simulation = Simulation::new(small_limits());
    let client = simulation.open(&[1]);
    for number in 0..400 {
        simulation.declare(client, 1, &format!("queue-{number}-{}", "x".repeat(200)));
    }
    let operator = simulation.connect_operator(Shape { down_room: 700, ..Shape::WIDE }, 0);
    simulation.operator(operator).write_up(LIST);
    let mut heard = String::new();
    for round in 0..2_000 {
        let publish = Publish { key: "queue-0", ..Publish::default() };
        simulation.publish(client, 1, publish, b"one more");
        simulation.run();
        heard += &read(&simulation, operator, if round % 7 == 0 { 0 } else { 500 });
    }
    assert!(heard.ends_with("0\r\n\r\n"), "all of it: {} bytes", heard.len());
    assert_eq!(heard.matches("\"queue-").count(), 400);
    assert!(is_held(&simulation, operator), "and it may ask again");
}

#[test]
fn a_client_idle_for_a_minute_is_disconnected_and_an_active_one_stays() {
    let mut simulation = Simulation::new(small_limits());
    let [still, busy] = [0, 1].map(|_| simulation.connect_operator(Shape::WIDE, 0));
    simulation.run();
    for _ in 0..3 {
        simulation.pass_ms(IDLE_MS / 2 - 1);
        simulation.operator(busy).write_up(NONE);
        simulation.run();
        assert!(read(&simulation, busy, usize::MAX).contains("404"));
    }
    assert_eq!((is_held(&simulation, still), is_held(&simulation, busy)), (false, true));
    // Half a request does not reset the idle timeout.
    simulation.operator(busy).write_up(&NONE[..9]);
    simulation.pass_ms(IDLE_MS - 1);
    assert!(is_held(&simulation, busy));
    simulation.pass_ms(2);
    assert!(!is_held(&simulation, busy));
}

/// Clients that hold all places and send nothing, or half a request, lose them to a client with a request.
#[test]
fn silent_clients_lose_their_places_to_an_active_one_and_broker_connections_are_not_counted() {
    let overview = b"GET /api/connections?columns=state HTTP/1.1\r\n\r\n";
    for (words, within_ms) in [(&b""[..], 150), (&overview[..20], 1_600)] {
        let mut simulation = Simulation::new(small_limits());
        let clients = [0, 1].map(|_| simulation.open(&[1]));
        for _ in 0..CONTROL_CLIENTS_MAX {
            let client = simulation.connect_operator(Shape::WIDE, 0);
            simulation.operator(client).write_up(words);
        }
        simulation.run();
        let asks = simulation.connect_operator(Shape::WIDE, 0);
        simulation.operator(asks).write_up(overview);
        simulation.run();
        assert!(read(&simulation, asks, usize::MAX).is_empty(), "each has its place for a moment");
        simulation.pass_ms(within_ms);
        let heard = read(&simulation, asks, usize::MAX);
        assert_eq!(heard.matches("running").count(), clients.len(), "{heard}");
        let lost = (0..CONTROL_CLIENTS_MAX).filter(|client| !is_held(&simulation, *client)).count();
        assert_eq!(lost, 1);
    }
}

#[test]
fn other_users_are_refused() {
    let mut simulation = Simulation::new(small_limits());
    let operator = simulation.connect_operator(Shape::WIDE, 1000);
    simulation.operator(operator).write_up(LIST);
    simulation.run();
    assert!(!is_held(&simulation, operator) && read(&simulation, operator, usize::MAX).is_empty());
}

#[test]
fn a_change_without_a_commit_to_wait_for_is_answered_at_once() {
    const VHOST: &[u8] = b"PUT /api/vhosts/site HTTP/1.1\r\nContent-Length: 0\r\n\r\n";
    let mut simulation = Simulation::new(small_limits());
    let operator = simulation.connect_operator(Shape::WIDE, 0);
    // The second request changes nothing, so there is no commit that its answer could wait for.
    for _ in 0..2 {
        simulation.operator(operator).write_up(VHOST);
        simulation.run();
        let heard = read(&simulation, operator, usize::MAX);
        assert!(heard.starts_with("HTTP/1.1 2"), "no answer: {heard:?}");
    }
}
