//! Tests with independent implementations: the Rust clients lapin and amqprs, and the codec `amq-protocol`.
//!
//! They share no code with `leveret-amqp`, and check what Leveret writes by their own rules. They are a package
//! of their own, because their runtimes take as long to compile as Leveret. Each test has a broker of its own and
//! ends within a minute, multiplied by `LEVERET_PATIENCE`.
//!
//! `LEVERET_TEST_BROKER=127.0.0.1:5672 cargo test -p leveret-rust-clients --test rust_clients with_` runs the same tests
//! against a running broker: RabbitMQ has to pass them all.

mod against_amq_protocol;
mod broker;
mod inspected;
mod with_amqprs;
mod with_lapin;

use std::future::Future;

use self::broker::Broker;
use leveret_test_support::built_program::patience;

/// Runs a test with a broker, and gives it up when it hangs.
fn with_broker<F: Future<Output = ()>>(test: impl FnOnce(u16) -> F) {
    let broker = Broker::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let ended = runtime.block_on(async { tokio::time::timeout(patience(60), test(broker.port())).await });
    assert!(ended.is_ok(), "the test hangs");
}

/// A body that no accident makes: its octets depend on their place, with a prime period.
fn large_body(len: usize) -> Vec<u8> {
    (0..251_u8).cycle().take(len).collect()
}
