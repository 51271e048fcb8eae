//! The bare relay: what the same bytes cost when nobody looks at them.
//!
//! A thread reads from one socket and writes to another, as large pieces as come. Publisher and consumer are
//! those of the bench, down to the checks, so what remains between this and a broker is the broker. Always
//! true: one publisher, one consumer, no acknowledgements or confirms, whatever else is asked for.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use super::consume::Consumer;
use super::error::BenchError;
use super::link::Link;
use super::options::{Ack, Options};
use super::plan::Plan;
use super::process::CpuTime;
use super::publish::Sender;
use super::run::Run;

/// As much as the broker reads at once.
const BUFFER_BYTES: usize = 256 << 10;

/// What the relay did.
#[derive(Clone, Copy, Debug)]
pub(super) struct Relayed {
    pub(super) count: u64,
    pub(super) time: Duration,
    /// Of the thread that copies.
    pub(super) cpu: CpuTime,
}

/// Measures the relay with the messages of `options`.
pub(super) fn measure(options: &Options) -> Result<Relayed, BenchError> {
    let options = Options {
        publishers: 1,
        consumers: 1,
        queues: 1,
        exchange: None,
        ack: Ack::Auto,
        confirms: None,
        rate: None,
        ..options.clone()
    };
    let plan = Plan::new(&options);
    let (from_publisher, publisher) = pair()?;
    let (to_consumer, consumer) = pair()?;
    let copier = thread::spawn(move || copy(from_publisher, to_consumer));
    let consumer = Consumer::of_relay(&options, &plan, Link::over(consumer)?);
    let mut link = Link::over(publisher)?;
    let mut sender = Sender::new(&options, &plan, 0, link.frame_max())?;
    let run = Run::new(1);
    thread::scope(|scope| {
        let consuming = scope.spawn(|| consumer.run(&run).inspect_err(|_| run.give_up()));
        let sent = sender.send_unconfirmed(&mut link, &run);
        match &sent {
            Ok(()) => run.set_due(0, sender.sent()),
            Err(_) => run.give_up(),
        }
        let consumed = consuming.join().unwrap_or(Err(BenchError::GivenUp));
        sent?;
        let (consumed, _) = consumed?;
        // The copier ends with its input.
        drop(link);
        let cpu = copier.join().unwrap_or_else(|_| Err(ErrorKind::Other.into()));
        let cpu = cpu.map_err(BenchError::io("relaying"))?;
        Ok(Relayed { count: consumed.count, time: consumed.ended, cpu })
    })
}

/// Two ends of a connection over loopback.
fn pair() -> Result<(TcpStream, TcpStream), BenchError> {
    let connect = || -> io::Result<(TcpStream, TcpStream)> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let near = TcpStream::connect(listener.local_addr()?)?;
        let (far, _) = listener.accept()?;
        far.set_nodelay(true)?;
        Ok((far, near))
    };
    connect().map_err(BenchError::io("connecting the relay"))
}

/// Copies everything until the input ends; gives what that cost.
fn copy(mut from: TcpStream, mut to: TcpStream) -> io::Result<CpuTime> {
    let before = CpuTime::of_this_thread().unwrap_or_default();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => to.write_all(&buffer[..count])?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(CpuTime::of_this_thread().unwrap_or_default().since(before))
}
