//! Logins while other connections are silent, slow, or send wrong passwords, in virtual time.

use leveret_core::limits::Limits;

use leveret_test_support::simulated_server::{Manners, Phase, Shape, Silence, Simulation, small_limits};

/// Maximum time of a login, whatever the other connections do.
const LOGIN_MS: u64 = 5_000;
/// Milliseconds between two steps of a crowd.
const STEP_MS: u64 = 20;

/// A broker and many connections that do not log in. A closed connection is replaced by a new one.
struct Crowd {
    simulation: Simulation,
    /// The connections, each with the number of bytes it has sent.
    members: Vec<(usize, usize)>,
    made: u32,
    /// Opens the connection with this number.
    join: fn(&mut Simulation, u32) -> usize,
    steps: u64,
}

/// Returns the address with this number.
fn address(number: u32) -> [u8; 4] {
    let [_, _, high, low] = number.to_be_bytes();
    [198, 51, high, low]
}

impl Crowd {
    fn new(handshakes_max: u32, count: usize, join: fn(&mut Simulation, u32) -> usize) -> Self {
        let limits = Limits { connections_max: 2 * handshakes_max, handshakes_max, ..small_limits() };
        let mut crowd =
            Self { simulation: Simulation::new(limits), members: Vec::new(), made: 0, join, steps: 0 };
        crowd.add(count);
        crowd
    }

    fn add(&mut self, count: usize) {
        for _ in 0..count {
            let member = self.joined();
            self.members.push((member, 0));
        }
    }

    fn joined(&mut self) -> usize {
        self.made += 1;
        (self.join)(&mut self.simulation, self.made - 1)
    }

    /// Lets time pass. Silent connections send one byte of the protocol header per second.
    fn pass_ms(&mut self, ms: u64) {
        for _ in 0..ms / STEP_MS {
            self.simulation.pass_ms(STEP_MS);
            self.steps += 1;
            let sends = self.steps.is_multiple_of(1_000 / STEP_MS);
            for at in 0..self.members.len() {
                let (member, sent) = self.members[at];
                if !self.simulation.line(member).is_held {
                    self.members[at] = (self.joined(), 0);
                } else if let (true, Some(byte)) = (sends, b"AMQP\0\0\x09\x01".get(sent)) {
                    self.members[at].1 += 1;
                    self.simulation.clients[member].say_raw(&[*byte]);
                }
            }
        }
    }

    /// Logs in from this address and retries when the connection is closed. Returns the time it took.
    fn log_in(&mut self, address: [u8; 4], user: &'static str) -> (usize, u64) {
        let begun = self.simulation.now.as_ms();
        loop {
            let manners = Manners { user, ..Manners::default() };
            let client = self.simulation.connect_from(manners, Shape::WIDE, address);
            self.simulation.run();
            while self.simulation.line(client).is_held {
                let took_ms = self.simulation.now.as_ms() - begun;
                if self.simulation.clients[client].checker.phase == Phase::Open {
                    return (client, took_ms);
                }
                assert!(took_ms <= LOGIN_MS, "{address:?} did not log in");
                self.pass_ms(STEP_MS);
            }
        }
    }
}

fn silent(simulation: &mut Simulation, number: u32) -> usize {
    let manners = Manners { silence: Silence::AtOnce, ..Manners::default() };
    simulation.connect_from(manners, Shape::WIDE, address(number % 80))
}

/// Logs in with a wrong password, a different one each time: a recently refused password is not checked
/// again.
fn wrong_password(simulation: &mut Simulation, number: u32, address: [u8; 4]) -> usize {
    let user = Box::leak(format!("nobody{number}").into_boxed_str());
    simulation.connect_from(Manners { user, ..Manners::default() }, Shape::WIDE, address)
}

/// Creates a user whose password is its name.
fn add_user(simulation: &mut Simulation, user: &str) {
    let operator = simulation.connect_operator(Shape::WIDE, 0);
    let put = |path: &str, body: &str| {
        format!("PUT /api/{path} HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    let user_body = format!(r#"{{"password":"{user}","tags":""}}"#);
    let permissions = r#"{"configure":".*","write":".*","read":".*"}"#;
    let requests =
        put(&format!("users/{user}"), &user_body) + &put(&format!("permissions/%2F/{user}"), permissions);
    simulation.operator(operator).write_up(requests.as_bytes());
    simulation.run();
    let mut bytes = Vec::new();
    simulation.operator(operator).read_down(usize::MAX, &mut bytes);
    assert_eq!(String::from_utf8_lossy(&bytes).matches("HTTP/1.1 201").count(), 2);
    simulation.operator(operator).hang_up();
    simulation.run();
}

#[test]
fn silent_connections_of_eighty_addresses_do_not_block_logins() {
    for (handshakes_max, count) in [(8, 80), (256, 80), (8, 160), (256, 1_000)] {
        let mut crowd = Crowd::new(handshakes_max, count, silent);
        for last in 0..4 {
            crowd.pass_ms(1_000);
            let (client, _) = crowd.log_in([127, 0, 1, last], "guest");
            crowd.simulation.lose(client);
        }
        let is_full = count > handshakes_max as usize;
        assert_eq!(crowd.made as usize > count, is_full, "those that were closed came again");
    }
}

/// The connections come from one address or from many. Clients that logged in before keep their messages and
/// heartbeats.
#[test]
fn five_hundred_connections_that_send_a_byte_a_second_do_not_block_logins() {
    for join in [silent, |simulation: &mut Simulation, _| silent(simulation, 7)] {
        let mut crowd = Crowd::new(128, 0, join);
        let manners = Manners { heartbeat_s: 2, sends_heartbeats: true, ..Manners::default() };
        let beating = crowd.simulation.connect_from(manners, Shape::WIDE, [127, 0, 0, 1]);
        let working = crowd.simulation.open(&[1]);
        crowd.simulation.declare(working, 1, "q");
        crowd.simulation.consume(working, 1, "q", "tag", true);
        crowd.add(500);
        for round in 0..6 {
            crowd.simulation.publish_to(working, 1, "q", b"reading");
            crowd.pass_ms(1_000);
            let (client, _) = crowd.log_in([127, 0, 1, round], "guest");
            crowd.simulation.lose(client);
            assert_eq!(crowd.simulation.deliveries(working).len(), 1);
        }
        assert!(crowd.simulation.line(beating).is_held, "its heartbeats were read");
    }
}

/// Checked for a client with a login, for one of the same address that is new, and for one of another
/// address.
#[test]
fn an_address_that_sends_wrong_passwords_without_end_does_not_block_logins() {
    const FAILING: [u8; 4] = [198, 51, 7, 7];
    for (handshakes_max, count) in [(8, 1), (8, 4), (128, 1), (128, 20)] {
        let mut crowd =
            Crowd::new(handshakes_max, 0, |simulation, number| wrong_password(simulation, number, FAILING));
        add_user(&mut crowd.simulation, "known");
        add_user(&mut crowd.simulation, "first");
        let (known, _) = crowd.log_in(FAILING, "known");
        crowd.simulation.lose(known);
        crowd.add(count);
        crowd.pass_ms(5_000);
        assert!(crowd.made as usize > 2 * count, "{} wrong passwords", crowd.made);
        for (address, user) in [(FAILING, "known"), (FAILING, "first"), ([127, 0, 0, 9], "guest")] {
            let (client, _) = crowd.log_in(address, user);
            crowd.simulation.lose(client);
        }
    }
}

#[test]
fn a_hundred_addresses_with_wrong_passwords_do_not_block_logins() {
    let mut crowd =
        Crowd::new(8, 40, |simulation, number| wrong_password(simulation, number, address(number % 120)));
    crowd.pass_ms(200);
    assert!(crowd.made > 40, "{} wrong passwords", crowd.made);
    for last in 1..=2 {
        let (client, _) = crowd.log_in([127, 0, 1, last], "guest");
        crowd.simulation.lose(client);
    }
}

/// One address opens many connections, and again when they are closed. Each sends only the protocol header,
/// or a wrong password. Clients of other addresses do not wait.
#[test]
fn many_connections_of_one_address_do_not_delay_another_address() {
    const CROWD: [u8; 4] = [198, 51, 7, 7];
    let header = |simulation: &mut Simulation, _| {
        let manners = Manners { silence: Silence::AfterHeader, ..Manners::default() };
        simulation.connect_from(manners, Shape::WIDE, CROWD)
    };
    let wrong = |simulation: &mut Simulation, number| wrong_password(simulation, number, CROWD);
    for join in [header, wrong] {
        for (handshakes_max, count) in [(8, 50), (8, 300), (64, 300)] {
            let mut crowd = Crowd::new(handshakes_max, count, join);
            crowd.pass_ms(500);
            for last in 0..3 {
                let (client, took_ms) = crowd.log_in([127, 0, 1, last], "guest");
                assert!(took_ms <= 500, "{count} connections, {handshakes_max} places: {took_ms} ms");
                crowd.simulation.lose(client);
            }
        }
    }
}

/// A fleet behind one address (NAT or containers) reconnects at once. All log in, and none is closed.
#[test]
fn two_hundred_clients_of_one_address_log_in_at_once() {
    for handshakes_max in [4, 8, 256] {
        let limits = Limits { connections_max: 200, handshakes_max, ..small_limits() };
        let mut simulation = Simulation::new(limits);
        let clients: Vec<usize> = (0..200)
            .map(|_| simulation.connect_from(Manners::default(), Shape::WIDE, [127, 0, 0, 1]))
            .collect();
        simulation.pass_ms(1_000);
        assert!(clients.iter().all(|client| simulation.clients[*client].checker.phase == Phase::Open));
    }
}

/// A client with a long round trip or a slow processor needs up to 2 s for each step.
#[test]
fn a_slow_client_logs_in_while_others_wait() {
    let mut crowd = Crowd::new(8, 40, silent);
    crowd.pass_ms(1_000);
    let manners = Manners { silence: Silence::AfterHeader, ..Manners::default() };
    let slow = crowd.simulation.connect_from(manners, Shape::WIDE, [127, 0, 0, 9]);
    crowd.pass_ms(2_500);
    assert!(crowd.simulation.line(slow).is_held, "it was answered less than 3 s ago");
    crowd.pass_ms(3_500);
    assert!(!crowd.simulation.line(slow).is_held, "others wait, and it does nothing");
}

/// Refused connections that stay open lose their places to new ones. No new one is closed for another.
#[test]
fn refused_connections_lose_their_places_and_new_ones_do_not() {
    for is_login in [false, true] {
        let mut simulation =
            Simulation::new(Limits { connections_max: 32, handshakes_max: 4, ..small_limits() });
        for number in 0..4 {
            if is_login {
                // A refusal is sent with a delay.
                wrong_password(&mut simulation, number, address(number / 2));
            } else {
                let manners = Manners { silence: Silence::AtOnce, is_heedless: true, ..Manners::default() };
                let client = simulation.connect_from(manners, Shape::WIDE, address(number / 2));
                simulation.clients[client].say_raw(b"this is no AMQP at all");
            }
        }
        simulation.run();
        assert_eq!(simulation.peers_count(), 4);
        let clients: Vec<usize> = (0..4)
            .map(|last| simulation.connect_from(Manners::default(), Shape::WIDE, [127, 0, 1, last]))
            .collect();
        simulation.pass_ms(100);
        let phases: Vec<Phase> =
            clients.iter().map(|client| simulation.clients[*client].checker.phase).collect();
        assert_eq!(phases, [Phase::Open; 4]);
    }
}

/// A connection beyond `handshakes_max` waits without waking the event loop. It is admitted when another
/// ends.
#[test]
fn a_connection_that_waits_for_a_place_does_not_wake_the_loop() {
    let mut simulation = Simulation::new(Limits { connections_max: 4, handshakes_max: 4, ..small_limits() });
    let manners = Manners { silence: Silence::AfterHeader, ..Manners::default() };
    let open: Vec<usize> = (0..4).map(|_| simulation.connect(manners.clone(), Shape::WIDE)).collect();
    simulation.run();
    let waits = simulation.connect_from(Manners::default(), Shape::WIDE, [127, 9, 0, 2]);
    simulation.run();
    let before = simulation.turns;
    simulation.pass_ms(1_000);
    assert!(simulation.turns - before < 5, "{} turns in a second", simulation.turns - before);
    assert_eq!(simulation.clients[waits].checker.phase, Phase::Start);
    simulation.lose(open[0]);
    simulation.run();
    assert_eq!(simulation.clients[waits].checker.phase, Phase::Open);
}
