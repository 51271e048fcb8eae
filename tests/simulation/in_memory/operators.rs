//! Clients of the control socket: their requests and answers, how long they may be idle, and how many there
//! may be.

use leveret_core::limits::CONTROL_CLIENTS_MAX;

use super::world::{Publish, Shape, World, small_limits};

const LIST: &[u8] = b"GET /api/queues/%2F?columns=name HTTP/1.1\r\n\r\n";
const NONE: &[u8] = b"GET /api/queues/%2F/none HTTP/1.1\r\n\r\n";
const LAST: &[u8] = b"GET /api/vhosts?columns=name HTTP/1.1\r\nConnection: close\r\n\r\n";
const IDLE_MS: u64 = 60_000;

/// Returns at most `most` bytes that are there for a client to read.
fn read(world: &World, operator: usize, most: usize) -> String {
    let mut bytes = Vec::new();
    world.operator(operator).read_down(most, &mut bytes);
    String::from_utf8(bytes).expect("answers are text")
}

fn is_held(world: &World, operator: usize) -> bool {
    world.operator(operator).is_held
}

#[test]
fn pipelined_requests_are_answered_in_order_before_the_connection_ends() {
    for shape in [Shape::WIDE, Shape::fragments(1)] {
        let mut world = World::new(small_limits());
        let client = world.open(&[1]);
        world.declare(client, 1, "readings");
        let operator = world.connect_operator(shape, 0);
        world.operator(operator).write_up(&[LIST, NONE, LIST].concat());
        world.operator(operator).hang_up();
        world.run();
        let heard = read(&world, operator, usize::MAX);
        let status: Vec<&str> =
            heard.match_indices("HTTP/1.1 ").map(|(at, _)| &heard[at + 9..at + 12]).collect();
        assert_eq!(status, ["200", "404", "200"], "{heard}");
        assert_eq!(heard.matches("readings").count(), 2);
        assert!(!is_held(&world, operator), "it has shut down and has its answers");
    }
}

#[test]
fn a_client_that_closes_after_its_answer_is_disconnected() {
    let mut world = World::new(small_limits());
    let operator = world.connect_operator(Shape::WIDE, 0);
    world.operator(operator).write_up(LAST);
    world.run();
    assert!(read(&world, operator, usize::MAX).contains("200 OK"));
    assert!(world.operator(operator).broker_is_done, "the broker sends nothing more");
    world.operator(operator).hang_up();
    world.run();
    assert!(!is_held(&world, operator));
}

#[test]
fn a_listing_continues_as_it_is_read_however_busy_the_broker_is() {
    let mut world = World::new(small_limits());
    let client = world.open(&[1]);
    for number in 0..400 {
        world.declare(client, 1, &format!("queue-{number}-{}", "x".repeat(200)));
    }
    let operator = world.connect_operator(Shape { down_room: 700, ..Shape::WIDE }, 0);
    world.operator(operator).write_up(LIST);
    let mut heard = String::new();
    for round in 0..2_000 {
        let publish = Publish { key: "queue-0", ..Publish::default() };
        world.publish(client, 1, publish, b"one more");
        world.run();
        heard += &read(&world, operator, if round % 7 == 0 { 0 } else { 500 });
    }
    assert!(heard.ends_with("0\r\n\r\n"), "all of it: {} bytes", heard.len());
    assert_eq!(heard.matches("\"queue-").count(), 400);
    assert!(is_held(&world, operator), "and it may ask again");
}

#[test]
fn a_client_idle_for_a_minute_is_disconnected_and_an_active_one_stays() {
    let mut world = World::new(small_limits());
    let [still, busy] = [0, 1].map(|_| world.connect_operator(Shape::WIDE, 0));
    world.run();
    for _ in 0..3 {
        world.pass_ms(IDLE_MS / 2 - 1);
        world.operator(busy).write_up(NONE);
        world.run();
        assert!(read(&world, busy, usize::MAX).contains("404"));
    }
    assert_eq!((is_held(&world, still), is_held(&world, busy)), (false, true));
    // Half a request does not reset the idle timeout.
    world.operator(busy).write_up(&NONE[..9]);
    world.pass_ms(IDLE_MS - 1);
    assert!(is_held(&world, busy));
    world.pass_ms(2);
    assert!(!is_held(&world, busy));
}

/// Clients that hold all places and send nothing, or half a request, lose them to a client with a request.
#[test]
fn silent_clients_lose_their_places_to_an_active_one_and_broker_connections_are_not_counted() {
    let overview = b"GET /api/connections?columns=state HTTP/1.1\r\n\r\n";
    for (words, within_ms) in [(&b""[..], 150), (&overview[..20], 1_600)] {
        let mut world = World::new(small_limits());
        let clients = [0, 1].map(|_| world.open(&[1]));
        for _ in 0..CONTROL_CLIENTS_MAX {
            let client = world.connect_operator(Shape::WIDE, 0);
            world.operator(client).write_up(words);
        }
        world.run();
        let asks = world.connect_operator(Shape::WIDE, 0);
        world.operator(asks).write_up(overview);
        world.run();
        assert!(read(&world, asks, usize::MAX).is_empty(), "each has its place for a moment");
        world.pass_ms(within_ms);
        let heard = read(&world, asks, usize::MAX);
        assert_eq!(heard.matches("running").count(), clients.len(), "{heard}");
        let lost = (0..CONTROL_CLIENTS_MAX).filter(|client| !is_held(&world, *client)).count();
        assert_eq!(lost, 1);
    }
}

#[test]
fn other_users_are_refused() {
    let mut world = World::new(small_limits());
    let operator = world.connect_operator(Shape::WIDE, 1000);
    world.operator(operator).write_up(LIST);
    world.run();
    assert!(!is_held(&world, operator) && read(&world, operator, usize::MAX).is_empty());
}

#[test]
fn a_change_without_a_commit_to_wait_for_is_answered_at_once() {
    const VHOST: &[u8] = b"PUT /api/vhosts/site HTTP/1.1\r\nContent-Length: 0\r\n\r\n";
    let mut world = World::new(small_limits());
    let operator = world.connect_operator(Shape::WIDE, 0);
    // The second request changes nothing, so there is no commit that its answer could wait for.
    for _ in 0..2 {
        world.operator(operator).write_up(VHOST);
        world.run();
        let heard = read(&world, operator, usize::MAX);
        assert!(heard.starts_with("HTTP/1.1 2"), "no answer: {heard:?}");
    }
}
