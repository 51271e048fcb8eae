//! An idle broker sleeps: the built binary with a few open connections never wakes up, and uses little
//! memory.

use std::fs;
use std::time::{Duration, Instant};

use leveret_test_support::built_program::patience;
use leveret_test_support::simulated_server::{consume, declare};
use leveret_test_support::socket_client::{Broker, Link, publish};

/// Duration of the observation. Any wake-up shows within it, so a longer one would show no more.
const WATCHED: Duration = Duration::from_millis(2_500);
/// Maximum private memory of an idle broker, in KiB.
///
/// Includes 370 KiB of relocated constants. They are larger here than in a release, and grow with each
/// package, because the packages are linked without being optimized together. It also includes the memory
/// touched by the check of each queue before sleeping, which only these builds do. The rest is the program
/// itself.
const IDLE_KIB_MAX: u64 = 1640;

/// Returns a number from the process status of the kernel.
fn status(broker: &Broker, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", broker.pid())).expect("it runs");
    let line = status.lines().find(|line| line.starts_with(name)).expect("the kernel says it");
    let digits: String = line.chars().filter(char::is_ascii_digit).collect();
    digits.parse().expect("a number")
}

/// Returns the number of voluntary context switches.
fn wakes(broker: &Broker) -> u64 {
    status(broker, "voluntary_ctxt_switches:")
}

/// Returns a broker that was used and has nothing left to do.
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
    // An unacknowledged delivery, which is checked in half an hour.
    links[2].ask(1, &declare("held"));
    links[2].ask(1, &consume("held", "holder", false));
    links[0].write(&publish("", "held", false, &[0, 0], b"for a while"));
    links[2].content();
    (broker, links)
}

/// Checks that the broker sleeps and is not dead.
fn is_there(mut links: Vec<Link>) {
    links[0].write(&publish("", "q", false, &[0, 0], b"still here"));
    assert_eq!(links[1].content().1, b"still here");
}

#[test]
fn an_idle_broker_releases_its_memory() {
    let (broker, links) = idle();
    // Remaining work (memory that is released a little later) ends after a moment.
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
fn an_idle_broker_sleeps_and_stays_small() {
    let (broker, links) = idle();
    // Remaining work ends after a moment.
    std::thread::sleep(WATCHED);
    let before = wakes(&broker);
    std::thread::sleep(WATCHED);
    assert_eq!(wakes(&broker), before, "it woke up with nothing to do");
    let resident_kib = status(&broker, "RssAnon:");
    assert!(resident_kib <= IDLE_KIB_MAX, "{resident_kib} KiB resident besides the program");
    is_there(links);
}
