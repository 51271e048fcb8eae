//! Handshakes and their failures: the exact answers of RabbitMQ 3.10, and the timeouts.

use leveret_amqp::Method;
use leveret_connection::Timeout;
use leveret_core::error::{Fault, ReplyCode};
use leveret_test_support::single_connection::*;

fn close_ok() -> Vec<u8> {
    method(0, &Method::ConnectionCloseOk {})
}

#[test]
fn everything_at_once_and_amqplain() {
    let mut environment = Environment::new(small_limits());
    let mut host = Host::new(&environment);
    let mut script = b"AMQP\0\0\x09\x01".to_vec();
    script.extend(start_ok("AMQPLAIN", b"\x05LOGINS\0\0\0\x05guest\x08PASSWORDS\0\0\0\x05guest", &[]));
    script.extend(method(0, &Method::ConnectionTuneOk { channel_max: 1, frame_max: 4096, heartbeat: 0 }));
    script.extend(frame(8, 0, b""));
    script.extend(method(0, &Method::ConnectionOpen { virtual_host: "/" }));
    script.extend(open_channel(1));
    script.extend(open_channel(2));
    host.run(&mut environment, &script);
    let said = host.said();
    assert_eq!(said[3], "1 ChannelOpenOk");
    assert_eq!(
        said[4],
        close(
            530,
            "NOT_ALLOWED - number of channels opened (1) has reached the negotiated channel_max (1)",
            (0, 0)
        )
    );
    host.end(&mut environment);
}

#[test]
fn a_client_with_another_protocol_receives_the_supported_version() {
    for other in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\x16\x03\x01\x02\0\x01\0\0", b"HELO world", b"AMQP\x03\x01\0\0"]
    {
        let mut environment = Environment::new(small_limits());
        let mut host = Host::new(&environment);
        host.run(&mut environment, other);
        assert!(host.is_finished && host.stash.is_empty() && host.connection.may_leave_broker());
        assert_eq!(host.said(), ["AMQP"]);
        host.end(&mut environment);
    }
}

#[test]
fn a_wrong_password_is_answered_after_a_second_if_the_client_has_the_capability() {
    let mut environment = Environment::new(small_limits());
    let mut host = Host::new(&environment);
    host.run(&mut environment, &handshake(&CAPABLE, b"\0guest\0wrong", 131_072, 0));
    assert_eq!(host.said().len(), 1, "connection.start and nothing else");
    let start = environment.now.as_ms();
    assert_eq!(host.pass_time(&mut environment), Timeout::GoOn);
    assert_eq!(environment.now.as_ms() - start, 1000);
    host.flush(&mut environment);
    let text = "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN. For details see the \
                broker logfile.";
    assert_eq!(host.said(), [close(403, text, (0, 0))]);
    host.run(&mut environment, &close_ok());
    assert!(host.is_finished);
    host.end(&mut environment);

    let mut host = Host::new(&environment);
    host.run(&mut environment, &handshake(&[], b"\0guest\0wrong", 131_072, 0));
    assert_eq!(host.pass_time(&mut environment), Timeout::Close);
    assert_eq!(host.said().len(), 1);
    host.end(&mut environment);
}

#[test]
fn mistakes_before_login_are_answered_with_silence() {
    let start = b"AMQP\0\0\x09\x01";
    let scripts: [Vec<u8>; 7] = [
        start_ok("PLAIN", b"guest", &CAPABLE),
        start_ok("EXTERNAL", b"", &CAPABLE),
        start_ok("plain", b"\0guest\0guest", &CAPABLE),
        method(0, &Method::ConnectionOpen { virtual_host: "/" }),
        open_channel(1),
        frame(3, 0, b"x"),
        vec![1, 0, 0, 0, 0xFF, 0xFF, 0xFF],
    ];
    for script in scripts {
        let mut environment = Environment::new(small_limits());
        let mut host = Host::new(&environment);
        host.run(&mut environment, start);
        host.run(&mut environment, &script);
        assert_eq!(host.said(), ["0 ConnectionStart PLAIN AMQPLAIN"], "{script:?}");
        assert!(host.stash.is_empty());
        assert_eq!(host.pass_time(&mut environment), Timeout::Close);
        host.end(&mut environment);
    }
}

#[test]
fn mistakes_after_login_are_named() {
    let cases: [(Vec<u8>, String); 6] = [
        (
            method(0, &Method::ConnectionOpen { virtual_host: "nowhere" }),
            close(530, "NOT_ALLOWED - vhost nowhere not found", (10, 40)),
        ),
        (open_channel(1), close(505, "UNEXPECTED_FRAME - type 1, all octets = <<0,20,0,10,0>>", (0, 0))),
        (
            method(
                0,
                &Method::ConnectionClose { reply_code: 200, reply_text: "x", class_id: 0, method_id: 0 },
            ),
            close(504, "CHANNEL_ERROR - unexpected method in connection state opening", (10, 50)),
        ),
        (frame(1, 0, &[0, 10, 0, 40, 9]), close(501, "FRAME_ERROR - cannot decode <<9>>", (10, 40))),
        (
            frame(9, 0, b"abc"),
            close(501, "FRAME_ERROR - type 9, all octets = <<\"abc\">>: unknown_frame", (0, 0)),
        ),
        (
            vec![1, 0, 0, 0, 2, 0, 1],
            close(501, "FRAME_ERROR - type 1, all octets = <<>>: {frame_too_large,131073,131064}", (0, 0)),
        ),
    ];
    for (script, expected) in cases {
        let mut environment = Environment::new(small_limits());
        let mut host = Host::new(&environment);
        let mut hello = b"AMQP\0\0\x09\x01".to_vec();
        hello.extend(start_ok("PLAIN", b"\0guest\0guest", &CAPABLE));
        hello.extend(method(
            0,
            &Method::ConnectionTuneOk { channel_max: 2047, frame_max: 131_072, heartbeat: 0 },
        ));
        host.run(&mut environment, &hello);
        host.run(&mut environment, &script);
        assert_eq!(host.said()[2..], [expected]);
        host.end(&mut environment);
    }
}

#[test]
fn a_handshake_without_progress_is_closed() {
    let mut environment = Environment::new(small_limits());
    for given in 0..3 {
        let mut host = Host::new(&environment);
        let parts =
            [b"AMQP\0\0\x09\x01".to_vec(), start_ok("PLAIN", b"\0guest\0guest", &CAPABLE), vec![1, 0]];
        for part in &parts[..given] {
            host.run(&mut environment, part);
        }
        let start = environment.now.as_ms();
        assert_eq!(host.pass_time(&mut environment), Timeout::Close);
        assert_eq!(environment.now.as_ms() - start, 10_000);
        host.end(&mut environment);
    }
}

#[test]
fn the_client_closes() {
    let mut environment = Environment::new(small_limits());
    let mut host = open(&mut environment);
    let mut script = open_channel(1);
    script.extend(publish(1, "k", b"whole")[..40].to_vec());
    host.run(&mut environment, &script);
    let mut host2 = host;
    // The rest of the incomplete message never comes. A frame inside it ends the body.
    host2.connection.close(
        &mut environment.context(),
        &Fault::new(ReplyCode::ConnectionForced, format_args!("broker forced connection closure")),
    );
    host2.run(&mut environment, b"");
    assert_eq!(
        host2.said()[1..],
        [close(320, "CONNECTION_FORCED - broker forced connection closure", (0, 0))]
    );
    assert!(host2.connection.may_leave_broker());
    host2.end(&mut environment);

    let mut host = open(&mut environment);
    let mut script = open_channel(1);
    script.extend(method(
        0,
        &Method::ConnectionClose { reply_code: 200, reply_text: "bye", class_id: 0, method_id: 0 },
    ));
    script.extend(open_channel(2));
    host.run(&mut environment, &script);
    assert_eq!(host.said(), ["1 ChannelOpenOk", "0 ConnectionCloseOk"]);
    assert!(
        host.connection.may_leave_broker() && !host.is_finished,
        "closing the socket is up to the client"
    );
    assert_eq!(environment.pools.channels_used(), 0, "its channels are free for others already");
    assert_eq!(host.pass_time(&mut environment), Timeout::Close);
    host.end(&mut environment);
}

#[test]
fn after_our_close_only_close_ok_counts() {
    let mut environment = Environment::new(small_limits());
    let mut host = open(&mut environment);
    host.run(&mut environment, &close_ok());
    assert_eq!(
        host.said(),
        [close(504, "CHANNEL_ERROR - unexpected method in connection state running", (10, 51))]
    );
    let mut script = open_channel(1);
    script.extend(publish(1, "k", &[7; 1000]));
    script.extend(method(
        0,
        &Method::ConnectionClose { reply_code: 200, reply_text: "bye", class_id: 0, method_id: 0 },
    ));
    for octet in script {
        host.run(&mut environment, &[octet]);
    }
    assert_eq!(host.said(), ["0 ConnectionCloseOk"]);
    assert!(host.rules.log.is_empty() && !host.is_finished);
    host.run(&mut environment, &close_ok());
    assert!(host.is_finished);
    host.end(&mut environment);
}

/// Payload and end byte of the largest frame are 2^32 bytes, which a 32-bit counter cannot hold.
#[test]
fn after_our_close_a_frame_of_4_gib_is_read_over() {
    let mut environment = Environment::new(small_limits());
    let mut host = open(&mut environment);
    host.run(&mut environment, &close_ok());
    host.said();
    host.run(&mut environment, b"\x03\0\x01\xff\xff\xff\xff");
    for _ in 0..100 {
        host.run(&mut environment, &[0xCE; 65_536]);
        assert!(host.stash.is_empty(), "{} octets are left of what is only read over", host.stash.len());
    }
    assert!(host.said().is_empty() && !host.is_finished);
    host.end(&mut environment);
}

#[test]
fn a_peer_that_does_not_answer_a_close_is_dropped_soon() {
    let mut environment = Environment::new(small_limits());
    for (heartbeat, patience) in [(0, 30_000), (10, 10_000), (600, 30_000)] {
        let mut host = open_with(&mut environment, heartbeat, &CAPABLE);
        host.run(&mut environment, &close_ok());
        let start = environment.now.as_ms();
        assert_eq!(host.pass_time(&mut environment), Timeout::Close);
        assert_eq!(environment.now.as_ms() - start, patience);
        host.end(&mut environment);
    }
}

#[test]
fn heartbeats_go_both_ways() {
    let mut environment = Environment::new(small_limits());
    let mut host = open_with(&mut environment, 10, &CAPABLE);
    for _ in 0..5 {
        let start = environment.now.as_ms();
        assert_eq!(host.pass_time(&mut environment), Timeout::GoOn);
        assert_eq!(environment.now.as_ms() - start, 5_000);
        host.flush(&mut environment);
        assert_eq!(host.said(), ["0 heartbeat"]);
        host.run(&mut environment, &frame(8, 0, b""));
    }
    // Any byte is a sign of life, even a part of a frame.
    host.run(&mut environment, &[8]);
    let start = environment.now.as_ms();
    let mut verdict = Timeout::GoOn;
    while verdict == Timeout::GoOn {
        verdict = host.pass_time(&mut environment);
        host.flush(&mut environment);
    }
    assert_eq!(environment.now.as_ms() - start, 20_000, "two silent intervals");
    host.end(&mut environment);
}

#[test]
fn a_read_without_new_bytes_is_no_sign_of_life() {
    let mut environment = Environment::new(small_limits());
    let mut host = open_with(&mut environment, 10, &CAPABLE);
    host.run(&mut environment, &[8, 0]);
    let start = environment.now.as_ms();
    while host.pass_time(&mut environment) == Timeout::GoOn {
        host.run(&mut environment, &[]);
    }
    assert_eq!(environment.now.as_ms() - start, 20_000);
    host.end(&mut environment);
}

#[test]
fn a_socket_that_accepts_nothing_keeps_one_heartbeat_and_causes_no_wake_up() {
    let mut environment = Environment::new(small_limits());
    let mut host = open_with(&mut environment, 10, &CAPABLE);
    host.pass_time(&mut environment);
    for _ in 0..10 {
        host.flush_once(&mut environment, |_| 0);
    }
    host.pass_time(&mut environment);
    host.flush_once(&mut environment, |_| 0);
    assert_eq!(
        host.connection.deadline().ms_left(environment.now),
        Some(10_000),
        "only the peer's silence is left"
    );
    host.flush(&mut environment);
    assert_eq!(host.said(), ["0 heartbeat", "0 heartbeat"], "the one that was kept, and the next");
    host.end(&mut environment);
}

#[test]
fn a_client_without_heartbeats_is_never_late() {
    let mut environment = Environment::new(small_limits());
    let host = open_with(&mut environment, 0, &CAPABLE);
    assert_eq!(host.connection.deadline().ms_left(environment.now), None);
    host.end(&mut environment);
}
