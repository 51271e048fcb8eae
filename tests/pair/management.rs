//! Clients of the management API: who is let in, what a login costs, and how long anybody may take.

use super::world::{Shape, World, small_limits};

const HOME: [u8; 4] = [127, 0, 0, 1];
const AWAY: [u8; 4] = [192, 0, 2, 7];
const GUEST: &str = "Authorization: Basic Z3Vlc3Q6Z3Vlc3Q=\r\n";
const WRONG: &str = "Authorization: Basic Z3Vlc3Q6d3Jvbmc=\r\n";

fn get(path: &str, lines: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost:15672\r\n{lines}\r\n")
}

/// Says something and hears what comes of it.
fn ask(world: &mut World, client: usize, request: &str) -> String {
    world.operator(client).write_up(request.as_bytes());
    world.run();
    // A password is checked by a helper, which takes its time.
    for _ in 0..20 {
        world.pass_ms(50);
    }
    heard(world, client)
}

fn heard(world: &World, client: usize) -> String {
    let mut bytes = Vec::new();
    world.operator(client).read_down(usize::MAX, &mut bytes);
    String::from_utf8(bytes).expect("answers are text")
}

fn status(answer: &str) -> &str {
    answer.get(9..12).unwrap_or("none")
}

fn is_held(world: &World, client: usize) -> bool {
    world.operator(client).is_held
}

#[test]
fn nothing_is_told_without_a_login_and_guest_comes_from_this_machine_only() {
    for shape in [Shape::WIDE, Shape::fragments(1)] {
        let mut world = World::new(small_limits());
        let client = world.connect_management(shape, HOME);
        let none = ask(&mut world, client, &get("/api/whoami", ""));
        assert!(none.contains("www-authenticate: Basic") && none.contains("Login failed"), "{none}");
        let script = ask(&mut world, client, &get("/api/whoami", "X-Requested-With: page\r\n"));
        assert_eq!((status(&script), script.contains("www-authenticate")), ("401", false), "{script}");
        assert_eq!(status(&ask(&mut world, client, &get("/api/whoami", WRONG))), "401");
        let right = ask(&mut world, client, &get("/api/whoami", GUEST));
        assert!(right.contains("\"name\":\"guest\",\"tags\":[\"administrator\"]"), "{right}");
        let again = ask(&mut world, client, &get("/api/overview", GUEST));
        assert_eq!(status(&again), "200", "{again}");
        let control = ask(&mut world, client, &get("/api/ctl/environment", GUEST));
        assert_eq!(status(&control), "404", "that is of the control socket");
        let away = world.connect_management(shape, AWAY);
        assert_eq!(status(&ask(&mut world, away, &get("/api/whoami", GUEST))), "401");
    }
}

#[test]
fn other_names_and_other_pages_are_refused_with_every_header_that_keeps_scripts_out() {
    let mut world = World::new(small_limits());
    let client = world.connect_management(Shape::WIDE, HOME);
    let rebound = format!("GET /api/whoami HTTP/1.1\r\nHost: evil.example\r\n{GUEST}\r\n");
    let rebound = ask(&mut world, client, &rebound);
    assert_eq!(status(&rebound), "403");
    for header in ["content-security-policy: default-src 'none'; ", "nosniff", "no-referrer", "same-origin"] {
        assert!(rebound.contains(header), "{rebound}");
    }
    let put = |lines: &str| {
        format!("PUT /api/vhosts/v HTTP/1.1\r\nHost: localhost:1\r\nContent-Length: 0\r\n{GUEST}{lines}\r\n")
    };
    for page in ["Origin: http://evil.example\r\n", "Origin: null\r\n", "Sec-Fetch-Site: cross-site\r\n"] {
        assert_eq!(status(&ask(&mut world, client, &put(page))), "403", "{page}");
    }
    let none = ask(&mut world, client, &format!("GET /api/whoami HTTP/1.1\r\n{GUEST}\r\n"));
    assert_eq!(status(&none), "400", "no name at all");
}

#[test]
fn who_is_slow_with_a_request_or_an_answer_is_hung_up_on() {
    let mut world = World::new(small_limits());
    let [slow, idle] = [0, 1].map(|_| world.connect_management(Shape::WIDE, HOME));
    // An octet a second is progress, and no request.
    for letter in get("/api/whoami", GUEST).bytes().take(16) {
        world.operator(slow).write_up(&[letter]);
        world.pass_ms(1_000);
    }
    assert_eq!((is_held(&world, slow), is_held(&world, idle)), (false, true));
    world.pass_ms(60_000);
    assert!(!is_held(&world, idle), "a minute is long enough to say nothing in");
}

#[test]
fn who_says_its_last_with_a_login_hears_what_came_of_it() {
    let mut world = World::new(small_limits());
    let client = world.connect_management(Shape::WIDE, HOME);
    world.operator(client).write_up(get("/api/whoami", GUEST).as_bytes());
    world.operator(client).hang_up();
    assert_eq!(status(&ask(&mut world, client, "")), "200");
    assert!(!is_held(&world, client));
}

#[test]
fn who_is_idle_gives_its_place_to_who_waits_and_to_nobody_else() {
    let mut world = World::new(small_limits());
    let most = small_limits().management_clients_max as usize;
    let crowd: Vec<usize> = (0..most).map(|_| world.connect_management(Shape::WIDE, HOME)).collect();
    world.run();
    assert!(crowd.iter().all(|client| is_held(&world, *client)), "nobody waits");
    world.pass_ms(1_000);
    assert_eq!(status(&ask(&mut world, crowd[0], &get("/api/whoami", GUEST))), "200");
    let newcomer = world.connect_management(Shape::WIDE, AWAY);
    assert_eq!(status(&ask(&mut world, newcomer, &get("/api/none", ""))), "401");
    let held: Vec<bool> = crowd.iter().map(|client| is_held(&world, *client)).collect();
    assert_eq!(held.iter().filter(|held| !**held).count(), 1, "one of them went");
    assert!(held[0], "and not the one that asked last");
}
