//! Idle means asleep: the built binary with a few open connections does not wake up once, and is small.

use std::fs;
use std::time::{Duration, Instant};

use crate::home::patience;
use crate::sockets::{Broker, Link, publish};
use crate::world::{consume, declare};

/// How long it is watched. What it must not do takes no time, so longer would show no more.
const WATCHED: Duration = Duration::from_millis(2_500);
/// What an idle broker may hold of its own, 340 KiB of constants with addresses in them included, which are
/// more here than as it is released (and more with each package, for they are linked without being optimized
/// together) and what it touches when it looks at each queue before it sleeps, as only these builds do; the
/// rest is the program itself.
const IDLE_KIB_MAX: u64 = 1600;

/// A number out of a process's status, as the kernel keeps it.
fn status(broker: &Broker, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", broker.pid())).expect("it runs");
    let line = status.lines().find(|line| line.starts_with(name)).expect("the kernel says it");
    let digits: String = line.chars().filter(char::is_ascii_digit).collect();
    digits.parse().expect("a number")
}

/// Times it went to sleep by itself.
fn wakes(broker: &Broker) -> u64 {
    status(broker, "voluntary_ctxt_switches:")
}

/// A broker that has done something, and has nothing to do any more.
fn idle() -> (Broker, Vec<Link>) {
    let broker = Broker::start(&[]);
    let mut links: Vec<Link> = (0..5).map(|_| Link::open(broker.address, &[1])).collect();
    links[0].ask(1, &declare("q"));
    links[1].ask(1, &consume("q", "it", true));
    for _ in 0..100 {
        let message = publish("", "q", false, &[0, 0], b"something was done before");
        links[0].write(&message);
        links[1].content();
    }
    // Somebody holds something unsettled, which is looked at in half an hour.
    links[2].ask(1, &declare("held"));
    links[2].ask(1, &consume("held", "holder", false));
    links[0].write(&publish("", "held", false, &[0, 0], b"for a while"));
    links[2].content();
    (broker, links)
}

/// It is asleep, not dead.
fn is_there(mut links: Vec<Link>) {
    links[0].write(&publish("", "q", false, &[0, 0], b"still here"));
    assert_eq!(links[1].content().1, b"still here");
}

#[test]
fn an_idle_broker_becomes_small() {
    let (broker, links) = idle();
    // What it still has to do (memory given back a little later) is over after a moment.
    let deadline = Instant::now() + patience(20);
    while status(&broker, "RssAnon:") > IDLE_KIB_MAX {
        let resident_kib = status(&broker, "RssAnon:");
        assert!(Instant::now() < deadline, "{resident_kib} KiB resident besides the program");
        std::thread::sleep(Duration::from_millis(50));
    }
    is_there(links);
}

#[test]
#[ignore = "judges the clock: tests/run --full"]
fn an_idle_broker_is_asleep_and_stays_small() {
    let (broker, links) = idle();
    // What it still has to do is over after a moment.
    std::thread::sleep(WATCHED);
    let before = wakes(&broker);
    std::thread::sleep(WATCHED);
    assert_eq!(wakes(&broker), before, "it woke up with nothing to do");
    let resident_kib = status(&broker, "RssAnon:");
    assert!(resident_kib <= IDLE_KIB_MAX, "{resident_kib} KiB resident besides the program");
    is_there(links);
}
