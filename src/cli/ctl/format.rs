//! Rows in the formats of rabbitmqctl 3.10 (tab-separated, JSON, CSV, or drawn), and `report`.
//!
//! On a terminal and in a report, unprintable characters are escaped, because clients choose some texts.
//! Output to a pipe or a file is not escaped.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};
use std::{fs, thread};

use leveret_core::version::build_version;
use leveret_daemon::logging::{Printable, is_printable};
use serde_json::Value;

use super::client::{Failure, NO_INPUT, TIMED_OUT, UNAVAILABLE, heading, misused, print_done, print_info};
use super::commands::{self, Call, connect};
use super::flight;

/// The format of rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Formatter {
    /// Columns separated by tabs.
    #[default]
    Table,
    /// One object per row.
    Json,
    /// Quoted values separated by commas.
    Csv,
    /// A drawn table.
    PrettyTable,
}

impl FromStr for Formatter {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "table" => Ok(Self::Table),
            "json" => Ok(Self::Json),
            "csv" => Ok(Self::Csv),
            "pretty_table" => Ok(Self::PrettyTable),
            _ => Err(format!("Formatter {name} is not supported: there are table, json, csv, pretty_table")),
        }
    }
}

/// Prints rows as they arrive.
#[derive(Debug)]
pub(super) struct Printer<'o, W: Write> {
    out: &'o mut W,
    formatter: Formatter,
    columns: Vec<String>,
    has_header: bool,
    /// The output is a terminal: unprintable characters are escaped.
    is_terminal: bool,
    /// The output is a report: unprintable characters and tabs are escaped.
    is_report: bool,
    rows: u64,
    /// Rows of a drawn table, which can be printed only when the widths of all rows are known.
    kept: Vec<Vec<String>>,
}

impl<'o, W: Write> Printer<'o, W> {
    /// Creates a printer for these columns.
    pub(super) fn new(out: &'o mut W, formatter: Formatter, columns: &[&str], has_header: bool) -> Self {
        let columns = columns.iter().map(|column| (*column).to_string()).collect();
        let (is_terminal, is_report) = (false, false);
        Self { out, formatter, columns, has_header, is_terminal, is_report, rows: 0, kept: Vec::new() }
    }

    /// Escapes unprintable characters if the output is a terminal.
    #[must_use]
    pub(super) const fn for_terminal(mut self, is_terminal: bool) -> Self {
        self.is_terminal = is_terminal;
        self
    }

    /// Escapes unprintable characters and tabs if the output is a report.
    #[must_use]
    pub(super) const fn for_report(mut self, is_report: bool) -> Self {
        self.is_report = is_report;
        self
    }

    /// Prints a row with one value per column.
    ///
    /// # Errors
    /// The output is closed.
    pub(super) fn row(&mut self, cells: &[Value]) -> io::Result<()> {
        self.rows += 1;
        match self.formatter {
            Formatter::Json => {
                self.out.write_all(if self.rows == 1 { b"[\n" } else { b"," })?;
                self.json_row(cells)
            }
            Formatter::PrettyTable => {
                self.kept.push(cells.iter().map(|cell| self.shown(cell)).collect());
                Ok(())
            }
            Formatter::Table | Formatter::Csv => {
                self.header()?;
                let shown: Vec<String> = cells.iter().map(|cell| self.shown(cell)).collect();
                self.line(&shown)
            }
        }
    }

    /// Prints what follows the last row.
    ///
    /// # Errors
    /// The output is closed.
    pub(super) fn end(&mut self) -> io::Result<()> {
        match self.formatter {
            Formatter::Json if self.rows == 0 => self.out.write_all(b"[\n]\n"),
            Formatter::Json => self.out.write_all(b"]\n"),
            Formatter::PrettyTable if self.rows > 0 => self.draw(),
            _ => Ok(()),
        }
    }

    /// Prints what follows the last row of a list whose columns cannot be chosen.
    ///
    /// # Errors
    /// The output is closed.
    pub(super) fn end_of_fixed_columns(&mut self) -> io::Result<()> {
        match (self.rows, self.formatter) {
            (0, Formatter::Table) => writeln!(self.out),
            (0, Formatter::Json) => writeln!(self.out, "[]"),
            _ => self.end(),
        }
    }

    /// Prints the header before the first row.
    fn header(&mut self) -> io::Result<()> {
        if !core::mem::replace(&mut self.has_header, false) {
            return Ok(());
        }
        let columns = self.columns.clone();
        self.line(&columns)
    }

    fn line(&mut self, cells: &[String]) -> io::Result<()> {
        if self.formatter == Formatter::Csv {
            let quoted: Vec<String> =
                cells.iter().map(|cell| format!("\"{}\"", cell.replace('"', "\"\""))).collect();
            return writeln!(self.out, "{}", quoted.join(","));
        }
        writeln!(self.out, "{}", cells.join("\t"))
    }

    fn json_row(&mut self, cells: &[Value]) -> io::Result<()> {
        self.out.write_all(b"{")?;
        for (at, (column, cell)) in self.columns.iter().zip(cells).enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(self.out, "{comma}{}:{}", Value::from(column.as_str()), self.shown_json(cell))?;
        }
        self.out.write_all(b"}\n")
    }

    /// Formats a value as JSON. Unprintable characters occur only in strings, where they are escaped as in
    /// JSON.
    fn shown_json(&self, cell: &Value) -> String {
        let mut text = cell.to_string();
        if self.is_terminal || self.is_report {
            while let Some(letter) = text.chars().find(|letter| !is_printable(*letter)) {
                let units = letter
                    .encode_utf16(&mut [0; 2])
                    .iter()
                    .map(|unit| format!("\\u{unit:04x}"))
                    .collect::<String>();
                text = text.replace(letter, &units);
            }
        }
        text
    }

    fn shown(&self, cell: &Value) -> String {
        let text = plain(cell);
        if self.is_report {
            return Printable(text).to_string();
        }
        if !self.is_terminal {
            return text;
        }
        let pieces: Vec<String> = text.split('\t').map(|piece| Printable(piece).to_string()).collect();
        pieces.join("\t")
    }

    /// Draws the table with box-drawing characters, as rabbitmqctl does.
    fn draw(&mut self) -> io::Result<()> {
        let mut rows = core::mem::take(&mut self.kept);
        for cell in rows.iter_mut().flatten() {
            *cell = cell.replace('\t', "     ");
        }
        let width = |at: usize| {
            let cells = rows.iter().map(|row| row[at].chars().count());
            cells.chain([self.columns[at].chars().count()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let rule = |left: char, middle: char, right: char| {
            let parts: Vec<String> = widths.iter().map(|width| "q".repeat(width + 2)).collect();
            format!("\x1b(0{left}{}{right}\x1b(B", parts.join(&middle.to_string()))
        };
        let bar = "\x1b(0x\x1b(B";
        writeln!(self.out, "{}", rule('l', 'w', 'k'))?;
        if self.has_header {
            for (name, width) in self.columns.iter().zip(&widths) {
                let pad = " ".repeat(width - name.chars().count());
                write!(self.out, "{bar} \x1b[1m{name}\x1b[0m{pad} ")?;
            }
            writeln!(self.out, "{bar}")?;
        }
        for (at, row) in rows.iter().enumerate() {
            if at > 0 || self.has_header {
                writeln!(self.out, "{}", rule('t', 'n', 'u'))?;
            }
            for (cell, width) in row.iter().zip(&widths) {
                write!(self.out, "{bar} {cell}{} ", " ".repeat(width - cell.chars().count()))?;
            }
            writeln!(self.out, "{bar}")?;
        }
        writeln!(self.out, "{}", rule('m', 'v', 'j'))
    }
}

/// Prints all rows of a list whose columns cannot be chosen. If there are none, the output is an empty line, or `[]` as
/// JSON, as with rabbitmqctl.
pub(super) fn print_rows(
    call: &Call,
    columns: &[&str],
    rows: impl IntoIterator<Item = Vec<Value>>,
) -> Result<(), Failure> {
    let stdout = io::stdout();
    let is_terminal = stdout.is_terminal();
    let mut out = stdout.lock();
    let mut printer = Printer::new(&mut out, call.formatter(), columns, !call.silent && !call.no_headers)
        .for_terminal(is_terminal)
        .for_report(call.in_report);
    rows.into_iter().try_for_each(|row| printer.row(&row))?;
    printer.end_of_fixed_columns()?;
    Ok(())
}

/// Formats a cell of a table: strings without quotes, arguments as Erlang terms, tags in brackets.
fn plain(cell: &Value) -> String {
    match cell {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(list) if list.iter().any(Value::is_array) => erlang_table(list),
        Value::Array(list) => {
            let items: Vec<String> = list.iter().map(plain).collect();
            format!("[{}]", items.join(", "))
        }
        other => other.to_string(),
    }
}

/// Formats name, type and value of a table's entries, as Erlang does.
fn erlang_table(entries: &[Value]) -> String {
    let shown = entries.iter().map(|entry| match entry.as_array().map(Vec::as_slice) {
        Some([name, kind, value]) => format!("{{{},{}}}", erlang_text(name), erlang_term(kind, value)),
        _ => entry.to_string(),
    });
    format!("[{}]", shown.collect::<Vec<_>>().join(","))
}

fn erlang_term(kind: &Value, value: &Value) -> String {
    match (kind.as_str(), value) {
        (Some("table"), Value::Array(entries)) => erlang_table(entries),
        (Some("array"), Value::Array(items)) => {
            let shown = items.iter().map(|item| match item.as_array().map(Vec::as_slice) {
                Some([kind, value]) => erlang_term(kind, value),
                _ => item.to_string(),
            });
            format!("[{}]", shown.collect::<Vec<_>>().join(","))
        }
        (_, Value::String(_)) => erlang_text(value),
        (_, Value::Null) => "undefined".to_string(),
        _ => value.to_string(),
    }
}

fn erlang_text(text: &Value) -> String {
    let text = text.as_str().unwrap_or_default();
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// Commands about the broker, in this order.
const OF_BROKER: [&str; 9] = [
    "status",
    "environment",
    "list_alarms",
    "list_users",
    "list_connections",
    "list_channels",
    "bridge_status",
    "list_orphans",
    "list_vhosts",
];
/// Commands about each virtual host.
const OF_VHOST: [&str; 11] = [
    "list_permissions",
    "list_topic_permissions",
    "list_vhost_limits",
    "list_policies",
    "list_operator_policies",
    "list_queues",
    "list_exchanges",
    "list_bindings",
    "list_consumers",
    "list_mqtt_sessions",
    "list_retained",
];
/// Commands about the system.
const OF_SYSTEM: [&str; 5] =
    ["/proc/version", "/proc/uptime", "/proc/loadavg", "/proc/meminfo", "/proc/device-tree/model"];
const SYSTEM_LINES_MAX: usize = 5;

/// Time limit for the start of a broker, and interval between attempts.
const STARTUP: Duration = Duration::from_secs(300);
const STARTUP_STEP: Duration = Duration::from_millis(200);

/// Default time limit for a reply, because a suspended broker never replies.
const ANSWER: Duration = Duration::from_secs(10);
/// The configuration key of the flight recorder.
const FLIGHT_KEY: &str = "flight_recorder = ";

pub(super) fn report(call: &Call) -> Result<(), Failure> {
    if call.formatter.is_some() {
        return Err(misused(call, "\"Only report formatter is supported\""));
    }
    if let Some(file) = call.value("file") {
        return events(Path::new(file));
    }
    let environment = environment(call);
    if let Err(failure) = &environment
        && !matches!(failure.code, UNAVAILABLE | TIMED_OUT)
    {
        return environment.map(drop);
    }
    print_info(call, "Reporting the state of the broker, without messages and secrets ...")?;
    part("leveretctl", build_version())?;
    for file in OF_SYSTEM {
        if let Ok(text) = fs::read_to_string(file) {
            let lines = text.trim_end_matches('\0').lines().take(SYSTEM_LINES_MAX);
            let lines: Vec<String> = lines.map(|line| Printable(line).to_string()).collect();
            part(file, &lines.join("\n"))?;
        }
    }
    if environment.is_ok() {
        for question in OF_BROKER {
            ask(call, question, None)?;
        }
        for vhost in vhosts(call)? {
            for question in OF_VHOST {
                ask(call, question, Some(&vhost))?;
            }
        }
    }
    let recorder = match &environment {
        Ok(text) => text.lines().find_map(|line| line.strip_prefix(FLIGHT_KEY)).and_then(unquoted),
        Err(_) => commands::flight_recorder(call),
    };
    writeln!(io::stdout(), "\n{}\n", heading("events"))?;
    match recorder {
        Some(file) => events(&file).or_else(|failure| print_failure(&failure)),
        None => Ok(writeln!(io::stdout(), "(the flight recorder's file is unknown; name it with --file)")?),
    }
    .and(environment.map(drop))
}

/// Returns the broker's configuration, if the broker replies.
fn environment(call: &Call) -> Result<String, Failure> {
    let soon = Call { timeout: call.timeout.or(Some(ANSWER)), ..call.clone() };
    let reply = connect(&soon)?.ask("GET", "/api/ctl/environment", "", "")?;
    reply.body.as_str().map(str::to_string).ok_or_else(|| Failure::refused(&reply))
}

/// Returns the path in quotes; `None` if it is empty.
fn unquoted(text: &str) -> Option<PathBuf> {
    let path: String = serde_json::from_str(text).ok()?;
    (!path.is_empty()).then(|| path.into())
}

/// Prints the content of a flight recorder.
fn events(file: &Path) -> Result<(), Failure> {
    let shown = flight::shown(file);
    let shown =
        shown.map_err(|error| Failure::new(NO_INPUT, format!("Error: {}: {error}", file.display())))?;
    writeln!(io::stdout(), "{}:\n\n{shown}", Printable(file.display()))?;
    Ok(())
}

fn part(title: &str, text: &str) -> Result<(), Failure> {
    writeln!(io::stdout(), "\n{}\n\n{text}", heading(title))?;
    Ok(())
}

/// Prints in one line why a part of the report is missing.
fn print_failure(failure: &Failure) -> Result<(), Failure> {
    let reason = failure.text.trim_end().replacen("Error:\n", "Error: ", 1);
    Ok(writeln!(io::stdout(), "{}", Printable(reason))?)
}

/// Runs another command with all its columns. If it fails, its error is printed instead, and the report
/// continues. A report contains no secrets, because no command used here prints any.
fn ask(call: &Call, name: &str, vhost: Option<&str>) -> Result<(), Failure> {
    let title = vhost.map_or_else(|| name.to_string(), |vhost| format!("{name} --vhost {vhost}"));
    writeln!(io::stdout(), "\n{}\n", heading(&Printable(title).to_string()))?;
    let command =
        commands::COMMANDS.iter().find(|command| command.name == name).expect("a command of the table");
    let columns = command.columns().unwrap_or_default();
    let step = Call {
        command: name.to_string(),
        args: columns.into_iter().map(str::to_string).collect(),
        vhost: vhost.map(str::to_string),
        quiet: true,
        formatter: None,
        in_report: true,
        ..call.clone()
    };
    command.run(&step).or_else(|failure| print_failure(&failure))
}

fn vhosts(call: &Call) -> Result<Vec<String>, Failure> {
    let mut names = Vec::new();
    let refused = connect(call)?.rows("/api/vhosts?columns=name", &mut |row| {
        names.extend(row.get("name").and_then(Value::as_str).map(str::to_string));
        Ok(())
    })?;
    match refused {
        Some(reply) => Err(Failure::refused(&reply)),
        None => Ok(names),
    }
}

pub(super) fn await_startup(call: &Call) -> Result<(), Failure> {
    let limit = call.timeout.unwrap_or(STARTUP);
    print_info(
        call,
        &format!("Waiting for the broker to answer, for {} seconds at most ...", limit.as_secs()),
    )?;
    let began = Instant::now();
    loop {
        match connect(call) {
            Ok(mut client) => {
                client.ask("GET", "/api/overview", "", "")?;
                print_info(call, "It answers")?;
                return print_done(call);
            }
            Err(failure) if failure.code == UNAVAILABLE && began.elapsed() < limit => {
                thread::sleep(STARTUP_STEP);
            }
            Err(failure) => return Err(failure),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn printed(formatter: Formatter, has_header: bool, rows: &[Vec<Value>]) -> String {
        let mut out = Vec::new();
        let mut printer = Printer::new(&mut out, formatter, &["name", "messages"], has_header);
        for row in rows {
            printer.row(row).unwrap();
        }
        printer.end().unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn tables_are_tab_separated_and_empty_ones_say_nothing() {
        let rows = [vec![json!("a"), json!(1)], vec![json!("b\tc"), json!(true)]];
        assert_eq!(printed(Formatter::Table, true, &rows), "name\tmessages\na\t1\nb\tc\ttrue\n");
        assert_eq!(printed(Formatter::Table, false, &rows[..1]), "a\t1\n");
        assert_eq!(printed(Formatter::Table, true, &[]), "");
    }

    #[test]
    fn json_has_a_row_a_line_in_the_order_asked_for() {
        let rows = [vec![json!("a\"b"), json!(1)], vec![json!("c"), json!([["k", "longstr", "v"]])]];
        assert_eq!(
            printed(Formatter::Json, true, &rows),
            "[\n{\"name\":\"a\\\"b\",\"messages\":1}\n,\
             {\"name\":\"c\",\"messages\":[[\"k\",\"longstr\",\"v\"]]}\n]\n"
        );
        assert!(serde_json::from_str::<Value>(&printed(Formatter::Json, true, &rows)).is_ok());
        assert_eq!(printed(Formatter::Json, true, &[]), "[\n]\n");
    }

    #[test]
    fn csv_doubles_quotes() {
        let rows = [vec![json!("a\"b"), json!(["x", "y"])]];
        assert_eq!(printed(Formatter::Csv, true, &rows), "\"name\",\"messages\"\n\"a\"\"b\",\"[x, y]\"\n");
    }

    #[test]
    fn a_frame_fits_its_longest_cell() {
        let drawn = printed(Formatter::PrettyTable, true, &[vec![json!("auto"), json!(0)]]);
        assert_eq!(
            drawn,
            "\x1b(0lqqqqqqwqqqqqqqqqqk\x1b(B\n\
             \x1b(0x\x1b(B \x1b[1mname\x1b[0m \x1b(0x\x1b(B \x1b[1mmessages\x1b[0m \x1b(0x\x1b(B\n\
             \x1b(0tqqqqqqnqqqqqqqqqqu\x1b(B\n\
             \x1b(0x\x1b(B auto \x1b(0x\x1b(B 0        \x1b(0x\x1b(B\n\
             \x1b(0mqqqqqqvqqqqqqqqqqj\x1b(B\n"
        );
    }

    #[test]
    fn arguments_are_erlang_terms() {
        let typed = json!([
            ["x-max-length", "signedint", 10],
            ["x-foo", "longstr", "b\"r"],
            ["x-b", "bool", true],
            ["x-t", "table", [["a", "signedint", 1]]],
            ["x-l", "array", [["signedint", 1], ["longstr", "two"]]],
            ["x-v", "void", null]
        ]);
        assert_eq!(
            plain(&typed),
            r#"[{"x-max-length",10},{"x-foo","b\"r"},{"x-b",true},{"x-t",[{"a",1}]},"#.to_string()
                + r#"{"x-l",[1,"two"]},{"x-v",undefined}]"#
        );
        assert_eq!(plain(&json!([])), "[]");
    }

    #[test]
    fn a_terminal_is_not_spoken_to_by_names() {
        let mut out = Vec::new();
        let mut printer = Printer::new(&mut out, Formatter::Table, &["name"], false).for_terminal(true);
        printer.row(&[json!("a\x1b[2Jb\tc")]).unwrap();
        printer.row(&[json!("orders\u{202e}stnuocca\u{200b}\u{2028}\u{e000}")]).unwrap();
        printer.row(&[json!(["t\u{2066}", "ünïcödé"])]).unwrap();
        let shown =
            "a\\u{1b}[2Jb\tc\norders\\u{202e}stnuocca\\u{200b}\\u{2028}\\u{e000}\n[t\\u{2066}, ünïcödé]\n";
        assert_eq!(String::from_utf8(out).unwrap(), shown);
        let mut out = Vec::new();
        let mut printer = Printer::new(&mut out, Formatter::Json, &["name"], false).for_terminal(true);
        printer.row(&[json!("a\u{202e}b\u{e0041}ü")]).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "[\n{\"name\":\"a\\u202eb\\udb40\\udc41ü\"}\n");
    }
}
