//! Runs one workload: declares its queues, runs its clients, and compares what they sent and received.
//!
//! # Invariants
//! - The queues of a run have names of its own. They are deleted at its end, whether it succeeded or not.
//! - A run ends after [`TIMEOUT`] if no message was sent, confirmed or received in this time.
//! - After an error, threads of the run may still work. The program then ends.

use std::fs;
use std::net::TcpStream;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use super::Result;
use super::connection::{Connection, TIMEOUT};
use super::consumer::Consumer;
use super::options::{Options, Workload};
use super::publisher::Publisher;
use super::report::Histogram;
use leveret_amqp::{Method, Table};

/// The channel on which queues are declared.
const CHANNEL: u16 = 1;
/// How often the broker's memory is read.
const MEMORY_INTERVAL: Duration = Duration::from_millis(100);
/// Linux counts CPU time in `/proc` in hundredths of a second.
const TICK: Duration = Duration::from_millis(10);

/// The result of a run.
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
    /// Sum of the identities of all messages, in any order.
    pub(crate) identity_sum: u64,
    /// When the last message was handled by the broker, or received.
    pub(crate) ended: Duration,
    pub(crate) times: Histogram,
}

impl Tally {
    #[inline]
    pub(crate) fn count_message(&mut self, identity: u64) {
        self.count += 1;
        self.identity_sum = self.identity_sum.wrapping_add(identity);
    }

    fn add(&mut self, other: &Self) {
        self.count += other.count;
        self.identity_sum = self.identity_sum.wrapping_add(other.identity_sum);
        self.ended = self.ended.max(other.ended);
        self.times.add(&other.times);
    }
}

/// Counts that the threads of a run share.
pub(crate) struct Progress {
    pub(crate) epoch: Instant,
    /// Number of messages that were sent and not received. `i64::MAX` is added until all publishers have ended.
    pub(crate) missing: AtomicI64,
    /// Number of writes and confirms of publishers.
    pub(crate) steps: AtomicU64,
}

/// Returns the name of a queue of this process.
pub(crate) fn queue_name(queue: u64) -> String {
    format!("leveret-bench-{}-{queue:05}", process::id())
}

/// Returns the queues of one of several publishers or consumers: each has one, and each queue has one of them.
pub(crate) fn queues_of(id: u64, clients: u64, queues: u64) -> Vec<u64> {
    if queues < clients { vec![id % queues] } else { (id..queues).step_by(clients as usize).collect() }
}

/// Runs a workload.
///
/// # Errors
/// The broker did not do what was asked, or messages were lost, repeated or changed.
pub(crate) fn run(options: &Options, workload: &Workload) -> Result<Outcome> {
    let mut control = Connection::connect(&options.broker)?;
    let broker = control.broker.clone();
    let pid = options.broker_pid.or_else(|| listener(&control.stream));
    let queues: Vec<String> = (0..workload.queues).map(queue_name).collect();
    control.call(CHANNEL, &Method::ChannelOpen {})?;
    for queue in &queues {
        let declare = Method::QueueDeclare {
            queue,
            passive: false,
            durable: workload.is_persistent,
            exclusive: false,
            // Deletes the queue also when this process is killed.
            auto_delete: true,
            no_wait: false,
            arguments: Table::EMPTY,
        };
        control.call(CHANNEL, &declare)?;
    }
    let outcome = measure(options, workload, pid);
    let deleted = queues.iter().try_for_each(|queue| {
        control
            .call(CHANNEL, &Method::QueueDelete { queue, if_unused: false, if_empty: false, no_wait: false })
    });
    // The error of the run is often the cause of the other.
    let outcome = outcome?;
    deleted.and_then(|()| control.close())?;
    Ok(Outcome { broker, ..outcome })
}

fn measure(options: &Options, workload: &Workload, pid: Option<u32>) -> Result<Outcome> {
    let connect = || Connection::connect(&options.broker);
    let consumers = (0..workload.consumers).map(|id| Consumer::new(workload, connect()?, id));
    let consumers = consumers.collect::<Result<Vec<_>>>()?;
    let publishers = (0..workload.publishers).map(|id| Publisher::new(workload, connect()?, id));
    let publishers = publishers.collect::<Result<Vec<_>>>()?;

    let (mut outcome, mut running) = (Outcome::default(), publishers.len());
    let cpu_before = pid.and_then(usage).map(|usage| usage.0);
    let (missing, steps) = (AtomicI64::new(i64::MAX), AtomicU64::new(0));
    let progress = Arc::new(Progress { epoch: Instant::now(), missing, steps });
    // The results of the threads, and whether each one is a publisher. Sending fails only after another error.
    let (sender, results) = mpsc::channel();
    for consumer in consumers {
        let (sender, progress) = (sender.clone(), progress.clone());
        thread::spawn(move || sender.send((false, consumer.run(&progress))));
    }
    for publisher in publishers {
        let (sender, progress) = (sender.clone(), progress.clone());
        thread::spawn(move || sender.send((true, publisher.run(&progress))));
    }
    drop(sender);
    let (mut state, mut since) = ((0, 0), Instant::now());
    loop {
        match results.recv_timeout(MEMORY_INTERVAL) {
            Ok((false, tally)) => outcome.received.add(&tally?),
            Ok((true, tally)) => {
                outcome.sent.add(&tally?);
                running -= 1;
                if running == 0 {
                    progress.missing.fetch_sub(i64::MAX - outcome.sent.count as i64, Relaxed);
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if let Some((cpu, bytes)) = pid.and_then(usage) {
            outcome.broker_cpu = cpu_before.and_then(|before| cpu.checked_sub(before));
            outcome.broker_bytes = outcome.broker_bytes.max(Some(bytes));
        }
        let now = (progress.missing.load(Relaxed), progress.steps.load(Relaxed));
        if state != now {
            (state, since) = (now, Instant::now());
        } else if since.elapsed() > TIMEOUT {
            let lost = if running == 0 { format!("{} messages are lost: ", now.0) } else { String::new() };
            let seconds = TIMEOUT.as_secs();
            return Err(format!("{lost}no message was sent, confirmed or received for {seconds} s").into());
        }
    }
    let (sent, received) = (&outcome.sent, &outcome.received);
    let is_same = (sent.count, sent.identity_sum) == (received.count, received.identity_sum);
    if workload.consumers > 0 && !is_same {
        let (sent, received) = (sent.count, received.count);
        return Err(
            format!("{sent} messages were sent, {received} received: some are lost or repeated").into()
        );
    }
    Ok(outcome)
}

/// Returns the CPU time and the resident memory in bytes of a process.
fn usage(pid: u32) -> Option<(Duration, u64)> {
    parse_usage(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Reads the fields `utime`, `stime` and `rss` of `/proc/PID/stat`: the 14th, 15th and 24th.
fn parse_usage(stat: &str) -> Option<(Duration, u64)> {
    // The second field is a name in parentheses that can contain spaces and parentheses.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let mut field = |skipped| fields.nth(skipped)?.parse::<u64>().ok();
    let ticks = field(11)? + field(0)?;
    Some((TICK * ticks as u32, field(8)? * rustix::param::page_size() as u64))
}

/// Returns the process on this machine that a socket is connected to: the one that listens on its port.
///
/// Only root finds a process of another user.
fn listener(socket: &TcpStream) -> Option<u32> {
    let peer = socket.peer_addr().ok()?;
    if peer.ip() != socket.local_addr().ok()?.ip() {
        return None;
    }
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
    // The fields are number, local address, remote address and state; 0A is the state LISTEN. The 10th is the inode.
    let port = format!(":{:04X}", peer.port());
    let sockets = tables.iter().flat_map(|table| table.lines()).filter_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let is_listening = fields.get(1)?.ends_with(&port) && *fields.get(3)? == "0A";
        is_listening.then_some(format!("socket:[{}]", fields.get(9)?))
    });
    let sockets: Vec<String> = sockets.collect();
    let has_socket = |pid: &u32| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let mut targets = descriptors.filter_map(|descriptor| fs::read_link(descriptor.path()).ok());
        targets.any(|target| sockets.iter().any(|socket| target.as_os_str() == socket.as_str()))
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find(has_socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn each_client_has_a_queue_and_each_queue_a_client() {
        assert_eq!([0, 1].map(|id| queues_of(id, 2, 5)), [vec![0, 2, 4], vec![1, 3]]);
        assert_eq!([0, 3].map(|id| queues_of(id, 5, 2)), [vec![0], vec![1]]);
    }

    #[test]
    fn what_consumers_received_adds_up() {
        let tally = |numbers: &[u64]| {
            let mut tally = Tally::default();
            numbers.iter().for_each(|number| tally.count_message(7 << 48 | number));
            tally
        };
        let (mut received, mut repeated) = (tally(&[0, 2, 3]), tally(&[0, 2, 3]));
        received.add(&tally(&[1, 4, 5]));
        repeated.add(&tally(&[1, 3, 5]));
        let sent = tally(&[0, 1, 2, 3, 4, 5]);
        assert_eq!((received.count, received.identity_sum), (sent.count, sent.identity_sum));
        assert_ne!(repeated.identity_sum, sent.identity_sum);
    }

    #[test]
    fn this_process_is_found() {
        let socket = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let client = TcpStream::connect(socket.local_addr().expect("bound")).expect("a connection");
        assert_eq!(listener(&client), Some(process::id()));
        assert!(usage(process::id()).is_some_and(|(_, bytes)| bytes > 1 << 20));
    }

    #[test]
    fn process_names_can_contain_parentheses() {
        let stat = "7 (a) b (c) S 1 1 1 0 -1 4194304 100 0 0 0 250 5 0 0 20 0 1 0 77 9000 3 9";
        let bytes = 3 * rustix::param::page_size() as u64;
        assert_eq!(parse_usage(stat), Some((Duration::from_millis(2550), bytes)));
        assert_eq!(parse_usage("7 (a) S 1"), None);
    }
}
