//! The command line: which broker is measured, and with which workloads.

use std::ffi::OsString;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use lexopt::Arg;

use super::Result;
use crate::config::describe_unknown;
use crate::config::units::Bytes;
use crate::config::upstream::Upstream;

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
  --size SIZE           bytes of a message [16]; its number needs 8 of them
  --messages N          publish this number of messages; with a time, whichever ends first
  --publishers N        connections that publish [1]
  --consumers N         connections that consume [1]; 0 fills the queues
  --queues N            queues, divided among publishers and among consumers [1]
  --ack MODE            auto, each or multiple [auto]
  --prefetch N          unacknowledged messages of a consumer, 0 for no limit [1000]
  --confirms N          publisher confirms, with at most N unconfirmed messages of a publisher
  --persistent          durable queues, persistent messages
  --rate N              messages per second of all publishers together

Each message is checked: its length, its content, its number and its order. When a message is lost,
repeated or changed, an error is printed instead of figures, and the exit code is 1.
";

/// Options that do not change the workload.
const GENERAL: [&str; 4] = ["--url", "--broker-pid", "--seconds", "--json"];
/// Number of digits at the end of a queue name.
pub(crate) const QUEUE_DIGITS: usize = 5;
/// Messages of at least this size have a number.
pub(crate) const NUMBERED_SIZE_MIN: usize = 8;
/// Messages of at least this size can have the time they were sent.
pub(crate) const STAMPED_SIZE_MIN: usize = 16;

const DEFAULT_URL: &str = "amqp://guest:guest@127.0.0.1";
const DEFAULT_TIME: Duration = Duration::from_secs(5);
/// The maximum of RabbitMQ.
const SIZE_MAX: usize = 128 << 20;
/// The number in a message has 48 bits.
const MESSAGES_MAX: u64 = (1 << 48) - 1;
/// Each publisher and consumer is a thread.
const CLIENTS_MAX: u16 = 10_000;
const CONFIRMS_MAX: usize = 1 << 24;
const RATE_MAX: u64 = 100_000_000;
const SECONDS_MAX: f64 = 1e9;

/// What a command line asks for.
#[derive(Debug, PartialEq)]
pub(crate) enum Command {
    /// Measure a broker.
    Measure(Options),
    /// Print the help.
    Help,
    /// Print the version.
    Version,
}

/// A command line that asks for a measurement.
#[derive(Debug, PartialEq)]
pub(crate) struct Options {
    pub(crate) broker: Upstream,
    pub(crate) broker_pid: Option<u32>,
    pub(crate) json: bool,
    pub(crate) workloads: Vec<Workload>,
}

/// The messages that are sent, and how they are sent and received.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Workload {
    /// Bytes of a message body.
    pub(crate) size: usize,
    /// Publishing ends after this number of messages or after `time`, whichever is first.
    pub(crate) messages: Option<u64>,
    pub(crate) time: Option<Duration>,
    pub(crate) publishers: u16,
    pub(crate) consumers: u16,
    pub(crate) queues: u32,
    pub(crate) ack: Ack,
    pub(crate) prefetch: u16,
    /// Maximum number of unconfirmed messages of a publisher; `None` is without publisher confirms.
    pub(crate) confirms: Option<usize>,
    pub(crate) persistent: bool,
    /// Messages per second of all publishers together; `None` is as fast as possible.
    pub(crate) rate: Option<u64>,
}

/// How consumers acknowledge: not at all, each message, or all messages of one read with one `basic.ack`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Ack {
    Auto,
    Each,
    Multiple,
}

/// The defaults of the workload options.
const WORKLOAD: Workload = Workload {
    size: 16,
    messages: None,
    time: None,
    publishers: 1,
    consumers: 1,
    queues: 1,
    ack: Ack::Auto,
    prefetch: 1000,
    confirms: None,
    persistent: false,
    rate: None,
};

/// The workloads that are measured without workload options.
const WORKLOADS: [Workload; 4] = [
    WORKLOAD,
    Workload { size: 256, ack: Ack::Each, prefetch: 200, ..WORKLOAD },
    Workload { size: 1024, ack: Ack::Each, persistent: true, confirms: Some(100), ..WORKLOAD },
    Workload { size: 64, rate: Some(1000), ..WORKLOAD },
];

impl Workload {
    /// Returns whether a message has space for its number.
    pub(crate) const fn is_numbered(&self) -> bool {
        self.size >= NUMBERED_SIZE_MIN
    }

    /// Returns whether messages contain the time they were sent.
    ///
    /// Without a rate or confirms, the latency would be that of the backlog.
    pub(crate) const fn is_stamped(&self) -> bool {
        self.size >= STAMPED_SIZE_MIN && (self.rate.is_some() || self.confirms.is_some())
    }

    /// Returns whether several consumers receive from a queue.
    pub(crate) const fn is_shared(&self) -> bool {
        self.consumers as u32 > self.queues
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} B, ack {}", self.size, self.ack)?;
        let counts = [
            ("publisher", self.publishers.into()),
            ("consumer", self.consumers.into()),
            ("queue", self.queues),
        ];
        for (name, count) in counts.into_iter().filter(|(_, count)| *count != 1) {
            write!(f, ", {count} {name}s")?;
        }
        let prefetch = (self.ack != Ack::Auto).then_some(self.prefetch.into());
        let confirms = self.confirms.map(|window| window as u64);
        for (name, number) in [("prefetch", prefetch), ("confirms", confirms), ("rate", self.rate)] {
            number.map_or(Ok(()), |number| write!(f, ", {name} {number}"))?;
        }
        f.write_str(if self.persistent { ", persistent" } else { "" })
    }
}

impl fmt::Display for Ack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Each => "each",
            Self::Multiple => "multiple",
        })
    }
}

impl FromStr for Ack {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let known = [Self::Auto, Self::Each, Self::Multiple].into_iter().find(|ack| ack.to_string() == text);
        known.ok_or_else(|| format!("{text:?} is not one of auto, each, multiple"))
    }
}

/// Reads the arguments without the program name.
///
/// # Errors
/// The first wrong argument, or two that contradict each other.
pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command> {
    read(&mut lexopt::Parser::from_args(arguments))
        .map_err(|error| format!("{error} ({PROGRAM} --help lists all options)").into())
}

fn read(parser: &mut lexopt::Parser) -> Result<Command> {
    let (mut broker, mut broker_pid, mut json) = (Upstream::parse(DEFAULT_URL)?, None, false);
    let (mut one, mut is_one) = (WORKLOAD, false);
    while let Some(argument) = parser.next()? {
        let name = match argument {
            Arg::Short('h') | Arg::Long("help") => return Ok(Command::Help),
            Arg::Short('V') | Arg::Long("version") => return Ok(Command::Version),
            Arg::Long(name) => format!("--{name}"),
            Arg::Short(letter) => format!("-{letter}"),
            Arg::Value(word) => return Err(format!("{word:?} is one argument too many").into()),
        };
        is_one |= !GENERAL.contains(&&*name);
        match &*name {
            "--url" => {
                let text: String = value(&name, parser)?;
                broker = Upstream::parse(&text).map_err(|why| format!("{name}: {why}"))?;
            }
            "--broker-pid" => broker_pid = Some(number(&name, parser, 1..=u32::MAX)?),
            "--seconds" => {
                one.time = Some(Duration::from_secs_f64(number(&name, parser, 0.0..=SECONDS_MAX)?))
            }
            "--json" => json = true,
            "--size" => one.size = value::<Bytes<usize>>(&name, parser)?.0,
            "--messages" => one.messages = Some(number(&name, parser, 1..=MESSAGES_MAX)?),
            "--publishers" => one.publishers = number(&name, parser, 1..=CLIENTS_MAX)?,
            "--consumers" => one.consumers = number(&name, parser, 0..=CLIENTS_MAX)?,
            "--queues" => one.queues = number(&name, parser, 1..=10_u32.pow(QUEUE_DIGITS as u32))?,
            "--ack" => one.ack = value(&name, parser)?,
            "--prefetch" => one.prefetch = number(&name, parser, 0..=u16::MAX)?,
            "--confirms" => one.confirms = Some(number(&name, parser, 1..=CONFIRMS_MAX)?),
            "--persistent" => one.persistent = true,
            "--rate" => one.rate = Some(number(&name, parser, 1..=RATE_MAX)?),
            _ => {
                let known: Vec<&str> =
                    HELP.split_whitespace().filter(|word| word.starts_with("--")).collect();
                return Err(describe_unknown("option", &name, &known).into());
            }
        }
    }
    if broker.with_tls {
        return Err("--url: TLS is not supported: write amqp://".into());
    }
    if one.size > SIZE_MAX {
        return Err("--size: a message has at most 128MiB".into());
    }
    if one.rate.is_some() && one.size < STAMPED_SIZE_MIN {
        return Err("--rate: the send time in each message needs --size 16 or more".into());
    }
    if one.messages.is_none() {
        one.time.get_or_insert(DEFAULT_TIME);
    }
    let time = one.time;
    let workloads =
        if is_one { vec![one] } else { WORKLOADS.map(|workload| Workload { time, ..workload }).to_vec() };
    Ok(Command::Measure(Options { broker, broker_pid, json, workloads }))
}

/// Reads the value of an option.
fn value<T: FromStr<Err: fmt::Display>>(name: &str, parser: &mut lexopt::Parser) -> Result<T> {
    let text = parser.value()?;
    let text = text.to_str().ok_or_else(|| format!("{name}: {text:?} is not UTF-8"))?;
    text.parse().map_err(|why| format!("{name}: {why}").into())
}

/// Reads the value of an option that is a number in a range.
fn number<T>(name: &str, parser: &mut lexopt::Parser, range: RangeInclusive<T>) -> Result<T>
where
    T: FromStr + PartialOrd + fmt::Display,
{
    let text: String = value(name, parser)?;
    let number = text.parse().ok().filter(|number| range.contains(number));
    let (min, max) = range.into_inner();
    number.ok_or_else(|| format!("{name}: {text:?} is not a number from {min} to {max}").into())
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
        let line = "--url amqp://a:b@[::1]:7/c --broker-pid 7 --json --size 1KiB --messages 10 --publishers 2 \
                    --consumers 3 --queues 4 --ack multiple --prefetch 6 --confirms 8 --persistent --rate 9";
        let options = parsed(line).expect("all options are known");
        assert_eq!(options.broker.to_string(), "amqp://a@[::1]:7/c");
        assert_eq!((options.broker_pid, options.json), (Some(7), true));
        let expected = Workload {
            size: 1024,
            messages: Some(10),
            time: None,
            publishers: 2,
            consumers: 3,
            queues: 4,
            ack: Ack::Multiple,
            prefetch: 6,
            confirms: Some(8),
            persistent: true,
            rate: Some(9),
        };
        let title = expected.to_string();
        assert!(
            title.starts_with("1024 B, ack multiple, 2 publishers, 3 consumers, 4 queues, prefetch 6,"),
            "{title}"
        );
        assert!(title.ends_with(", confirms 8, rate 9, persistent"), "{title}");
        assert_eq!(options.workloads, [expected]);
    }

    #[test]
    fn without_workload_options_there_are_four_workloads() {
        for (line, count, ends) in [
            ("", 4, (None, Some(DEFAULT_TIME))),
            ("--json --seconds 0.5", 4, (None, Some(Duration::from_millis(500)))),
            ("--size 16", 1, (None, Some(DEFAULT_TIME))),
            ("--messages 3", 1, (Some(3), None)),
            ("--seconds 2 --messages 3", 1, (Some(3), Some(Duration::from_secs(2)))),
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
            ("--size 1XB", "--size: \"1XB\" is not a size"),
            ("--size 129MiB", "--size: a message has at most 128MiB"),
            ("--seconds nan", "--seconds: \"nan\" is not a number from 0 to 1000000000"),
            ("--publishers 0", "--publishers: \"0\" is not a number from 1 to 10000"),
            ("--ack none", "--ack: \"none\" is not one of auto, each, multiple"),
            ("--rate 5 --size 8", "--rate: the send time in each message needs --size 16"),
            ("--url amqps://h", "--url: TLS is not supported"),
            ("--url h", "--url: it must be an address such as amqp://"),
            ("--url", "missing argument for option '--url' (leveret-bench --help lists all options)"),
            ("twice", "\"twice\" is one argument too many"),
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
        for (line, command) in [("--json -h", Command::Help), ("-V", Command::Version)] {
            assert_eq!(parse(line.split_whitespace().map(OsString::from)).expect(line), command);
        }
    }
}
