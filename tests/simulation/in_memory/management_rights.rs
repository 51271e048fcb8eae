//! Permissions of the management API for every tag on every path, and attacks over HTTP.
//!
//! The attacks are requests with an unclear end, names that would become headers, and paths that lead
//! elsewhere.

use super::management::{GUEST, ask, get, status};
use leveret_test_support::simulated_server::{Shape, Simulation, small_limits};

const HOME: [u8; 4] = [127, 0, 0, 1];

/// Users by a letter, which is also their password; each with a tag, and whether it may enter a virtual host.
const USERS: [(char, &str, bool); 6] = [
    ('n', "", true),
    ('m', "management", false),
    ('v', "management", true),
    ('p', "policymaker", true),
    ('w', "monitoring", false),
    ('a', "administrator", true),
];
/// The node name of the broker in these tests.
const NODE: &str = "leveret@here";
/// All users that may log in.
const ALL: &str = "mvpwa";

fn login(user: char) -> String {
    let letters = match user {
        'n' => "bjpu",
        'm' => "bTpt",
        'v' => "djp2",
        'p' => "cDpw",
        'w' => "dzp3",
        'a' => "YTph",
        _ => "",
    };
    format!("Authorization: Basic {letters}\r\n")
}

fn say(simulation: &mut Simulation, client: usize, login: &str, line: &str, body: &str) -> String {
    let length = body.len();
    let head = format!("{line} HTTP/1.1\r\nHost: localhost:15672\r\n{login}Content-Length: {length}\r\n\r\n");
    ask(simulation, client, &(head + body))
}

/// Returns a simulation with these users, and a client.
fn peopled() -> (Simulation, usize) {
    let mut simulation = Simulation::new(small_limits());
    let client = simulation.connect_management(Shape::WIDE, HOME);
    for (user, tags, may_enter) in USERS {
        let body = format!(r#"{{"password":"{user}","tags":"{tags}"}}"#);
        let made = say(&mut simulation, client, GUEST, &format!("PUT /api/users/{user}"), &body);
        assert_eq!(status(&made), "201", "{made}");
        if may_enter {
            let body = r#"{"configure":".*","write":".*","read":".*"}"#;
            let line = format!("PUT /api/permissions/%2F/{user}");
            assert_eq!(status(&say(&mut simulation, client, GUEST, &line, body)), "201");
        }
    }
    assert_eq!(status(&say(&mut simulation, client, GUEST, "PUT /api/queues/%2F/q", "{}")), "201");
    (simulation, client)
}

/// Requests, each with the users that are not refused. They create nothing, so that all users can send them
/// in turn.
const ASKED: &[(&str, &str)] = &[
    ("GET /api/whoami", ALL),
    ("GET /api/overview", ALL),
    ("GET /api/extensions", ALL),
    ("GET /api/cluster-name", ALL),
    ("GET /api/leveret/alarms", ALL),
    ("GET /api/health/checks/alarms", ALL),
    ("GET /api/health/checks/port-listener/5672", ALL),
    ("GET /api/healthchecks/node", ALL),
    ("GET /api/queues", ALL),
    ("GET /api/connections", ALL),
    ("GET /api/channels", ALL),
    ("GET /api/consumers", ALL),
    ("GET /api/vhosts", ALL),
    ("GET /api/policies", ALL),
    ("GET /api/operator-policies", ALL),
    ("GET /api/vhost-limits", ALL),
    ("GET /api/consumers/%2F", ALL),
    ("DELETE /api/connections/none", ALL),
    ("GET /api/nodes", "wa"),
    ("GET /api/leveret/memory", "wa"),
    ("GET /api/leveret/bridges", "wa"),
    ("GET /api/user-limits", "wa"),
    ("GET /metrics", "wa"),
    ("GET /metrics/per-object", "wa"),
    ("GET /metrics/detailed?family=queue_metrics", "wa"),
    ("GET /api/vhost-limits/%2F", "vpwa"),
    ("GET /api/vhosts/%2F/connections", "vpa"),
    ("GET /api/vhosts/%2F/channels", "vpa"),
    ("GET /api/queues/%2F", "vpa"),
    ("GET /api/queues/%2F/q", "vpa"),
    ("GET /api/queues/%2F/q/bindings", "vpa"),
    ("GET /api/exchanges/%2F", "vpa"),
    ("GET /api/exchanges/%2F/amq.topic", "vpa"),
    ("GET /api/exchanges/%2F/amq.topic/bindings/source", "vpa"),
    ("GET /api/bindings/%2F", "vpa"),
    ("GET /api/bindings/%2F/e/amq.default/q/q", "vpa"),
    ("GET /api/bindings/%2F/e/amq.default/q/q/q", "vpa"),
    ("GET /api/policies/%2F", "vpa"),
    ("GET /api/operator-policies/%2F", "vpa"),
    ("GET /api/aliveness-test/%2F", "vpa"),
    ("GET /api/leveret/queues/%2F/q/messages", "vpa"),
    ("POST /api/leveret/queues/%2F/q/messages/move", "vpa"),
    ("POST /api/leveret/exchanges/%2F/amq.topic/route", "vpa"),
    ("POST /api/queues/%2F/q/get", "vpa"),
    ("PUT /api/queues/%2F/q", "vpa"),
    ("DELETE /api/queues/%2F/none", "vpa"),
    ("DELETE /api/queues/%2F/q/contents", "vpa"),
    ("PUT /api/exchanges/%2F/amq.direct", "vpa"),
    ("DELETE /api/exchanges/%2F/none", "vpa"),
    ("POST /api/exchanges/%2F/amq.direct/publish", "vpa"),
    ("POST /api/bindings/%2F/e/none/q/none", "vpa"),
    ("DELETE /api/bindings/%2F/e/none/q/none/~", "vpa"),
    ("GET /api/policies/%2F/none", "pa"),
    ("PUT /api/policies/%2F/x", "pa"),
    ("DELETE /api/policies/%2F/none", "pa"),
    ("GET /api/parameters", "pa"),
    ("GET /api/parameters/shovel", "pa"),
    ("GET /api/parameters/shovel/%2F", "pa"),
    ("GET /api/parameters/shovel/%2F/none", "pa"),
    ("PUT /api/parameters/shovel/%2F/x", "pa"),
    ("DELETE /api/parameters/shovel/%2F/none", "pa"),
    ("GET /api/global-parameters", "pa"),
    ("GET /api/global-parameters/none", "pa"),
    ("PUT /api/global-parameters/x", "pa"),
    ("DELETE /api/global-parameters/none", "pa"),
    ("GET /api/leveret/mqtt-sessions", "wa"),
    ("GET /api/leveret/mqtt-sessions/%2F", "wa"),
    ("GET /api/leveret/mqtt-sessions/%2F/none", "wa"),
    ("DELETE /api/leveret/mqtt-sessions/%2F/none", "a"),
    ("GET /api/leveret/retained", ALL),
    ("GET /api/leveret/retained/%2F", "vpa"),
    ("GET /api/leveret/retained/%2F/none", "a"),
    ("DELETE /api/leveret/retained/%2F/none", "a"),
    ("GET /api/vhosts/%2F", "a"),
    ("POST /api/queues/%2F/q/actions", "a"),
    ("DELETE /api/shovels/vhost/%2F/none", "a"),
    ("GET /api/operator-policies/%2F/none", "a"),
    ("PUT /api/operator-policies/%2F/x", "a"),
    ("DELETE /api/operator-policies/%2F/none", "a"),
    ("GET /api/feature-flags", "a"),
    ("GET /api/users", "a"),
    ("GET /api/users/", "a"),
    ("GET /api/%75sers", "a"),
    ("HEAD /api/users", "a"),
    ("GET /api/users/a", "a"),
    ("GET /api/users/without-permissions", "a"),
    ("GET /api/users/a/permissions", "a"),
    ("GET /api/users/a/topic-permissions", "a"),
    ("GET /api/permissions", "a"),
    ("GET /api/permissions/%2F/a", "a"),
    ("GET /api/topic-permissions", "a"),
    ("GET /api/topic-permissions/%2F/none", "a"),
    ("GET /api/vhosts/%2F/permissions", "a"),
    ("GET /api/vhosts/%2F/topic-permissions", "a"),
    ("GET /api/definitions", "a"),
    ("GET /api/definitions/%2F", "a"),
    ("POST /api/definitions", "a"),
    ("POST /api/definitions/%2F", "a"),
    ("POST /api/definitions?dry_run=true", "a"),
    ("POST /api/definitions/%2F?dry_run=true", "a"),
    ("PUT /api/users/x", "a"),
    ("DELETE /api/users/none", "a"),
    ("POST /api/users/bulk-delete", "a"),
    ("DELETE /api/vhosts/none", "a"),
    ("PUT /api/permissions/%2F/a", "a"),
    ("DELETE /api/permissions/%2F/none", "a"),
    ("PUT /api/topic-permissions/%2F/a", "a"),
    ("DELETE /api/topic-permissions/%2F/none", "a"),
    ("PUT /api/vhost-limits/%2F/max-queues", "a"),
    ("DELETE /api/vhost-limits/%2F/max-queues", "a"),
    ("PUT /api/user-limits/a/max-channels", "a"),
    ("DELETE /api/user-limits/a/max-channels", "a"),
    ("POST /api/leveret/bridges/none/pause", "a"),
];

#[test]
fn every_path_is_open_to_the_tags_that_it_is_for_and_to_no_other() {
    let (mut simulation, client) = peopled();
    let names = [NODE, "leveret@here/memory", "rabbit@here", "rabbit@here/memory"];
    let of_node = names.map(|name| format!("GET /api/nodes/{name}"));
    let of_node = of_node.iter().map(|line| (line.as_str(), "wa"));
    let attempts = format!("GET /api/auth/attempts/{NODE}");
    // An empty list of objects to delete is valid; every other request lacks something.
    let body = r#"{"users":[]}"#;
    for (line, meant) in ASKED.iter().copied().chain(of_node).chain([(attempts.as_str(), "wa")]) {
        let nobody = say(&mut simulation, client, "", line, body);
        assert_eq!(status(&nobody), "401", "{line} without a login: {nobody}");
        let strange =
            "Authorization: Bearer 0000000000000000000000000000000000000000000000000000000000000000\r\n";
        assert_eq!(
            status(&say(&mut simulation, client, strange, line, body)),
            "401",
            "{line} with any token"
        );
        for (user, ..) in USERS {
            let said = say(&mut simulation, client, &login(user), line, body);
            let is_refused = status(&said) == "401";
            assert_ne!(meant.contains(user), is_refused, "{line} by {user}: {said}");
            if !meant.contains(user) {
                assert!(said.contains("not_authorised") || line.starts_with("HEAD"), "{line}: {said}");
                assert!(!said.contains("password_hash") && !said.contains("rabbitmq_"), "{line}: {said}");
            } else if line.starts_with("GET") && !line.contains("none") && !line.contains("health") {
                assert_eq!(status(&said), "200", "{line} by {user}: {said}");
            }
        }
    }
    for other in ["rabbit@there", "rabbit@", "here", "leveret@", "other@here"] {
        let said = say(&mut simulation, client, GUEST, &format!("GET /api/nodes/{other}"), "");
        assert_eq!(status(&said), "404", "{other}: {said}");
    }
    let vhosts = say(&mut simulation, client, GUEST, "GET /api/vhosts?columns=name", "");
    assert_eq!(vhosts.matches("\"name\"").count(), 1, "{vhosts}");
    let users = say(&mut simulation, client, GUEST, "GET /api/users?columns=name", "");
    assert_eq!(users.matches("\"name\"").count(), USERS.len() + 1 + 1, "guest, and x: {users}");
}

#[test]
fn users_without_the_monitoring_tag_see_only_their_own_consumers_and_clients() {
    let (mut simulation, client) = peopled();
    let theirs = simulation.open(&[1]);
    simulation.consume(theirs, 1, "q", "secret-tag", true);
    simulation.run();
    for (user, ..) in &USERS[1..] {
        let is_monitor = matches!(user, 'w' | 'a');
        for path in ["consumers", "consumers/%2F", "channels", "connections", "queues/%2F/q"] {
            let said = say(&mut simulation, client, &login(*user), &format!("GET /api/{path}"), "");
            let shows = said.contains("secret-tag") || said.contains("127.0.0.1") || said.contains(" -> ");
            assert!(is_monitor || !shows, "{path} by {user}: {said}");
        }
        let said = say(&mut simulation, client, &login(*user), "GET /api/consumers", "");
        assert_eq!(said.contains("secret-tag"), is_monitor, "{said}");
        // Objects of a virtual host are visible to users who may enter it, and to administrators.
        for path in ["queues", "exchanges", "bindings"] {
            let said = say(&mut simulation, client, &login(*user), &format!("GET /api/{path}"), "");
            assert_eq!(
                said.contains(r#""vhost":"/""#),
                !matches!(user, 'm' | 'w'),
                "{path} by {user}: {said}"
            );
        }
    }
}

/// Bytes behind the first request never become a request of their own. A client whose request has an unclear
/// end is disconnected.
#[test]
fn no_request_is_smuggled_behind_another_one() {
    let hidden =
        format!("PUT /api/vhosts/hidden HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n{GUEST}\r\n");
    let post = |lines: &str, body: &str| {
        format!(
            "POST /api/queues/%2F/q/get HTTP/1.1\r\nHost: localhost\r\n{GUEST}{lines}\r\n\r\n{body}{hidden}"
        )
    };
    let plain = |first: &str| format!("{first}\r\nHost: localhost\r\n{GUEST}\r\n{hidden}");
    let many = "X: y\r\n".repeat(40);
    let requests = [
        (post("Content-Length: 5\r\nTransfer-Encoding: chunked", "0\r\n\r\n"), "400"),
        (post("Transfer-Encoding: chunked\r\nContent-Length: 0", "0\r\n\r\n"), "400"),
        (post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "0\r\n\r\n"), "400"),
        (post("Transfer-Encoding: chunked, chunked", "0\r\n\r\n"), "501"),
        (post("Transfer-Encoding: gzip, chunked", "0\r\n\r\n"), "501"),
        (post("Transfer-Encoding: chunked", "0\n\n"), "400"),
        (post("Transfer-Encoding: chunked", "2\n{}\n0\r\n\r\n"), "400"),
        (post("Transfer-Encoding: chunked", "2\r\n{}0\r\n\r\n"), "400"),
        (post("Transfer-Encoding: chunked", "0x2\r\n{}\r\n0\r\n\r\n"), "400"),
        (post("Transfer-Encoding: chunked", "-2\r\n{}\r\n0\r\n\r\n"), "400"),
        (post("Transfer-Encoding: chunked", "\r\n0\r\n\r\n"), "400"),
        (post("Transfer-Encoding: chunked", "100000002\r\n{}\r\n0\r\n\r\n"), "413"),
        (post("Transfer-Encoding: chunked", "2;x=\n\r\n{}\r\n0\r\n\r\n"), "400"),
        (post("Transfer-Encoding: chunked", "0\r\n\r\n").replacen("HTTP/1.1", "HTTP/1.0", 1), "400"),
        (post("Transfer-Encoding: identity\r\nContent-Length: 0", ""), "501"),
        (post("Transfer-Encoding:\x0bchunked", "0\r\n\r\n"), "400"),
        (post("Transfer-Encoding : chunked", "0\r\n\r\n"), "400"),
        (post("Content-Length: 0\r\nContent-Length: 999", ""), "400"),
        (post("Content-Length: 0\r\nContent-Length: 0", ""), "400"),
        (post("Content-Length: 0, 0", ""), "400"),
        (post("Content-Length: 0x2", "{}"), "400"),
        (post("Content-Length: -1", ""), "400"),
        (post("Content-Length: 1 0", ""), "400"),
        (post("Content-Length : 0", ""), "400"),
        (post("X: y\r\n Content-Length: 999", ""), "400"),
        (post("X: y\r\n\tmore", ""), "400"),
        (post("X: y\rContent-Length: 999", ""), "400"),
        (post("X: y\0z", ""), "400"),
        (post("\0X: y", ""), "400"),
        (post(": y", ""), "400"),
        (post("X", ""), "400"),
        (post(&many, ""), "400"),
        (post("Content-Length: 99999999", ""), "413"),
        (plain("GET http://localhost@evil/api/whoami HTTP/1.1"), "400"),
        (plain("GET ftp://localhost/api/whoami HTTP/1.1"), "400"),
        (plain("GET * HTTP/1.2"), "400"),
        (plain("GET /api/who ami HTTP/1.1"), "400"),
        (plain("GET  /api/whoami HTTP/1.1"), "400"),
        (plain("GET /api/whoami HTTP/1.2"), "400"),
        (plain("GET /api/whoami HTTP/2.0"), "400"),
        (plain("GET /api/whoami"), "400"),
        (plain("get /api/whoami HTTP/1.1"), "405"),
        (plain("TRACE /api/whoami HTTP/1.1"), "405"),
        (plain("PATCH /api/vhosts/%2F HTTP/1.1"), "405"),
        (plain("CONNECT localhost:5672 HTTP/1.1"), "400"),
        (format!("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{hidden}"), "400"),
        (format!("AMQP\0\0\x09\x01{hidden}"), "400"),
    ];
    let mut simulation = Simulation::new(small_limits());
    for (request, wanted) in requests {
        for shape in [Shape::WIDE, Shape::fragments(1)] {
            let client = simulation.connect_management(shape, HOME);
            let said = ask(&mut simulation, client, &request);
            assert_eq!(status(&said), wanted, "{request:?}: {said}");
            assert_eq!(said.matches("HTTP/1.1 ").count(), 1, "one answer and no more: {request:?}: {said}");
            assert!(!simulation.operator(client).is_held, "disconnected: {request:?}");
        }
    }
    let client = simulation.connect_management(Shape::WIDE, HOME);
    let vhosts = ask(&mut simulation, client, &get("/api/vhosts/hidden", GUEST));
    assert_eq!(status(&vhosts), "404", "{vhosts}");
}

#[test]
fn a_hundred_requests_at_once_are_answered_in_their_order() {
    for shape in [Shape::WIDE, Shape::fragments(7)] {
        let mut simulation = Simulation::new(small_limits());
        let client = simulation.connect_management(shape, HOME);
        let paths: Vec<String> = (0..100).map(|number| format!("/api/vhosts/none-{number}")).collect();
        let mut all: String = paths.iter().map(|path| get(path, GUEST)).collect();
        all += &get("/api/whoami", &format!("{GUEST}Connection: keep-alive, Close\r\n"));
        all += &get("/api/overview", GUEST);
        let said = ask(&mut simulation, client, &all) + &ask(&mut simulation, client, "");
        assert_eq!(said.matches("HTTP/1.1 404").count(), 100, "{said}");
        assert!(said.ends_with("\"is_internal_user\":true}"), "it was to be the last: {said}");
        assert!(!simulation.operator(client).is_held);
    }
}

#[test]
fn no_path_leads_to_a_file_and_no_name_becomes_a_header() {
    let mut simulation = Simulation::new(small_limits());
    for path in [
        "/..",
        "/../",
        "/../../etc/passwd",
        "/..%2f..%2fetc%2fpasswd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/./app.js",
        "//app.js",
        "/app.js/",
        "/app.js%00",
        "/app.js%00.css",
        "/app.js/../index.html",
        "/%2Fapp.js",
        "/web/app.js",
        "/app.js.gz",
        "/API/whoami",
        "/api%2Fwhoami",
        "/\\api\\whoami",
        "/index.html;x",
        "/favicon.ico",
    ] {
        let client = simulation.connect_management(Shape::WIDE, HOME);
        let said = ask(&mut simulation, client, &get(path, GUEST));
        assert!(["400", "404"].contains(&status(&said)), "{path}: {said}");
        assert!(!said.contains("is_internal_user") && !said.contains("root:"), "{path}: {said}");
    }
    // `location` contains a key with line ends. Answers and refusals contain a name with line ends.
    let client = simulation.connect_management(Shape::WIDE, HOME);
    let name = "a%0D%0AX-Evil:%201%0D%0A%0D%0A%3Cscript%3E";
    let key = r#"{"routing_key":"k\r\nX-Evil: 1\r\n\r\n"}"#;
    for (line, body) in [
        (format!("PUT /api/queues/%2F/{name}"), "{}"),
        (format!("POST /api/bindings/%2F/e/amq.direct/q/{name}"), key),
        (format!("GET /api/queues/%2F/{name}"), ""),
        (format!("GET /api/queues/%2F/{name}x"), ""),
        (format!("GET /api/bindings/%2F/e/none/q/{name}/x"), ""),
        (format!("PUT /api/queues/%2F/{name}"), r#"{"durable":true}"#),
        (format!("PUT /api/exchanges/%2F/x?{name}"), r#"{"type":"k\r\nX-Evil: 1"}"#),
        (format!("DELETE /api/vhosts/{name}"), ""),
        (format!("PUT /api/users/{name}"), r#"{"password":"a","tags":"k\r\nX-Evil: 1"}"#),
        ("GET /api/queues?columns=name".to_string(), ""),
        ("GET /api/users".to_string(), ""),
        ("GET /metrics/per-object".to_string(), ""),
    ] {
        let said = say(&mut simulation, client, GUEST, &line, body);
        let head = &said[..said.find("\r\n\r\n").expect("a head")];
        assert!(!head.to_lowercase().contains("\nx-evil"), "{line}: {said}");
        assert!(!said.contains("\nX-Evil") && said.matches("HTTP/1.1 ").count() == 1, "{line}: {said}");
        assert!(head.contains("nosniff") && head.contains("default-src 'none'"), "{line}: {said}");
    }
}

/// A client may ask for the methods of a path before it logs in. The answer does not depend on objects or users.
#[test]
fn the_methods_of_a_path_need_no_login() {
    let mut simulation = Simulation::new(small_limits());
    let client = simulation.connect_management(Shape::WIDE, HOME);
    for (target, allowed) in [
        ("/api/overview", "HEAD, GET, OPTIONS"),
        ("/api/queues/%2F/q", "HEAD, GET, PUT, DELETE, OPTIONS"),
        ("/api/queues/none/q/", "HEAD, GET, PUT, DELETE, OPTIONS"),
        ("/api/exchanges/%2F/x/publish", "POST, OPTIONS"),
        ("/api/nowhere", "OPTIONS"),
        ("*", "HEAD, GET, OPTIONS"),
        ("http://localhost:15672/api/vhosts", "HEAD, GET, OPTIONS"),
    ] {
        let said =
            ask(&mut simulation, client, &format!("OPTIONS {target} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        assert_eq!(status(&said), "200", "{target}: {said}");
        assert!(said.contains(&format!("\r\nallow: {allowed}\r\n")), "{target}: {said}");
        assert!(!said.contains("access-control"), "pages of other origins get no permission: {said}");
    }
    let said = ask(
        &mut simulation,
        client,
        &format!("POST /api/overview HTTP/1.1\r\nHost: localhost\r\n{GUEST}\r\n"),
    );
    assert_eq!((status(&said), said.contains("\r\nallow: HEAD, GET, OPTIONS\r\n")), ("405", true), "{said}");
    // The host of an absolute target counts, not the header.
    for (host, wanted) in [("localhost", "200"), ("evil.org", "403")] {
        let head = format!("GET http://{host}/api/whoami HTTP/1.1\r\nHost: localhost\r\n{GUEST}\r\n");
        let said = ask(&mut simulation, client, &head);
        assert_eq!(status(&said), wanted, "{host}: {said}");
    }
    let said = ask(&mut simulation, client, "GET /api/auth HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(said.contains(r#""oauth_enabled":false"#), "{said}");
}

#[test]
fn connections_of_a_user_are_listed_and_closed_with_a_reason() {
    let mut simulation = Simulation::new(small_limits());
    let amqp = simulation.open(&[1]);
    let client = simulation.connect_management(Shape::WIDE, HOME);
    let shown = say(&mut simulation, client, GUEST, "GET /api/connections/username/guest", "");
    assert!(shown.contains(r#""user":"guest""#), "{shown}");
    let none = say(&mut simulation, client, GUEST, "GET /api/connections/username/nobody", "");
    assert_eq!((status(&none), none.contains("\"user\"")), ("200", false), "{none}");
    let lines = format!("{GUEST}X-Reason: maintenance\r\n");
    let done = say(&mut simulation, client, &lines, "DELETE /api/connections/username/guest", "");
    assert_eq!(status(&done), "204", "{done}");
    let heard = simulation.shown(amqp).concat();
    assert!(heard.contains("ConnectionClose") && heard.contains("320"), "{heard}");
    assert!(heard.contains("CONNECTION_FORCED - maintenance"), "{heard}");
}
