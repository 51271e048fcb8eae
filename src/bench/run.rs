//! Runs one workload: declares its queues, runs its clients, and compares what they sent and received.
//!
//! # Invariants
//! - The queues of a run have names of its own. They are deleted at its end, whatever the result.
//! - After the first error, all connections of the run are closed, so all its threads end.

use std::io;
use std::net::Shutdown;
use std::process;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use super::Result;
use super::connection::Connection;
use super::consumer::{Consumer, Progress};
use super::histogram::Histogram;
use super::options::{Options, QUEUE_DIGITS, Workload};
use super::process::{cpu_time, listener, resident_bytes};
use super::publisher::Publisher;
use crate::wire::{Method, Table};

/// The channel on which queues are declared.
const CHANNEL: u16 = 1;
/// How often the broker's memory is read.
const MEMORY_INTERVAL: Duration = Duration::from_millis(100);

/// What was measured in a run.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Product, version and platform.
    pub(crate) broker: String,
    /// Its times are those of confirms.
    pub(crate) sent: Tally,
    /// Its times are latencies.
    pub(crate) received: Tally,
    pub(crate) broker_cpu: Option<Duration>,
    /// The most memory that was resident.
    pub(crate) broker_bytes: Option<u64>,
}

/// The messages that publishers sent, or that consumers received.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) count: u64,
    /// Sum of [`hash`] of all messages, if several consumers receive from a queue. Otherwise, the consumer of a queue
    /// finds each number in its place, and the count is enough.
    pub(crate) hash_sum: u64,
    /// When the last message was confirmed, handled by the broker, or received.
    pub(crate) ended: Duration,
    pub(crate) times: Histogram,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.count += other.count;
        self.hash_sum = self.hash_sum.wrapping_add(other.hash_sum);
        self.ended = self.ended.max(other.ended);
        self.times.add(&other.times);
    }
}

/// Mixes the bits of what identifies a message (splitmix64), so that different sets of messages have different sums.
#[inline]
pub(crate) const fn hash(queue: u32, publisher: u16, number: u64) -> u64 {
    let mixed = (publisher as u64) << 48 ^ (queue as u64) << 32 ^ number;
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Returns the name of a queue of this process.
pub(crate) fn queue_name(queue: u32) -> String {
    format!("leveret-bench-{}-{queue:0QUEUE_DIGITS$}", process::id())
}

/// Returns the queues of one of several publishers or consumers: each has one, and each queue has one of them.
pub(crate) fn queues_of(id: u16, clients: u16, queues: u32) -> Vec<u32> {
    let (id, clients) = (u32::from(id), u32::from(clients));
    if queues < clients { vec![id % queues] } else { (id..queues).step_by(clients as usize).collect() }
}

/// Runs a workload.
///
/// # Errors
/// The broker did not do what was asked, or messages were lost, repeated or changed.
pub(crate) fn run(options: &Options, workload: &Workload) -> Result<Outcome> {
    let mut control = Connection::connect(&options.broker)?;
    let broker = control.broker.clone();
    let pid = options.broker_pid.or_else(|| control.local_port().and_then(listener));
    let outcome = declare(&mut control, workload).and_then(|()| measure(options, workload, pid));
    let deleted = delete(&mut control, workload).and_then(|()| control.close());
    // The error of the run is often the cause of the other.
    let outcome = outcome?;
    deleted?;
    Ok(Outcome { broker, ..outcome })
}

fn declare(control: &mut Connection, workload: &Workload) -> Result<()> {
    control.call(CHANNEL, &Method::ChannelOpen {})?;
    (0..workload.queues).try_for_each(|queue| {
        let declare = Method::QueueDeclare {
            queue: &queue_name(queue),
            passive: false,
            durable: workload.persistent,
            exclusive: false,
            // Deletes the queue also when this process is killed.
            auto_delete: true,
            no_wait: false,
            arguments: Table::EMPTY,
        };
        control.call(CHANNEL, &declare)
    })
}

fn delete(control: &mut Connection, workload: &Workload) -> Result<()> {
    (0..workload.queues).try_for_each(|queue| {
        let queue = &queue_name(queue);
        control
            .call(CHANNEL, &Method::QueueDelete { queue, if_unused: false, if_empty: false, no_wait: false })
    })
}

/// The end of a thread.
enum Ended {
    Publisher(Result<Tally>),
    Consumer(Result<Tally>),
}

fn measure(options: &Options, workload: &Workload, pid: Option<u32>) -> Result<Outcome> {
    let connect = || Connection::connect(&options.broker);
    let consumers = (0..workload.consumers).map(|id| Consumer::new(workload, connect()?, id));
    let consumers = consumers.collect::<Result<Vec<_>>>()?;
    let publishers = (0..workload.publishers).map(|id| Publisher::new(workload, connect()?, id));
    let publishers = publishers.collect::<Result<Vec<_>>>()?;
    let of_consumers = consumers.iter().map(|consumer| &consumer.connection);
    let connections = of_consumers.chain(publishers.iter().map(|publisher| &publisher.connection));
    let sockets =
        connections.map(|connection| connection.stream.try_clone()).collect::<io::Result<Vec<_>>>()?;

    let cpu_before = pid.and_then(cpu_time);
    let progress = &Progress::new();
    let mut outcome = thread::scope(|scope| {
        let (sender, ended) = mpsc::channel();
        // Sending fails only after the error of another thread.
        for consumer in consumers {
            let sender = sender.clone();
            scope.spawn(move || sender.send(Ended::Consumer(consumer.run(progress))));
        }
        for publisher in publishers {
            let sender = sender.clone();
            scope.spawn(move || sender.send(Ended::Publisher(publisher.run(progress.epoch))));
        }
        drop(sender);
        collect(&ended, workload, progress, pid).inspect_err(|_| {
            // A socket may be closed already.
            sockets.iter().for_each(|socket| drop(socket.shutdown(Shutdown::Both)));
        })
    })?;
    outcome.broker_cpu = cpu_before.and_then(|before| cpu_time(pid?)?.checked_sub(before));
    Ok(outcome)
}

/// Waits for all threads, or for the first error, and checks that each message was received once.
fn collect(
    ended: &Receiver<Ended>,
    workload: &Workload,
    progress: &Progress,
    pid: Option<u32>,
) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let mut publishers = workload.publishers;
    loop {
        match ended.recv_timeout(MEMORY_INTERVAL) {
            Ok(Ended::Consumer(tally)) => outcome.received.add(&tally?),
            Ok(Ended::Publisher(tally)) => {
                outcome.sent.add(&tally?);
                publishers -= 1;
                if publishers == 0 {
                    progress.expect(outcome.sent.count);
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        outcome.broker_bytes = outcome.broker_bytes.max(pid.and_then(resident_bytes));
    }
    let (sent, received) = (&outcome.sent, &outcome.received);
    if workload.consumers > 0 && sent.count != received.count {
        return Err(format!("{} messages were sent, and {} received", sent.count, received.count).into());
    }
    if workload.consumers > 0 && sent.hash_sum != received.hash_sum {
        return Err(
            "as many messages were received as were sent, but some are lost and others repeated".into()
        );
    }
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_client_has_a_queue_and_each_queue_a_client() {
        assert_eq!([0, 1].map(|id| queues_of(id, 2, 5)), [vec![0, 2, 4], vec![1, 3]]);
        assert_eq!([0, 3].map(|id| queues_of(id, 5, 2)), [vec![0], vec![1]]);
    }
}
