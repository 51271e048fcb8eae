//! What `leveret-bench` is asked to do: its command line, understood and checked.
//!
//! Always true of [`Options`]: every number is in the range its help names, and no two of them contradict
//! each other, so what runs the bench need not look again.

use std::ffi::OsString;
use std::str::FromStr;
use std::time::Duration;

use super::body::{NUMBERED_SIZE_MIN, STAMPED_SIZE_MIN};
use super::url::Url;
use crate::config::units::{Bytes, ListenAddress, Millis};
use crate::tool::options::{BadArguments, Given, Next, OptionRow, Section, Table};

/// The program's name, in what it says of itself.
pub(super) const PROGRAM: &str = "leveret-bench";

/// What `leveret-bench --help` prints.
pub(super) fn help() -> String {
    format!("{BEFORE_OPTIONS}\n{}{AFTER_OPTIONS}", OPTIONS.help(|_| true))
}

const BEFORE_OPTIONS: &str = "\
Publishers and consumers in one process, over loopback or the network, against a broker.

Usage: leveret-bench [OPTIONS] [-- BROKER OPTIONS]    against a Leveret of its own, started on a
                                                      free port with the BROKER OPTIONS
       leveret-bench --url URL [OPTIONS]              against the broker that listens there
       leveret-bench relay [OPTIONS]                  the bare relay alone
";

const AFTER_OPTIONS: &str = "\
Every message is checked for its length, its content, its number and its place in the order; what
is lost, repeated or changed is reported, and the exit code is 1.
";

/// The largest body: what RabbitMQ takes by default.
const SIZE_MAX: usize = 128 << 20;
/// Queue names and routing keys end in this many digits.
pub(super) const QUEUE_DIGITS: usize = 5;
const QUEUES_MAX: u32 = 10_u32.pow(QUEUE_DIGITS as u32);
/// Every one is a thread here.
const CLIENTS_MAX: u16 = 10_000;
/// Each takes eight bytes in its publisher.
const CONFIRMS_MAX: u32 = 1 << 24;
/// A message's number has 48 bits.
const MESSAGES_MAX: u64 = (1 << 48) - 1;
const RATE_MAX: u64 = 100_000_000;

/// Everything a run depends on.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Options {
    pub(super) target: BrokerChoice,
    pub(super) broker_pid: Option<u32>,
    pub(super) size: usize,
    pub(super) volume: Volume,
    pub(super) publishers: u16,
    pub(super) consumers: u16,
    pub(super) queues: u32,
    pub(super) exchange: Option<Kind>,
    pub(super) bindings: u32,
    pub(super) ack: Ack,
    pub(super) prefetch: u16,
    /// Messages that may be unconfirmed; no confirms at all without.
    pub(super) confirms: Option<u32>,
    pub(super) persistent: bool,
    /// Messages a second over all publishers; as many as go without.
    pub(super) rate: Option<u64>,
    pub(super) relay: Relay,
    pub(super) json: bool,
}

/// The broker that is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum BrokerChoice {
    /// One of our own, with these arguments.
    Own(Vec<OsString>),
    /// The one that listens there.
    At(Url),
}

/// How long it takes when nothing is said.
const TIME: Duration = Duration::from_secs(5);

/// When it is enough: at whichever comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Volume {
    pub(super) messages: Option<u64>,
    time: Option<Duration>,
}

impl Volume {
    /// How long publishers publish; without an end when only messages are counted.
    pub(super) fn time(&self) -> Option<Duration> {
        self.time.or_else(|| self.messages.is_none().then_some(TIME))
    }
}

/// How messages find their queues, when not through the default exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Direct,
    Fanout,
    Topic,
}

impl Kind {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Fanout => "fanout",
            Self::Topic => "topic",
        }
    }
}

/// How consumers acknowledge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ack {
    /// The broker takes a message as settled when it is sent.
    Auto,
    /// One acknowledgement for each message.
    Each,
    /// One acknowledgement for all that came together.
    Multiple,
}

impl Ack {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Each => "each",
            Self::Multiple => "multiple",
        }
    }
}

/// Whether the bare relay is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Relay {
    No,
    Also,
    Only,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            target: BrokerChoice::Own(Vec::new()),
            broker_pid: None,
            size: 16,
            volume: Volume::default(),
            publishers: 1,
            consumers: 1,
            queues: 1,
            exchange: None,
            bindings: 0,
            ack: Ack::Auto,
            prefetch: 1000,
            confirms: None,
            persistent: false,
            rate: None,
            relay: Relay::No,
            json: false,
        }
    }
}

const OPTIONS: Table<Options> = Table(&[
    Section {
        heading: "Where:",
        rows: &[
            OptionRow::new(
                "--url",
                "URL",
                "such as amqp://guest:guest@127.0.0.1:5672/%2f",
                |options, given| given.value().map(|url| options.target = BrokerChoice::At(url)),
            ),
            OptionRow::new("--address", "ADDR:PORT", "the same, as guest in /", |options, given| {
                let ListenAddress { socket, .. } = given.value()?;
                options.target = BrokerChoice::At(Url::of_address(socket));
                Ok(())
            }),
            OptionRow::new(
                "--broker-pid",
                "PID",
                "whose CPU time to report; found by itself when it runs on this machine",
                |options, given| given.number(1, u32::MAX).map(|pid| options.broker_pid = Some(pid)),
            ),
        ],
    },
    Section {
        heading: "What (the number in brackets is taken when nothing is said):",
        rows: &[
            OptionRow::new(
                "--size",
                "SIZE",
                "bytes of body [16]; from 8 up it carries a number that is checked",
                |options, given| {
                    let Bytes(size) = given.value::<Bytes<u32>>()?;
                    options.size = usize::try_from(size).unwrap_or(usize::MAX);
                    Ok(())
                },
            ),
            OptionRow::new("--messages", "N", "end after so many messages", |options, given| {
                given.number(1, MESSAGES_MAX).map(|count| options.volume.messages = Some(count))
            }),
            OptionRow::new(
                "--seconds",
                "S",
                "end publishing after so many seconds [5, without --messages]; with both, at\n\
             whichever comes first",
                |options, given| seconds(given).map(|time| options.volume.time = Some(time)),
            ),
            OptionRow::new("--publishers", "N", "connections that publish [1]", |options, given| {
                given.number(1, CLIENTS_MAX).map(|count| options.publishers = count)
            }),
            OptionRow::new(
                "--consumers",
                "N",
                "connections that consume [1]; 0 only fills the queues",
                |options, given| given.number(0, CLIENTS_MAX).map(|count| options.consumers = count),
            ),
            OptionRow::new(
                "--queues",
                "N",
                "queues; publishers and consumers take turns on them [1]",
                |options, given| given.number(1, QUEUES_MAX).map(|count| options.queues = count),
            ),
            OptionRow::new(
                "--exchange",
                "KIND",
                "direct, fanout or topic; the default exchange otherwise",
                |options, given| given.value().map(|kind| options.exchange = Some(kind)),
            ),
            OptionRow::new(
                "--bindings",
                "N",
                "bindings on that exchange beside those that are needed [0]",
                |options, given| given.number(0, u32::MAX).map(|count| options.bindings = count),
            ),
            OptionRow::new("--ack", "MODE", "auto, each or multiple [auto]", |options, given| {
                given.value().map(|ack| options.ack = ack)
            }),
            OptionRow::new(
                "--prefetch",
                "N",
                "messages a consumer may hold unacknowledged, 0 for no limit [1000]",
                |options, given| given.number(0, u16::MAX).map(|count| options.prefetch = count),
            ),
            OptionRow::new(
                "--confirms",
                "N",
                "publisher confirms, with at most N messages unconfirmed",
                |options, given| given.number(1, CONFIRMS_MAX).map(|count| options.confirms = Some(count)),
            ),
            OptionRow::new("--persistent", "", "durable queues, persistent messages", |options, _| {
                options.persistent = true;
                Ok(())
            }),
            OptionRow::new(
                "--rate",
                "N",
                "so many messages a second in all, and how long each takes",
                |options, given| given.number(1, RATE_MAX).map(|rate| options.rate = Some(rate)),
            ),
        ],
    },
    Section {
        heading: "How it is told:",
        rows: &[
            OptionRow::new(
                "--relay",
                "",
                "also measure a thread that only copies the same bytes from socket to socket",
                |options, _| {
                    options.relay = Relay::Also;
                    Ok(())
                },
            ),
            OptionRow::new("--json", "", "one line of JSON", |options, _| {
                options.json = true;
                Ok(())
            }),
            OptionRow::help(),
            OptionRow::version(),
        ],
    },
]);

/// What a person wants of the program.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Ask {
    /// Measure.
    Run(Options),
    /// Say how to use it.
    Help,
    /// Say which version this is.
    Version,
}

/// Reads the arguments, the program's own name left out.
///
/// # Errors
/// The first argument that makes no sense, or two that contradict each other.
pub(super) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Ask, BadArguments> {
    read(&mut lexopt::Parser::from_args(arguments)).map_err(|bad| BadArguments { program: PROGRAM, ..bad })
}

fn read(parser: &mut lexopt::Parser) -> Result<Ask, BadArguments> {
    let mut options = Options::default();
    loop {
        if let Some(arguments) = rest_after_dashes(parser) {
            options.broker_options(arguments)?;
            break;
        }
        match OPTIONS.next(&mut options, parser)? {
            Next::End => break,
            Next::Help => return Ok(Ask::Help),
            Next::Version => return Ok(Ask::Version),
            Next::Option => {}
            Next::Word(word) if word == "relay" => options.relay = Relay::Only,
            Next::Word(word) => {
                return Err(BadArguments::new(format!(
                    "{word:?} is one argument too many; options for the broker follow --"
                )));
            }
        }
    }
    options.check()?;
    Ok(Ask::Run(options))
}

/// Everything behind a `--`, if that is what comes next.
fn rest_after_dashes(parser: &mut lexopt::Parser) -> Option<Vec<OsString>> {
    let raw = parser.try_raw_args()?;
    if raw.peek()? != "--" {
        return None;
    }
    Some(raw.skip(1).collect())
}

impl Options {
    /// Refuses what contradicts itself.
    fn check(&self) -> Result<(), BadArguments> {
        let refuse = |sentence: &str| Err(BadArguments::new(sentence.to_string()));
        if self.size > SIZE_MAX {
            return refuse("--size: a message has at most 128MiB");
        }
        if self.rate.is_some() && self.size < STAMPED_SIZE_MIN {
            return refuse("--rate: give --size 16 or more, for each message carries the time it was sent");
        }
        if self.bindings > 0 && self.exchange.is_none() {
            return refuse("--bindings: give --exchange too, for the default exchange cannot be bound");
        }
        Ok(())
    }

    fn broker_options(&mut self, arguments: Vec<OsString>) -> Result<(), BadArguments> {
        match &mut self.target {
            BrokerChoice::Own(own) => *own = arguments,
            BrokerChoice::At(url) => {
                let sentence = format!("options after -- are for a broker of our own, not for {url}");
                return Err(BadArguments::new(sentence));
            }
        }
        Ok(())
    }

    /// Whether a message has room for its number.
    pub(super) const fn is_numbered(&self) -> bool {
        self.size >= NUMBERED_SIZE_MIN
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "direct" => Ok(Self::Direct),
            "fanout" => Ok(Self::Fanout),
            "topic" => Ok(Self::Topic),
            _ => Err(format!("{text:?} is not one of direct, fanout, topic")),
        }
    }
}

impl FromStr for Ack {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "each" => Ok(Self::Each),
            "multiple" => Ok(Self::Multiple),
            _ => Err(format!("{text:?} is not one of auto, each, multiple")),
        }
    }
}

/// A time: whole seconds, or with a unit.
fn seconds(given: &mut Given<'_>) -> Result<Duration, BadArguments> {
    let text: String = given.value()?;
    if let Ok(seconds) = text.parse::<u32>() {
        return Ok(Duration::from_secs(seconds.into()));
    }
    let Millis(ms) = text.parse().map_err(|error| given.bad(format_args!("{error}")))?;
    Ok(Duration::from_millis(ms.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Options, String> {
        match parse(line.split_whitespace().map(OsString::from)).map_err(|error| error.to_string())? {
            Ask::Run(options) => Ok(options),
            other => Err(format!("{other:?}")),
        }
    }

    #[track_caller]
    fn refused(line: &str, sentence: &str) {
        let said = parsed(line).unwrap_err();
        assert!(said.starts_with(sentence), "{said}");
    }

    #[test]
    fn every_option_is_taken() {
        let line = "--address 127.0.0.1:1 --broker-pid 7 --size 1KiB --messages 10 --publishers 2 \
                    --consumers 3 --queues 4 --exchange topic --bindings 5 --ack multiple --prefetch 6 \
                    --confirms 8 --persistent --rate 9 --relay --json";
        let expected = Options {
            target: BrokerChoice::At(Url::of_address("127.0.0.1:1".parse().expect("an address"))),
            broker_pid: Some(7),
            size: 1024,
            volume: Volume { messages: Some(10), time: None },
            publishers: 2,
            consumers: 3,
            queues: 4,
            exchange: Some(Kind::Topic),
            bindings: 5,
            ack: Ack::Multiple,
            prefetch: 6,
            confirms: Some(8),
            persistent: true,
            rate: Some(9),
            relay: Relay::Also,
            json: true,
        };
        assert_eq!(parsed(line), Ok(expected));
        let ends = |line| parsed(line).map(|options| (options.volume.messages, options.volume.time()));
        let half = Some(Duration::from_millis(500));
        assert_eq!(ends("--seconds 500ms"), Ok((None, half)));
        assert_eq!(ends("--messages 3"), Ok((Some(3), None)));
        assert_eq!(ends(""), Ok((None, Some(TIME))));
        for both in ["--messages 3 --seconds 500ms", "--seconds 500ms --messages 3"] {
            assert_eq!(ends(both), Ok((Some(3), half)));
        }
        assert_eq!(parsed("relay --seconds 2").map(|o| o.relay), Ok(Relay::Only));
    }

    #[test]
    fn what_follows_two_dashes_is_for_the_broker() {
        let own = |arguments: &[&str]| Ok(BrokerChoice::Own(arguments.iter().map(OsString::from).collect()));
        assert_eq!(parsed("--json -- --board pi-4").map(|o| o.target), own(&["--board", "pi-4"]));
        assert_eq!(parsed("-- --json").map(|o| (o.target, o.json)), own(&["--json"]).map(|t| (t, false)));
        assert_eq!(parsed("").map(|o| o.target), own(&[]));
        refused(
            "--url amqp://h -- --x",
            "options after -- are for a broker of our own, not for amqp://h:5672",
        );
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        refused("--sice 1", "unknown option --sice; did you mean --size?");
        refused("--size 1XB", "--size: \"1XB\" is not a size");
        refused("--publishers 0", "--publishers: \"0\" is not a whole number from 1 to 10000");
        refused("--ack none", "--ack: \"none\" is not one of auto, each, multiple");
        refused("--exchange headers", "--exchange: \"headers\" is not one of direct, fanout, topic");
        refused("--rate 5 --size 8", "--rate: give --size 16 or more");
        refused("--bindings 5", "--bindings: give --exchange too");
        refused("--size 129MiB", "--size: a message has at most 128MiB");
        refused("--url", "missing argument for option '--url' (leveret-bench --help lists what there is)");
        refused("twice", "\"twice\" is one argument too many; options for the broker follow --");
    }

    #[test]
    fn the_help_names_every_option() {
        for word in OPTIONS.names() {
            assert!(help().contains(word), "{word}");
        }
        for (line, asked) in [("--json -h", Ask::Help), ("--version", Ask::Version), ("-V", Ask::Version)] {
            assert_eq!(parse(line.split_whitespace().map(OsString::from)), Ok(asked), "{line}");
        }
    }
}
