//! What `leveret bench` is asked to do: its command line, understood and checked.
//!
//! Always true of [`Options`]: every number is in the range its help names, and no two of them contradict
//! each other, so what runs the bench need not look again.

use std::ffi::OsString;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use lexopt::Arg;

use super::body::{NUMBERED_SIZE_MIN, STAMPED_SIZE_MIN};
use super::url::Url;
use crate::args::{BadArguments, value};
use crate::config::describe_unknown;
use crate::config::units::{Bytes, ListenAddress, Millis};

/// What `leveret bench --help` prints.
pub const HELP: &str = "\
Publishers and consumers in one process, over loopback or the network, against a broker.

Usage: leveret bench [OPTIONS] [-- BROKER OPTIONS]    against a Leveret of its own, started on a
                                                      free port with the BROKER OPTIONS
       leveret bench --url URL [OPTIONS]              against the broker that listens there
       leveret bench relay [OPTIONS]                  the bare relay alone

Where:
  --url URL             such as amqp://guest:guest@127.0.0.1:5672/%2f
  --address ADDR:PORT   the same, as guest in /
  --broker-pid PID      whose CPU time to report; found by itself when it runs on this machine

What (the number in brackets is taken when nothing is said):
  --size SIZE           bytes of body [16]; from 8 up it carries a number that is checked
  --messages N          end after so many messages
  --seconds S           end publishing after so many seconds [5, without --messages]; with both, at
                        whichever comes first
  --publishers N        connections that publish [1]
  --consumers N         connections that consume [1]; 0 only fills the queues
  --queues N            queues; publishers and consumers take turns on them [1]
  --exchange KIND       direct, fanout or topic; the default exchange otherwise
  --bindings N          bindings on that exchange beside those that are needed [0]
  --ack MODE            auto, each or multiple [auto]
  --prefetch N          messages a consumer may hold unacknowledged, 0 for no limit [1000]
  --confirms N          publisher confirms, with at most N messages unconfirmed
  --persistent          durable queues, persistent messages
  --rate N              so many messages a second in all, and how long each takes

How it is told:
  --relay               also measure a thread that only copies the same bytes from socket to socket
  --json                one line of JSON
  -h, --help            print this

Every message is checked for its length, its content, its number and its place in the order; what
is lost, repeated or changed is reported, and the exit code is 1.
";

const OPTIONS: [&str; 19] = [
    "--url",
    "--address",
    "--broker-pid",
    "--size",
    "--messages",
    "--seconds",
    "--publishers",
    "--consumers",
    "--queues",
    "--exchange",
    "--bindings",
    "--ack",
    "--prefetch",
    "--confirms",
    "--persistent",
    "--rate",
    "--relay",
    "--json",
    "--help",
];

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
pub struct Options {
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

/// Reads what comes after `leveret bench`; `None` when help was asked for.
///
/// # Errors
/// The first argument that makes no sense, or two that contradict each other.
pub fn parse(parser: &mut lexopt::Parser) -> Result<Option<Options>, BadArguments> {
    let mut options = Options::default();
    loop {
        if let Some(arguments) = rest_after_dashes(parser) {
            options.broker_options(arguments)?;
            break;
        }
        match parser.next()? {
            None => break,
            Some(Arg::Short('h') | Arg::Long("help")) => return Ok(None),
            Some(Arg::Value(word)) if word == "relay" => options.relay = Relay::Only,
            Some(Arg::Value(word)) => {
                return Err(BadArguments::new(format!(
                    "{word:?} is one argument too many; options for the broker follow --"
                )));
            }
            Some(Arg::Short(letter)) => return Err(unknown_option(&format!("-{letter}"))),
            Some(Arg::Long(name)) => {
                let name = format!("--{name}");
                options.take(&name, parser)?;
            }
        }
    }
    options.check()?;
    Ok(Some(options))
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
    fn take(&mut self, name: &str, parser: &mut lexopt::Parser) -> Result<(), BadArguments> {
        match name {
            "--url" => self.target = BrokerChoice::At(value(name, parser)?),
            "--address" => {
                self.target = BrokerChoice::At(Url::of_address(value::<ListenAddress>(name, parser)?.socket))
            }
            "--broker-pid" => self.broker_pid = Some(number(name, parser, 1, u32::MAX)?),
            "--size" => {
                let Bytes(size) = value::<Bytes<u32>>(name, parser)?;
                self.size = usize::try_from(size).unwrap_or(usize::MAX);
            }
            "--messages" => self.volume.messages = Some(number(name, parser, 1, MESSAGES_MAX)?),
            "--seconds" => self.volume.time = Some(seconds(name, parser)?),
            "--publishers" => self.publishers = number(name, parser, 1, CLIENTS_MAX)?,
            "--consumers" => self.consumers = number(name, parser, 0, CLIENTS_MAX)?,
            "--queues" => self.queues = number(name, parser, 1, QUEUES_MAX)?,
            "--exchange" => self.exchange = Some(value(name, parser)?),
            "--bindings" => self.bindings = number(name, parser, 0, u32::MAX)?,
            "--ack" => self.ack = value(name, parser)?,
            "--prefetch" => self.prefetch = number(name, parser, 0, u16::MAX)?,
            "--confirms" => self.confirms = Some(number(name, parser, 1, CONFIRMS_MAX)?),
            "--persistent" => self.persistent = true,
            "--rate" => self.rate = Some(number(name, parser, 1, RATE_MAX)?),
            "--relay" => self.relay = Relay::Also,
            "--json" => self.json = true,
            _ => return Err(unknown_option(name)),
        }
        Ok(())
    }
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

/// A whole number from `min` to `max`.
fn number<T>(name: &str, parser: &mut lexopt::Parser, min: T, max: T) -> Result<T, BadArguments>
where
    T: FromStr + PartialOrd + fmt::Display,
{
    let text: String = value(name, parser)?;
    match text.parse() {
        Ok(number) if min <= number && number <= max => Ok(number),
        _ => Err(BadArguments::new(format!("{name}: {text:?} is not a whole number from {min} to {max}"))),
    }
}

/// A time: whole seconds, or with a unit.
fn seconds(name: &str, parser: &mut lexopt::Parser) -> Result<Duration, BadArguments> {
    let text: String = value(name, parser)?;
    if let Ok(seconds) = text.parse::<u32>() {
        return Ok(Duration::from_secs(seconds.into()));
    }
    let Millis(ms) = text.parse().map_err(|error| BadArguments::new(format!("{name}: {error}")))?;
    Ok(Duration::from_millis(ms.into()))
}

fn unknown_option(name: &str) -> BadArguments {
    BadArguments::new(describe_unknown("option", name, &OPTIONS))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Options, String> {
        let mut parser = lexopt::Parser::from_args(line.split_whitespace());
        parse(&mut parser).map(Option::unwrap_or_default).map_err(|error| error.to_string())
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
        refused("twice", "\"twice\" is one argument too many; options for the broker follow --");
    }

    #[test]
    fn the_help_names_every_option() {
        for word in OPTIONS {
            assert!(HELP.contains(word), "{word}");
        }
    }
}
