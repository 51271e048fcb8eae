//! The command line: which broker is measured, and with which workloads.

use std::ffi::OsString;
use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use lexopt::Arg;

use super::Result;
use leveret_config::describe_unknown;
use leveret_config::upstream::Upstream;
use leveret_core::version::build_version;

/// The name of the program in its messages.
pub(crate) const PROGRAM: &str = "leveret-bench";

/// The text of `--help`.
pub(crate) const HELP: &str = "\
Measures the message rate, the latency, and the CPU time and memory of an AMQP 0-9-1 broker.

Usage: leveret-bench [OPTIONS]    four workloads, or the one that workload options describe

General options:
  --url URL             the broker [amqp://guest:guest@127.0.0.1:5672/%2f]
  --broker-pid PID      process whose CPU time and memory are measured; without it, the process on
                        this machine that listens at the URL's port
  --seconds S           how long each workload publishes [5]; a fraction such as 0.5 is possible
  --json                one line of JSON for each workload
  -h, --help            print this
  -V, --version         print the version

Workload options:
  --size N              bytes of a message, at least 16 [16]
  --messages N          publish this number of messages; with a time, whichever ends first
  --publishers N        connections that publish [1]
  --consumers N         connections that consume [1]; 0 fills the queues
  --queues N            queues, divided among publishers and among consumers [1]
  --ack MODE            auto or each [auto]
  --prefetch N          unacknowledged messages of a consumer, 0 for no limit [1000]
  --confirms N          publisher confirms, with at most N unconfirmed messages of a publisher
  --persistent          durable queues, persistent messages
  --rate N              messages per second of all publishers together; latency then counts from
                        the time a message was due

Each message is checked: its length, its content, its number and its order. When a message is lost,
repeated or changed, an error is printed instead of figures, and the exit code is 1.
";

/// A message begins with its number and the time it was sent, of 8 octets each.
pub(crate) const HEAD_LEN: usize = 16;
const DEFAULT_URL: &str = "amqp://guest:guest@127.0.0.1";
const DEFAULT_TIME: Duration = Duration::from_secs(5);
/// The value of [`Workload::messages`] without a limit.
const UNLIMITED: u64 = u64::MAX;

/// The task of a command line.
#[derive(Debug)]
pub(crate) enum Command {
    /// Measure a broker.
    Measure(Options),
    /// Print a text: the help or the version.
    Print(String),
}

/// A command line that asks for a measurement.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) broker: Upstream,
    pub(crate) broker_pid: Option<u32>,
    pub(crate) is_json: bool,
    pub(crate) workloads: Vec<Workload>,
}

/// The messages that are sent, and how they are sent and received.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Workload {
    /// Bytes of a message body.
    pub(crate) size: u64,
    /// Whether consumers acknowledge each message.
    pub(crate) has_acks: bool,
    /// Publishing ends after this number of messages or after `time`, whichever is first.
    pub(crate) messages: u64,
    pub(crate) time: Duration,
    pub(crate) publishers: u64,
    pub(crate) consumers: u64,
    pub(crate) queues: u64,
    pub(crate) prefetch: u64,
    /// Maximum number of unconfirmed messages of a publisher; 0 is without publisher confirms.
    pub(crate) confirms: u64,
    /// Messages per second of all publishers together; 0 is as fast as possible.
    pub(crate) rate: u64,
    pub(crate) is_persistent: bool,
}

/// The defaults of the workload options.
const WORKLOAD: Workload = Workload {
    size: HEAD_LEN as u64,
    has_acks: false,
    messages: UNLIMITED,
    time: Duration::MAX,
    publishers: 1,
    consumers: 1,
    queues: 1,
    prefetch: 1000,
    confirms: 0,
    rate: 0,
    is_persistent: false,
};

/// The workloads that are measured without workload options.
const WORKLOADS: [Workload; 4] = [
    WORKLOAD,
    Workload { size: 256, has_acks: true, prefetch: 200, ..WORKLOAD },
    Workload { size: 1024, has_acks: true, is_persistent: true, confirms: 100, ..WORKLOAD },
    Workload { size: 64, rate: 1000, ..WORKLOAD },
];

/// An option that sets a number of a workload: its name, its range, and the field.
type NumberOption = (&'static str, RangeInclusive<u64>, fn(&mut Workload) -> &mut u64);

const NUMBERS: [NumberOption; 8] = [
    // The maximum of RabbitMQ is 128 MiB.
    ("--size", HEAD_LEN as u64..=128 << 20, |workload| &mut workload.size),
    // The number in a message has 48 bits.
    ("--messages", 1..=(1 << 48) - 1, |workload| &mut workload.messages),
    // Each publisher and consumer is a thread.
    ("--publishers", 1..=10_000, |workload| &mut workload.publishers),
    ("--consumers", 0..=10_000, |workload| &mut workload.consumers),
    // The number in the name of a queue has 5 digits.
    ("--queues", 1..=100_000, |workload| &mut workload.queues),
    ("--prefetch", 0..=u16::MAX as u64, |workload| &mut workload.prefetch),
    ("--confirms", 1..=1 << 24, |workload| &mut workload.confirms),
    ("--rate", 1..=100_000_000, |workload| &mut workload.rate),
];

impl Workload {
    /// Returns whether latencies are measured. Without a rate or confirms, they would be those of the backlog.
    pub(crate) const fn has_latency(&self) -> bool {
        self.rate > 0 || self.confirms > 0
    }

    /// Reads the value of a workload option.
    fn set(&mut self, name: &str, parser: &mut lexopt::Parser) -> Result<()> {
        match name {
            "--ack" => self.has_acks = value(name, parser, parse_ack)?,
            "--persistent" => self.is_persistent = true,
            _ => {
                let Some((_, range, field)) = NUMBERS.into_iter().find(|option| option.0 == name) else {
                    let known = HELP.split_whitespace().filter(|word| word.starts_with("--"));
                    return Err(describe_unknown("option", name, &known.collect::<Vec<_>>()).into());
                };
                *field(self) = value(name, parser, |text| {
                    let number = text.parse().ok().filter(|number| range.contains(number));
                    let (min, max) = range.into_inner();
                    number.ok_or_else(|| format!("{text:?} is not a number from {min} to {max}").into())
                })?;
            }
        }
        Ok(())
    }
}

/// Shows the size, how messages are acknowledged, and the numbers that are not the default.
impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} B, ack {}", self.size, if self.has_acks { "each" } else { "auto" })?;
        let (mut own, mut default) = (self.clone(), WORKLOAD);
        for (name, _, field) in NUMBERS.into_iter().skip(1) {
            if *field(&mut own) != *field(&mut default) {
                write!(f, ", {} {}", &name[2..], field(&mut own))?;
            }
        }
        f.write_str(if self.is_persistent { ", persistent" } else { "" })
    }
}

/// Reads the arguments without the program name.
///
/// # Errors
/// The first wrong argument.
pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command> {
    let parser = &mut lexopt::Parser::from_args(arguments);
    let (mut broker, mut broker_pid, mut is_json) = (Upstream::parse(DEFAULT_URL)?, None, false);
    let (mut one, mut is_one, mut time) = (WORKLOAD, false, None);
    while let Some(argument) = parser.next()? {
        let name = match argument {
            Arg::Short('h') | Arg::Long("help") => return Ok(Command::Print(HELP.to_string())),
            Arg::Short('V') | Arg::Long("version") => {
                return Ok(Command::Print(format!("{PROGRAM} {}\n", build_version())));
            }
            Arg::Long(name) => format!("--{name}"),
            other => return Err(other.unexpected().into()),
        };
        match &*name {
            "--url" => broker = value(&name, parser, parse_url)?,
            "--broker-pid" => broker_pid = value(&name, parser, |text| Ok(Some(text.parse()?)))?,
            "--seconds" => time = value(&name, parser, parse_seconds)?,
            "--json" => is_json = true,
            _ => {
                is_one = true;
                one.set(&name, parser)?;
            }
        }
    }
    let default_time = if one.messages == UNLIMITED { DEFAULT_TIME } else { Duration::MAX };
    let mut workloads = if is_one { vec![one] } else { WORKLOADS.to_vec() };
    workloads.iter_mut().for_each(|workload| workload.time = time.unwrap_or(default_time));
    Ok(Command::Measure(Options { broker, broker_pid, is_json, workloads }))
}

/// Reads the value of an option.
fn value<T>(name: &str, parser: &mut lexopt::Parser, parse: impl FnOnce(&str) -> Result<T>) -> Result<T> {
    parse(&parser.value()?.to_string_lossy()).map_err(|why| format!("{name}: {why}").into())
}

fn parse_url(text: &str) -> Result<Upstream> {
    let url = Upstream::parse(text)?;
    if url.with_tls { Err("TLS is not supported: write amqp://".into()) } else { Ok(url) }
}

fn parse_ack(text: &str) -> Result<bool> {
    match text {
        "auto" => Ok(false),
        "each" => Ok(true),
        _ => Err(format!("{text:?} is not one of auto, each").into()),
    }
}

fn parse_seconds(text: &str) -> Result<Option<Duration>> {
    Ok(Some(Duration::try_from_secs_f64(text.parse()?)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> std::result::Result<Options, String> {
        match parse(line.split_whitespace().map(OsString::from)).map_err(|error| error.to_string())? {
            Command::Measure(options) => Ok(options),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn workload_options_describe_one_workload() {
        let line = "--url amqp://a:b@[::1]:7/c --broker-pid 7 --json --size 1024 --messages 10 --publishers 2 \
                    --consumers 3 --queues 4 --ack each --prefetch 6 --confirms 8 --persistent --rate 9";
        let options = parsed(line).expect("all options are known");
        assert_eq!(options.broker.to_string(), "amqp://a@[::1]:7/c");
        assert_eq!((options.broker_pid, options.is_json), (Some(7), true));
        let expected = Workload {
            size: 1024,
            has_acks: true,
            messages: 10,
            time: Duration::MAX,
            publishers: 2,
            consumers: 3,
            queues: 4,
            prefetch: 6,
            confirms: 8,
            rate: 9,
            is_persistent: true,
        };
        let title = "1024 B, ack each, messages 10, publishers 2, consumers 3, queues 4, prefetch 6, confirms 8, \
                     rate 9, persistent";
        assert_eq!(expected.to_string(), title);
        assert_eq!(options.workloads, [expected]);
    }

    #[test]
    fn without_workload_options_there_are_four_workloads() {
        for (line, count, ends) in [
            ("", 4, (UNLIMITED, DEFAULT_TIME)),
            ("--json --seconds 0.5", 4, (UNLIMITED, Duration::from_millis(500))),
            ("--size 16", 1, (UNLIMITED, DEFAULT_TIME)),
            ("--messages 3", 1, (3, Duration::MAX)),
            ("--seconds 2 --messages 3", 1, (3, Duration::from_secs(2))),
        ] {
            let workloads = parsed(line).expect(line).workloads;
            assert_eq!(workloads.len(), count, "{line}");
            assert!(workloads.iter().all(|workload| (workload.messages, workload.time) == ends), "{line}");
        }
    }

    #[test]
    fn wrong_arguments_are_named() {
        for (line, sentence) in [
            ("--sice 1", "unknown option --sice; did you mean --size?"),
            ("--size 15", "--size: \"15\" is not a number from 16 to 134217728"),
            ("--seconds x", "--seconds: invalid float literal"),
            ("--seconds nan", "--seconds: cannot convert float seconds to Duration"),
            ("--publishers 0", "--publishers: \"0\" is not a number from 1 to 10000"),
            ("--ack none", "--ack: \"none\" is not one of auto, each"),
            ("--url amqps://h", "--url: TLS is not supported"),
            ("--url h", "--url: it must be an address such as amqp://"),
            ("--url", "missing argument for option '--url'"),
            ("twice", "unexpected argument \"twice\""),
        ] {
            let error = parsed(line).expect_err(line);
            assert!(error.starts_with(sentence), "{line}: {error}");
        }
    }

    #[test]
    fn the_help_names_every_option() {
        for name in HELP.split_whitespace().filter(|word| word.starts_with("--")) {
            let error = parsed(&format!("{name} x y")).expect_err(name);
            assert!(!error.contains("unknown option"), "{error}");
        }
    }
}
