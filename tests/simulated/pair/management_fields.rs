//! What stands in the management API's answers about one queue, one virtual host and what is defined there.

use super::management::GUEST;
use super::management_changes::{body, say, script};
use super::world::{Shape, World, small_limits};

const HOME: [u8; 4] = [127, 0, 0, 1];

#[test]
fn a_queue_tells_of_its_consumers_and_a_virtual_host_of_its_messages() {
    let mut world = World::new(small_limits());
    let client = world.open(&[1]);
    world.declare(client, 1, "q");
    for _ in 0..3 {
        world.publish_to(client, 1, "q", b"hi");
    }
    world.run();
    for number in 0..40 {
        world.consume(client, 1, "q", &format!("c{number}"), false);
    }
    world.run();
    let api = world.connect_management(Shape::WIDE, HOME);
    let queue = body(&say(&mut world, api, GUEST, "GET /api/queues/%2F/q", ""));
    let consumers = queue["consumer_details"].as_array().expect("a list");
    assert_eq!((consumers.len(), &queue["consumers"]), (32, &40.into()), "no more than have room");
    assert_eq!(consumers[0]["channel_details"]["user"], "guest");
    assert_eq!(queue["message_stats"]["deliver_get"], 3);
    let listed = body(&say(&mut world, api, GUEST, "GET /api/queues", ""));
    assert!(listed[0].get("consumer_details").is_none(), "a list has none: {listed}");
    let vhost = body(&say(&mut world, api, GUEST, "GET /api/vhosts/%2F", ""));
    let counts = ["messages", "messages_ready", "messages_unacknowledged"].map(|name| vhost[name].clone());
    assert_eq!(counts, [3, 0, 3], "{vhost}");
}

#[test]
fn definitions_of_a_virtual_host_are_its_own_and_go_into_another() {
    let mut world = World::new(small_limits());
    let policy = r#"{"pattern":"^q","definition":{"max-length":3}}"#;
    script(
        &mut world,
        GUEST,
        &[
            ("PUT /api/vhosts/v", "", "201", ""),
            ("PUT /api/vhosts/w", "", "201", ""),
            ("PUT /api/queues/v/q", r#"{"durable":true}"#, "201", ""),
            ("PUT /api/queues/%2F/other", r#"{"durable":true}"#, "201", ""),
            ("PUT /api/exchanges/v/x", r#"{"durable":true}"#, "201", ""),
            ("POST /api/bindings/v/e/x/q/q", r#"{"routing_key":"k"}"#, "201", ""),
            ("PUT /api/policies/v/p", policy, "201", ""),
            ("GET /api/definitions/none", "", "400", "vhost_not_found"),
            ("GET /api/topic-permissions/v/guest", "", "404", ""),
        ],
    );
    let api = world.connect_management(Shape::WIDE, HOME);
    let said = say(&mut world, api, GUEST, "GET /api/definitions/v", "");
    let file = body(&said);
    for (section, count) in
        [("queues", 1), ("exchanges", 1), ("bindings", 1), ("policies", 1), ("parameters", 0)]
    {
        assert_eq!(file[section].as_array().map(Vec::len), Some(count), "{section}: {file}");
    }
    assert!(file.get("users").is_none() && file["queues"][0].get("vhost").is_none(), "{file}");
    script(
        &mut world,
        GUEST,
        &[
            ("POST /api/definitions/w", &file.to_string(), "204", ""),
            ("GET /api/bindings/w/e/x/q/q/k", "", "200", r#""routing_key":"k""#),
            ("GET /api/policies/w/p", "", "200", r#""max-length":3"#),
            ("GET /api/permissions/w/guest", "", "200", r#""configure":".*""#),
            ("GET /api/permissions/w/none", "", "404", ""),
            ("POST /api/users/bulk-delete", r#"{"users":["none"]}"#, "204", ""),
            ("POST /api/users/bulk-delete", r#"{"users":"none"}"#, "400", ""),
            ("GET /api/health/checks/certificate-expiration/1/months", "", "200", r#""status":"ok""#),
            ("GET /api/health/checks/certificate-expiration/1/moons", "", "400", ""),
            ("GET /api/health/checks/certificate-expiration/x/days", "", "400", ""),
        ],
    );
}
