//! Clients of the management API: which are admitted, what a login costs, and how long a client may take.

use leveret_core::limits::Limits;

use leveret_test_support::simulated_server::{Shape, Simulation, small_limits};

const HOME: [u8; 4] = [127, 0, 0, 1];
const AWAY: [u8; 4] = [192, 0, 2, 7];
pub(super) const GUEST: &str = "Authorization: Basic Z3Vlc3Q6Z3Vlc3Q=\r\n";
const WRONG: &str = "Authorization: Basic Z3Vlc3Q6d3Jvbmc=\r\n";

pub(super) fn get(path: &str, lines: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost:15672\r\n{lines}\r\n")
}

/// Sends a request and returns the answer.
pub(super) fn ask(simulation: &mut Simulation, client: usize, request: &str) -> String {
    String::from_utf8(ask_bytes(simulation, client, request)).expect("answers are text")
}

/// Sends a request and returns the answer, which may be compressed.
pub(super) fn ask_bytes(simulation: &mut Simulation, client: usize, request: &str) -> Vec<u8> {
    simulation.operator(client).write_up(request.as_bytes());
    simulation.run();
    let mut bytes = Vec::new();
    // A helper checks the password, which takes time.
    for _ in 0..20 {
        simulation.pass_ms(50);
        simulation.operator(client).read_down(usize::MAX, &mut bytes);
    }
    bytes
}

pub(super) fn status(answer: &str) -> &str {
    answer.get(9..12).unwrap_or("none")
}

pub(super) fn is_held(simulation: &Simulation, client: usize) -> bool {
    simulation.operator(client).is_held
}

#[test]
fn nothing_is_shown_without_a_login_and_guest_logs_in_only_from_this_machine() {
    for shape in [Shape::WIDE, Shape::fragments(1)] {
        let mut simulation = Simulation::new(small_limits());
        let client = simulation.connect_management(shape, HOME);
        let none = ask(&mut simulation, client, &get("/api/whoami", ""));
        assert!(
            none.contains("www-authenticate: Basic realm=\"RabbitMQ Management\"")
                && none.contains("Login failed"),
            "{none}"
        );
        let script = ask(&mut simulation, client, &get("/api/whoami", "X-Requested-With: page\r\n"));
        assert_eq!((status(&script), script.contains("www-authenticate")), ("401", false), "{script}");
        assert_eq!(status(&ask(&mut simulation, client, &get("/api/whoami", WRONG))), "401");
        let right = ask(&mut simulation, client, &get("/api/whoami", GUEST));
        assert!(right.contains("\"name\":\"guest\",\"tags\":[\"administrator\"]"), "{right}");
        let again = ask(&mut simulation, client, &get("/api/overview", GUEST));
        assert_eq!(status(&again), "200", "{again}");
        let control = ask(&mut simulation, client, &get("/api/ctl/environment", GUEST));
        assert_eq!(status(&control), "404", "that is of the control socket");
        let away = simulation.connect_management(shape, AWAY);
        assert_eq!(status(&ask(&mut simulation, away, &get("/api/whoami", GUEST))), "401");
    }
}

#[test]
fn foreign_host_names_and_origins_are_refused_with_all_security_headers() {
    let mut simulation = Simulation::new(small_limits());
    let client = simulation.connect_management(Shape::WIDE, HOME);
    let rebound = format!("GET /api/whoami HTTP/1.1\r\nHost: evil.example\r\n{GUEST}\r\n");
    let rebound = ask(&mut simulation, client, &rebound);
    assert_eq!(status(&rebound), "403");
    for header in ["content-security-policy: default-src 'none'; ", "nosniff", "no-referrer", "same-origin"] {
        assert!(rebound.contains(header), "{rebound}");
    }
    let put = |lines: &str| {
        format!("PUT /api/vhosts/v HTTP/1.1\r\nHost: localhost:1\r\nContent-Length: 0\r\n{GUEST}{lines}\r\n")
    };
    for page in ["Origin: http://evil.example\r\n", "Origin: null\r\n", "Sec-Fetch-Site: cross-site\r\n"] {
        assert_eq!(status(&ask(&mut simulation, client, &put(page))), "403", "{page}");
    }
    let none = ask(&mut simulation, client, &format!("GET /api/whoami HTTP/1.1\r\n{GUEST}\r\n"));
    assert_eq!(status(&none), "400", "no name at all");
    // An HTTP/1.0 program may omit `Host`. A request with an origin comes from a browser, which always sends
    // `Host`.
    let old = |lines: &str| format!("PUT /api/vhosts/v HTTP/1.0\r\nContent-Length: 0\r\n{GUEST}{lines}\r\n");
    for (lines, answer) in [("Origin: http://evil.example\r\n", "403"), ("", "201")] {
        let client = simulation.connect_management(Shape::WIDE, HOME);
        assert_eq!(status(&ask(&mut simulation, client, &old(lines))), answer, "{lines}");
    }
    let ours = "Origin: http://localhost:1\r\n";
    for twice in ["Host: localhost:1\r\n", GUEST, &format!("Origin: http://evil.example\r\n{ours}")] {
        let client = simulation.connect_management(Shape::WIDE, HOME);
        assert_eq!(status(&ask(&mut simulation, client, &put(twice))), "400", "{twice}");
    }
}

#[test]
fn the_listener_for_metrics_without_a_login_serves_nothing_else() {
    for shape in [Shape::WIDE, Shape::fragments(1)] {
        let mut simulation = Simulation::new(small_limits());
        let client = simulation.connect_metrics(shape, AWAY);
        for path in ["/metrics", "/metrics/per-object", "/metrics/detailed?family=queue_coarse_metrics"] {
            let shown = ask(&mut simulation, client, &get(path, ""));
            assert_eq!((status(&shown), shown.contains("rabbitmq_identity_info")), ("200", true), "{shown}");
        }
        // Also not for a user who could see it elsewhere, and not with another spelling of the path.
        let names = [
            "",
            "app.js",
            "api",
            "api/whoami",
            "api/overview",
            "api/ctl/environment",
            "api/health/checks/alarms",
        ];
        let spelt = [
            "metrics/",
            "metrics/..",
            "metrics/../api/whoami",
            "metrics%2F..%2Fapi",
            "metrics/x",
            "//metrics",
        ];
        for path in names.into_iter().chain(spelt) {
            let said = ask(&mut simulation, client, &get(&format!("/{path}"), GUEST));
            assert_eq!(status(&said), "404", "{path}: {said}");
        }
        for (verb, path) in [("POST", "/metrics"), ("DELETE", "/metrics"), ("PUT", "/api/vhosts/v")] {
            let lines = format!("Host: localhost:1\r\nContent-Length: 0\r\n{GUEST}");
            let said = ask(&mut simulation, client, &format!("{verb} {path} HTTP/1.1\r\n{lines}\r\n"));
            assert_eq!(status(&said), "405", "{verb} {path}: {said}");
        }
        let rebound = ask(&mut simulation, client, "GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n");
        assert_eq!((status(&rebound), rebound.contains("rabbitmq_")), ("403", false), "{rebound}");
        // The other listener still requires a login.
        let other = simulation.connect_management(shape, AWAY);
        assert_eq!(status(&ask(&mut simulation, other, &get("/metrics", ""))), "401");
    }
}

#[test]
fn a_client_that_is_slow_with_a_request_or_an_answer_is_disconnected() {
    let mut simulation = Simulation::new(small_limits());
    let [slow, idle] = [0, 1].map(|_| simulation.connect_management(Shape::WIDE, HOME));
    // One byte per second is progress, but not a complete request.
    for letter in get("/api/whoami", GUEST).bytes().take(16) {
        simulation.operator(slow).write_up(&[letter]);
        simulation.pass_ms(1_000);
    }
    assert_eq!((is_held(&simulation, slow), is_held(&simulation, idle)), (false, true));
    simulation.pass_ms(60_000);
    assert!(!is_held(&simulation, idle), "a minute is long enough to say nothing in");
}

#[test]
fn a_client_that_shuts_down_after_its_login_receives_the_answer() {
    let mut simulation = Simulation::new(small_limits());
    let client = simulation.connect_management(Shape::WIDE, HOME);
    simulation.operator(client).write_up(get("/api/whoami", GUEST).as_bytes());
    simulation.operator(client).hang_up();
    assert_eq!(status(&ask(&mut simulation, client, "")), "200");
    assert!(!is_held(&simulation, client));
}

#[test]
fn an_idle_client_loses_its_place_only_to_a_waiting_client() {
    let mut simulation = Simulation::new(small_limits());
    let most = small_limits().management_clients_max as usize;
    let crowd: Vec<usize> = (0..most).map(|_| simulation.connect_management(Shape::WIDE, HOME)).collect();
    simulation.run();
    assert!(crowd.iter().all(|client| is_held(&simulation, *client)), "no client waits");
    simulation.pass_ms(1_000);
    assert_eq!(status(&ask(&mut simulation, crowd[0], &get("/api/whoami", GUEST))), "200");
    let newcomer = simulation.connect_management(Shape::WIDE, AWAY);
    assert_eq!(status(&ask(&mut simulation, newcomer, &get("/api/none", ""))), "401");
    let held: Vec<bool> = crowd.iter().map(|client| is_held(&simulation, *client)).collect();
    assert_eq!(held.iter().filter(|held| !**held).count(), 1, "one of them went");
    assert!(held[0], "and not the one that asked last");
}

/// Half of a request. A client that sends no more counts as busy for as long as a request may take.
const HALF: &[u8] = b"GET /api/whoami HTTP/1.1\r\nHost";

/// All places are held and 20 more clients wait, all of them silent or with half a request. A client that
/// connects after them is answered.
#[test]
fn silent_and_slow_clients_lose_their_places_to_waiting_clients() {
    for (words, within_ms) in [(&b""[..], 1_000), (HALF, 20_000)] {
        for most in [1, 2, 8] {
            let mut simulation = Simulation::new(Limits { management_clients_max: most, ..small_limits() });
            for _ in 0..most + if words.is_empty() { 9 } else { 10 } {
                let client = simulation.connect_management(Shape::WIDE, HOME);
                simulation.operator(client).write_up(words);
            }
            simulation.run();
            let other = simulation.connect_management(Shape::WIDE, AWAY);
            simulation.operator(other).write_up(get("/api/none", "").as_bytes());
            simulation.pass_ms(within_ms);
            assert_eq!(status(&ask(&mut simulation, other, "")), "401", "{most} places");
        }
    }
}

/// Clients of one address that are silent or send half a request delay another address at most until the
/// first of them loses its place.
#[test]
fn many_clients_of_one_address_do_not_block_another_address() {
    for most in [1, 2, 8] {
        let mut simulation = Simulation::new(Limits { management_clients_max: most, ..small_limits() });
        for round in 0..3 {
            for _ in 0..100 {
                let client = simulation.connect_management(Shape::WIDE, HOME);
                simulation.operator(client).write_up(HALF);
            }
            simulation.run();
            let other = simulation.connect_management(Shape::WIDE, AWAY);
            simulation.operator(other).write_up(get("/api/none", "").as_bytes());
            simulation.pass_ms(1_600);
            assert_eq!(status(&ask(&mut simulation, other, "")), "401", "{most} places, round {round}");
        }
    }
}

/// A client that needs more than 8 s to read a long answer keeps its place while another one is idle.
#[test]
fn an_idle_client_is_closed_before_one_that_reads_its_answer() {
    let mut simulation = Simulation::new(Limits { management_clients_max: 2, ..small_limits() });
    let narrow = Shape { down_room: 300, ..Shape::WIDE };
    let reads = simulation.connect_management(narrow, HOME);
    simulation.operator(reads).write_up(get("/api/overview", GUEST).as_bytes());
    simulation.pass_ms(9_000);
    let idle = simulation.connect_management(Shape::WIDE, HOME);
    assert_eq!(status(&ask(&mut simulation, idle, &get("/api/whoami", GUEST))), "200");
    let other = simulation.connect_management(Shape::WIDE, AWAY);
    assert_eq!(status(&ask(&mut simulation, other, &get("/api/none", ""))), "401");
    assert_eq!((is_held(&simulation, reads), is_held(&simulation, idle)), (true, false));
}

/// A request that is arriving, and an answer that is being read, are not interrupted at once.
#[test]
fn a_client_that_has_just_begun_keeps_its_place_for_a_moment() {
    let mut simulation = Simulation::new(Limits { management_clients_max: 1, ..small_limits() });
    let slow = simulation.connect_management(Shape::WIDE, HOME);
    simulation.operator(slow).write_up(HALF);
    simulation.run();
    let other = simulation.connect_management(Shape::WIDE, AWAY);
    simulation.operator(other).write_up(get("/api/none", "").as_bytes());
    simulation.pass_ms(1_000);
    assert!(is_held(&simulation, slow) && simulation.operator(other).unread() == 0);
    simulation.pass_ms(1_000);
    assert!(!is_held(&simulation, slow));
    assert_eq!(status(&ask(&mut simulation, other, "")), "401");
}

/// A user that no password matches.
const NOBODYS: &str = r#"{"password_hash":"","hashing_algorithm":"leveret_password_hashing_pbkdf2_sha256",
    "tags":"administrator"}"#;

/// Returns a token for guest, as a header line.
fn log_in(simulation: &mut Simulation, client: usize) -> String {
    log_in_as(simulation, client, GUEST)
}

fn post_login(who: &str) -> String {
    format!("POST /api/leveret/login HTTP/1.1\r\nHost: localhost:15672\r\nContent-Length: 0\r\n{who}\r\n")
}

/// Returns a token for the user of this login line.
fn log_in_as(simulation: &mut Simulation, client: usize, who: &str) -> String {
    let answer = ask(simulation, client, &post_login(who));
    assert_eq!(status(&answer), "201", "{answer}");
    let (_, token) = answer.split_once("{\"token\":\"").expect("a token");
    assert_eq!(token.find('"'), Some(64), "of 256 bits");
    format!("Authorization: Bearer {}\r\n", &token[..64])
}

#[test]
fn a_token_is_valid_until_logout_idle_timeout_maximum_age_or_a_new_password() {
    let mut simulation = Simulation::new(small_limits());
    let client = simulation.connect_management(Shape::WIDE, HOME);
    let whoami = |simulation: &mut Simulation, token: &str| {
        let client = simulation.connect_management(Shape::WIDE, HOME);
        status(&ask(simulation, client, &get("/api/whoami", token))).to_string()
    };
    let [first, second] = [(); 2].map(|()| log_in(&mut simulation, client));
    assert_ne!(first, second);
    assert_eq!([&first, &second].map(|token| whoami(&mut simulation, token)), ["200", "200"]);
    let away = simulation.connect_management(Shape::WIDE, AWAY);
    assert_eq!(
        status(&ask(&mut simulation, away, &get("/api/whoami", &first))),
        "401",
        "guest is not let in there"
    );
    let change = |verb: &str, path: &str, lines: &str, body: &str| {
        let length = body.len();
        format!(
            "{verb} {path} HTTP/1.1\r\nHost: localhost:1\r\nContent-Length: {length}\r\n{lines}\r\n{body}"
        )
    };
    assert_eq!(
        status(&ask(&mut simulation, client, &change("POST", "/api/leveret/login", &first, ""))),
        "404"
    );
    assert_eq!(
        status(&ask(&mut simulation, client, &change("DELETE", "/api/leveret/login", &first, ""))),
        "204"
    );
    assert_eq!([&first, &second].map(|token| whoami(&mut simulation, token)), ["401", "200"]);
    simulation.pass_ms(29 * 60 * 1000);
    assert_eq!(whoami(&mut simulation, &second), "200", "it is in use");
    simulation.pass_ms(31 * 60 * 1000);
    assert_eq!(whoami(&mut simulation, &second), "401", "it was not used");
    let client = simulation.connect_management(Shape::WIDE, HOME);
    let third = log_in(&mut simulation, client);
    for _ in 0..25 {
        assert_eq!(whoami(&mut simulation, &third), "200");
        simulation.pass_ms(29 * 60 * 1000);
    }
    assert_eq!(whoami(&mut simulation, &third), "401", "more than twelve hours");
    let client = simulation.connect_management(Shape::WIDE, HOME);
    let fourth = log_in(&mut simulation, client);
    let other = change("PUT", "/api/users/guest", GUEST, NOBODYS);
    let changed = ask(&mut simulation, client, &other);
    assert!(status(&changed).starts_with("20"), "{changed}");
    assert_eq!(whoami(&mut simulation, &fourth), "401", "the password is another one");
}

#[test]
fn the_seventeenth_token_replaces_the_least_recently_used_one() {
    let mut simulation = Simulation::new(small_limits());
    let client = simulation.connect_management(Shape::WIDE, HOME);
    let mut tokens = Vec::new();
    for _ in 0..17 {
        tokens.push(log_in(&mut simulation, client));
        simulation.pass_ms(1_000);
    }
    let good =
        tokens.iter().map(|token| status(&ask(&mut simulation, client, &get("/api/whoami", token))) == "200");
    let good: Vec<bool> = good.collect();
    assert_eq!(good.iter().position(|good| !good), Some(0));
    assert_eq!(good.iter().filter(|good| **good).count(), 16);
}

/// Returns Base64 of a text that needs no padding.
pub(super) fn base64(text: &str) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits = text
        .as_bytes()
        .chunks(3)
        .map(|three| three.iter().fold(0, |bits, byte| bits << 8 | usize::from(*byte)));
    bits.flat_map(|bits| [18, 12, 6, 0].map(|shift| char::from(LETTERS[bits >> shift & 63]))).collect()
}

/// Creates users u10, u11 and so on with these tags. Returns their login lines.
fn crowd(
    simulation: &mut Simulation,
    client: usize,
    tags: &str,
    range: core::ops::Range<u32>,
) -> Vec<String> {
    let log_ins = range.map(|number| {
        let body = format!(r#"{{"password":"xy","tags":"{tags}"}}"#);
        let line = format!("PUT /api/users/u{number} HTTP/1.1\r\nHost: localhost:1\r\n{GUEST}");
        let request = format!("{line}Content-Length: {}\r\n\r\n{body}", body.len());
        assert_eq!(status(&ask(simulation, client, &request)), "201");
        format!("Authorization: Basic {}\r\n", base64(&format!("u{number}:xy")))
    });
    log_ins.collect()
}

#[test]
fn twenty_users_displace_neither_an_administrators_token_nor_each_others() {
    let mut simulation = Simulation::new(Limits { users_max: 64, ..small_limits() });
    let client = simulation.connect_management(Shape::WIDE, HOME);
    let logins = crowd(&mut simulation, client, "management", 10..30);
    let whoami = |simulation: &mut Simulation, token: &str| {
        status(&ask(simulation, client, &get("/api/whoami", token))).to_string()
    };
    let guests = log_in(&mut simulation, client);
    let tokens: Vec<String> = logins[..15]
        .iter()
        .map(|login| {
            simulation.pass_ms(1_000);
            log_in_as(&mut simulation, client, login)
        })
        .collect();
    for login in &logins[15..] {
        let refused = ask(&mut simulation, client, &post_login(login));
        assert_eq!(status(&refused), "403", "all have one each: {refused}");
        assert!(refused.contains("16 users are logged in"), "{refused}");
    }
    assert_eq!(whoami(&mut simulation, &guests), "200", "the administrator stays");
    assert!(tokens.iter().all(|token| whoami(&mut simulation, token) == "200"), "and all others");
    // A user who has a token already replaces it.
    let anew = log_in_as(&mut simulation, client, &logins[3]);
    assert_eq!(
        [&tokens[3], &anew, &tokens[0]].map(|token| whoami(&mut simulation, token)),
        ["401", "200", "200"]
    );
    // An administrator replaces the least recently used token of another administrator.
    let other = crowd(&mut simulation, client, "administrator", 30..31);
    simulation.pass_ms(1_000);
    let used = [&anew, &guests].into_iter().chain(&tokens[1..3]).chain(&tokens[4..]);
    assert!(used.into_iter().all(|token| whoami(&mut simulation, token) == "200"));
    let others = log_in_as(&mut simulation, client, &other[0]);
    assert_eq!(whoami(&mut simulation, &others), "200");
    assert_eq!(
        [&guests, &tokens[0], &tokens[1]].map(|token| whoami(&mut simulation, token)),
        ["200", "401", "200"]
    );
}

#[test]
fn a_new_user_displaces_a_users_second_token_but_never_the_last() {
    let mut simulation = Simulation::new(Limits { users_max: 64, ..small_limits() });
    let client = simulation.connect_management(Shape::WIDE, HOME);
    let logins = crowd(&mut simulation, client, "management", 10..24);
    let guests = [(); 3].map(|()| {
        simulation.pass_ms(1_000);
        log_in(&mut simulation, client)
    });
    let mut tokens: Vec<String> =
        logins[..13].iter().map(|login| log_in_as(&mut simulation, client, login)).collect();
    tokens.push(log_in_as(&mut simulation, client, &logins[13]));
    let good = |simulation: &mut Simulation, token: &String| {
        status(&ask(simulation, client, &get("/api/whoami", token))) == "200"
    };
    assert_eq!(guests.each_ref().map(|token| good(&mut simulation, token)), [false, true, true]);
    assert!(tokens.iter().all(|token| good(&mut simulation, token)));
    // A user who has a token replaces it, although others have more.
    let anew = log_in_as(&mut simulation, client, &logins[0]);
    assert_eq!(guests.each_ref().map(|token| good(&mut simulation, token)), [false, true, true]);
    assert_eq!([&tokens[0], &anew].map(|token| good(&mut simulation, token)), [false, true]);
}

/// The user ann with the password `a`.
pub(super) const ANN: &str = "Authorization: Basic YW5uOmE=\r\n";

#[test]
fn a_users_tokens_displace_only_each_other_and_end_with_the_user() {
    let mut simulation = Simulation::new(small_limits());
    let client = simulation.connect_management(Shape::WIDE, HOME);
    let change = |simulation: &mut Simulation, verb: &str, body: &str| {
        let length = body.len();
        let line = format!("{verb} /api/users/ann HTTP/1.1\r\nHost: localhost:1\r\n{GUEST}");
        let answer = ask(simulation, client, &format!("{line}Content-Length: {length}\r\n\r\n{body}"));
        assert!(status(&answer).starts_with("20"), "{answer}");
    };
    change(&mut simulation, "PUT", r#"{"password":"a","tags":"management"}"#);
    let token = log_in_as(&mut simulation, client, ANN);
    for _ in 0..20 {
        log_in(&mut simulation, client);
    }
    assert_eq!(status(&ask(&mut simulation, client, &get("/api/whoami", &token))), "200");
    // A new user of the same name is a different user, even with the same password.
    let ann = ask(&mut simulation, client, &get("/api/users/ann", GUEST));
    let (_, hash) = ann.split_once("\"password_hash\":\"").expect("a hash");
    let hash = &hash[..hash.find('"').unwrap()];
    change(&mut simulation, "DELETE", "");
    change(&mut simulation, "PUT", &format!(r#"{{"password_hash":"{hash}","tags":"administrator"}}"#));
    assert_eq!(status(&ask(&mut simulation, client, &get("/api/whoami", ANN))), "200", "the same password");
    assert_eq!(status(&ask(&mut simulation, client, &get("/api/whoami", &token))), "401");
}

#[test]
fn expect_100_continue_is_answered_once() {
    let mut simulation = Simulation::new(small_limits());
    let client = simulation.connect_management(Shape::WIDE, HOME);
    let head = format!(
        "PUT /api/queues/%2F/q HTTP/1.1\r\nHost: localhost\r\n{GUEST}Content-Length: 16\r\n\
         Expect: 100-Continue\r\n\r\n"
    );
    assert_eq!(ask(&mut simulation, client, &head), "HTTP/1.1 100 Continue\r\n\r\n");
    assert_eq!(ask(&mut simulation, client, "{\"durable\""), "", "it has been told");
    assert_eq!(status(&ask(&mut simulation, client, ":true}")), "201");
    // A client that sends its body at once gets no 100 answer; one with a too long body is refused instead.
    assert_eq!(status(&ask(&mut simulation, client, &format!("{head}{{\"durable\":true}}"))), "204");
    let long = head.replace("Length: 16", "Length: 999999");
    assert_eq!(status(&ask(&mut simulation, client, &long)), "413");
}

/// A request that was sent during a pause of the process is read before the client counts as idle.
#[test]
fn a_request_that_was_sent_during_a_pause_is_answered() {
    let mut simulation = Simulation::new(small_limits());
    let client = simulation.connect_management(Shape::WIDE, HOME);
    assert_eq!(status(&ask(&mut simulation, client, &get("/api/whoami", GUEST))), "200");
    simulation.operator(client).write_up(get("/api/overview", GUEST).as_bytes());
    simulation.pause_ms(600_000);
    assert_eq!(status(&ask(&mut simulation, client, "")), "200");
    // A client without a request is idle.
    simulation.pause_ms(600_000);
    simulation.pass_ms(1);
    assert!(!is_held(&simulation, client));
}
