//! The arguments of `leveret ctl`: a command, its arguments, and options that may stand anywhere.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use lexopt::Arg;

use super::format::Formatter;

/// The command and options that were asked for.
#[derive(Clone, Debug, Default)]
pub(super) struct Call {
    /// The command; empty when there is none.
    pub(super) command: String,
    /// How it is used, for who complains of its arguments; empty until it is known.
    pub(super) usage: &'static str,
    /// Its arguments.
    pub(super) args: Vec<String>,
    /// Everything as it was given, for those who look for the mistake.
    pub(super) given: String,
    /// The virtual host, if one was named.
    pub(super) vhost: Option<String>,
    /// How long an answer may take.
    pub(super) timeout: Option<Duration>,
    /// No informational messages.
    pub(super) quiet: bool,
    /// Neither those nor a table's header.
    pub(super) silent: bool,
    /// No table's header.
    pub(super) no_headers: bool,
    /// How rows are shown, if it was said.
    pub(super) formatter: Option<Formatter>,
    /// Options that only some commands have, without a value, such as `if-empty`.
    pub(super) flags: Vec<String>,
    /// Options that have a value, with it.
    pub(super) values: Vec<(String, String)>,
    /// It is a part of a report, which people read wherever it was written to.
    pub(super) in_report: bool,
    /// The socket, if it was named.
    pub(super) socket: Option<PathBuf>,
    /// Where the broker keeps its data, if it was said.
    pub(super) data_dir: Option<PathBuf>,
    /// The broker's configuration, if it was named.
    pub(super) config: Option<PathBuf>,
    /// Help was asked for.
    pub(super) help: bool,
    /// What makes no sense, if anything.
    pub(super) bad: Option<String>,
}

/// Options that are there so that scripts need not change, and mean nothing for one broker.
const IGNORED: [&str; 5] = ["longnames", "online", "offline", "local", "dry-run"];
/// Options without a value that commands look for.
const FLAGS: [&str; 4] = ["if-empty", "if-unused", "global", "skip-if-unchanged"];
/// Options with a value that commands look for.
const VALUES: [&str; 10] = [
    "file",
    "user",
    "format",
    "description",
    "tags",
    "per-connection-delay",
    "limit",
    "default-queue-type",
    "priority",
    "apply-to",
];

impl Call {
    /// The virtual host that is meant.
    pub(super) fn vhost(&self) -> &str {
        self.vhost.as_deref().unwrap_or("/")
    }

    /// The value of an option, if it was given.
    pub(super) fn value(&self, option: &str) -> Option<&str> {
        self.values.iter().rev().find(|(name, _)| name == option).map(|(_, value)| value.as_str())
    }

    /// Whether an option without a value was given.
    pub(super) fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|given| given == flag)
    }

    /// Whether informational messages are wanted.
    pub(super) fn talks(&self) -> bool {
        !self.quiet && !self.silent && !matches!(self.formatter, Some(Formatter::Json | Formatter::Csv))
    }

    /// The formatter that is meant.
    pub(super) fn formatter(&self) -> Formatter {
        self.formatter.unwrap_or_default()
    }
}

/// Reads the arguments. What makes no sense is kept, for the command to complain about with its usage.
pub(super) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Call {
    let given: Vec<OsString> = arguments.into_iter().collect();
    let shown: Vec<_> = given.iter().map(|word| word.to_string_lossy()).collect();
    let mut call = Call { given: shown.join(" "), ..Call::default() };
    let mut parser = lexopt::Parser::from_args(given);
    loop {
        let word = match parser.next() {
            Ok(None) => return call,
            Ok(Some(Arg::Value(word))) => {
                call.take_word(word);
                continue;
            }
            Ok(Some(Arg::Short(letter))) => letter.to_string(),
            Ok(Some(Arg::Long(name))) => name.to_string(),
            Err(error) => {
                call.bad.get_or_insert(error.to_string());
                return call;
            }
        };
        if let Err(why) = call.take_option(&word, &mut parser) {
            let dashes = if word.chars().count() == 1 { "-" } else { "--" };
            call.bad.get_or_insert(format!("{dashes}{word} : {why}"));
        }
    }
}

impl Call {
    fn take_word(&mut self, word: OsString) {
        match word.into_string() {
            Ok(word) if self.command.is_empty() => self.command = word,
            Ok(word) => self.args.push(word),
            Err(word) => drop(self.bad.get_or_insert(format!("{} is not UTF-8", word.display()))),
        }
    }

    /// An option by its name without dashes.
    fn take_option(&mut self, name: &str, parser: &mut lexopt::Parser) -> Result<(), String> {
        let mut value = || {
            let value = parser.value().map_err(|_| String::new())?;
            value.into_string().map_err(|_| "not UTF-8".to_string())
        };
        match name {
            "n" | "node" | "erlang-cookie" => drop(value()?),
            "l" => {}
            "q" | "quiet" => self.quiet = true,
            "s" | "silent" => self.silent = true,
            "no-table-headers" => self.no_headers = true,
            "p" | "vhost" => self.vhost = Some(value()?),
            "t" | "timeout" => {
                let seconds: u64 = value()?.parse().map_err(|_| "a whole number of seconds".to_string())?;
                self.timeout = Some(Duration::from_secs(seconds.max(1)));
            }
            "formatter" => self.formatter = Some(value()?.parse()?),
            "socket" => self.socket = Some(value()?.into()),
            "data-dir" => self.data_dir = Some(value()?.into()),
            "config" => self.config = Some(value()?.into()),
            "e" => self.flags.push("if-empty".to_string()),
            "u" => self.flags.push("if-unused".to_string()),
            "?" | "h" | "help" => self.help = true,
            name if IGNORED.contains(&name) => {}
            name if FLAGS.contains(&name) => self.flags.push(name.to_string()),
            name if VALUES.contains(&name) => self.values.push((name.to_string(), value()?)),
            _ => return Err(String::new()),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Call {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn options_stand_anywhere() {
        let call = parsed("-q set_permissions -p v1 bob .* --timeout 5 .* -n rabbit@host .*");
        assert_eq!((call.command.as_str(), call.vhost()), ("set_permissions", "v1"));
        assert_eq!(call.args, ["bob", ".*", ".*", ".*"]);
        assert_eq!((call.timeout, call.quiet, call.bad), (Some(Duration::from_secs(5)), true, None));
        assert_eq!(parsed("add_user bob -- -x").args, ["bob", "-x"]);
        assert!(parsed("delete_queue -e --if-unused q").has("if-empty"));
    }

    #[test]
    fn what_makes_no_sense_is_kept() {
        assert_eq!(parsed("list_queues --bogus").bad.as_deref(), Some("--bogus : "));
        assert_eq!(parsed("list_queues -p").bad.as_deref(), Some("-p : "));
        assert!(parsed("list_queues --formatter nosuch").bad.unwrap().contains("table, json"));
    }

    #[test]
    fn machines_are_told_nothing_but_rows() {
        assert!(parsed("list_queues").talks());
        assert!(parsed("list_queues --formatter pretty_table").talks());
        assert!(!parsed("list_queues --formatter json").talks());
        assert!(!parsed("-s list_queues").talks());
    }
}
